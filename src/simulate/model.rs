//! What a life is made of: states of one subscription, and what was told of each. It draws nothing at random, and
//! knows neither JSON nor how the service reads it.

use uuid::Uuid;

/// A price that the made-up company sells.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Price {
    pub(super) id: &'static str,
    pub(super) product: &'static str,
    pub(super) lookup_key: Option<&'static str>,
    /// In cents.
    pub(super) amount: i64,
    pub(super) is_metered: bool,
    /// `month` or `year`.
    pub(super) interval: &'static str,
}

/// The prices of plans; the last one is metered.
pub(super) const PLANS: [Price; 5] = [
    plan("price_1SimStarterMonthly0001", "prod_SimStarter001", Some("starter"), 900),
    plan("price_1SimTeamMonthly0000001", "prod_SimTeam000001", Some("team"), 1900),
    plan("price_1SimBusinessMonthly001", "prod_SimBusiness01", Some("business"), 4900),
    plan("price_1SimLegacyMonthly00001", "prod_SimLegacy0001", None, 1500),
    Price { is_metered: true, ..plan("price_1SimMeteredMonthly0001", "prod_SimMetered001", Some("usage"), 2) },
];

/// What is sold beside a plan, by the month.
pub(super) const ADD_ONS: [Price; 2] = [
    plan("price_1SimSupportMonthly0001", "prod_SimSupport001", Some("support"), 500),
    plan("price_1SimStorageMonthly0001", "prod_SimStorage001", None, 300),
];

/// What is sold beside a plan, by the year. Only flexible billing has items of different intervals.
pub(super) const YEARLY_ADD_ON: Price =
    Price { interval: "year", ..plan("price_1SimArchiveYearly00001", "prod_SimArchive001", Some("archive"), 9900) };

const fn plan(id: &'static str, product: &'static str, lookup_key: Option<&'static str>, amount: i64) -> Price {
    Price { id, product, lookup_key, amount, is_metered: false, interval: "month" }
}

/// The lookup keys of the features that a customer may have: more than one event lists.
pub(super) const FEATURES: [&str; 12] =
    ["api", "audit", "backup", "branding", "chat", "export", "import", "reports", "roles", "search", "sso", "webhooks"];

/// How many features an event lists.
pub(super) const LISTED_FEATURES: usize = 10;

/// A connected account, of which some subscriptions are.
pub(super) const CONNECTED_ACCOUNT: &str = "acct_1SimConnected0001";

/// One item of a subscription.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) price: &'static Price,
    /// Absent for a metered price.
    pub(super) quantity: Option<i32>,
    /// Its own billing period, if that is not the subscription's.
    pub(super) period: Option<(i64, i64)>,
    /// `current_trial`: start and end.
    pub(super) trial: Option<(i64, i64)>,
}

/// A subscription at one moment. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) status: &'static str,
    /// The plan's item first.
    pub(super) items: Vec<Item>,
    pub(super) period: (i64, i64),
    pub(super) cancel_at_period_end: bool,
    pub(super) cancel_at: Option<i64>,
    pub(super) canceled_at: Option<i64>,
    pub(super) cancellation_reason: Option<&'static str>,
    pub(super) cancellation_feedback: Option<&'static str>,
    pub(super) ended_at: Option<i64>,
    /// Start and end.
    pub(super) trial: Option<(i64, i64)>,
    /// `pause_collection.behavior`.
    pub(super) pause: Option<&'static str>,
    pub(super) latest_invoice: String,
    pub(super) payment_method: Option<String>,
    /// `metadata.note`.
    pub(super) note: Option<String>,
}

impl State {
    /// Whether it is to end.
    pub(super) fn is_scheduled_to_end(&self) -> bool {
        self.cancel_at_period_end || self.cancel_at.is_some()
    }
}

/// Whether two states are the same in one member of the payload; each member once.
pub(super) const MEMBERS: [fn(&State, &State) -> bool; 16] = [
    |a, b| a.status == b.status,
    |a, b| a.items == b.items,
    |a, b| a.period.0 == b.period.0,
    |a, b| a.period.1 == b.period.1,
    |a, b| a.cancel_at_period_end == b.cancel_at_period_end,
    |a, b| a.cancel_at == b.cancel_at,
    |a, b| a.canceled_at == b.canceled_at,
    |a, b| a.cancellation_reason == b.cancellation_reason,
    |a, b| a.cancellation_feedback == b.cancellation_feedback,
    |a, b| a.ended_at == b.ended_at,
    |a, b| a.trial.map(|trial| trial.0) == b.trial.map(|trial| trial.0),
    |a, b| a.trial.map(|trial| trial.1) == b.trial.map(|trial| trial.1),
    |a, b| a.pause == b.pause,
    |a, b| a.latest_invoice == b.latest_invoice,
    |a, b| a.payment_method == b.payment_method,
    |a, b| a.note == b.note,
];

/// An invoice at one moment. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Invoice {
    pub(super) id: String,
    pub(super) created: i64,
    /// Stripe's word: `open`, `paid`, `uncollectible` or `void`.
    pub(super) status: &'static str,
    pub(super) next_payment_attempt: Option<i64>,
}

/// What an event tells of an invoice. Of one second, the greater one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum News {
    Finalized,
    PaymentFailed,
    ActionRequired,
    Uncollectible,
    Paid,
    PaymentSucceeded,
    Voided,
}

impl News {
    fn event_type(self) -> &'static str {
        match self {
            Self::Finalized => "invoice.finalized",
            Self::PaymentFailed => "invoice.payment_failed",
            Self::ActionRequired => "invoice.payment_action_required",
            Self::Uncollectible => "invoice.marked_uncollectible",
            Self::Paid => "invoice.paid",
            Self::PaymentSucceeded => "invoice.payment_succeeded",
            Self::Voided => "invoice.voided",
        }
    }

    /// The word that `latest_invoice_status` has to show.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Finalized => "open",
            Self::PaymentFailed => "payment_failed",
            Self::ActionRequired => "action_required",
            Self::Uncollectible => "uncollectible",
            Self::Paid | Self::PaymentSucceeded => "paid",
            Self::Voided => "void",
        }
    }
}

/// What an event tells.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    Created,
    /// Its former values are those of the occurrence before.
    Updated,
    Paused,
    Resumed,
    TrialWillEnd,
    Deleted,
    Checkout,
    Invoice {
        invoice: Invoice,
        news: News,
    },
    /// The lookup keys of all features that the customer has now.
    Features(Vec<&'static str>),
}

impl What {
    /// The event's type.
    pub(super) fn event_type(&self) -> &'static str {
        match self {
            Self::Created => "customer.subscription.created",
            Self::Updated => "customer.subscription.updated",
            Self::Paused => "customer.subscription.paused",
            Self::Resumed => "customer.subscription.resumed",
            Self::TrialWillEnd => "customer.subscription.trial_will_end",
            Self::Deleted => "customer.subscription.deleted",
            Self::Checkout => "checkout.session.completed",
            Self::Invoice { news, .. } => news.event_type(),
            Self::Features(_) => "entitlements.active_entitlement_summary.updated",
        }
    }

    /// The invoice that it tells of.
    pub(super) fn invoice(&self) -> Option<&Invoice> {
        if let Self::Invoice { invoice, .. } = self { Some(invoice) } else { None }
    }

    /// What it tells of an invoice.
    pub(super) fn news(&self) -> Option<News> {
        if let Self::Invoice { news, .. } = self { Some(*news) } else { None }
    }

    /// The features that it tells of.
    pub(super) fn features(&self) -> Option<&[&'static str]> {
        if let Self::Features(features) = self { Some(features) } else { None }
    }

    /// Whether the event's object is the subscription.
    pub(super) fn shows_the_subscription(&self) -> bool {
        !matches!(self, Self::Checkout | Self::Invoice { .. } | Self::Features(_))
    }
}

/// What the thin notification of an event leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thin {
    /// It names the snapshot event.
    NamesSnapshot,
    /// Its own event at Stripe names the snapshot event.
    FindsSnapshot,
    /// There is no snapshot event: the object has to be read.
    ObjectOnly,
}

/// One thing that happened, and of which Stripe sends an event.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Occurrence {
    pub(super) event_id: String,
    pub(super) what: What,
    pub(super) created: i64,
    /// The subscription right after it.
    pub(super) state: State,
    pub(super) thin: Thin,
}

/// Where in the payload a life's API version puts things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// 2023-10-16: the period stands on the subscription.
    Classic,
    /// 2025-08-27.basil: the period stands on the items.
    Basil,
    /// 2026-10-28.endive with flexible billing: items have intervals and trials of their own, and a cancellation is a
    /// date.
    Endive,
}

/// How an account and its customers come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// The account is made, with its customer, before any event.
    CustomerBefore,
    /// The same, while events come in.
    CustomerDuring,
    /// The account is made before any event; its customer is linked by PATCH while they come in.
    PatchedDuring,
    /// The account is made before any event; only the checkout's `client_reference_id` leads to it.
    CheckoutBefore,
    /// The same, but the account is made while events come in.
    CheckoutDuring,
    /// The account is made while events come in; only the subscription's `metadata.account_id` leads to it.
    MetadataDuring,
}

impl Link {
    /// Whether the account is there before the first event.
    pub(super) fn has_account_before(self) -> bool {
        matches!(self, Self::CustomerBefore | Self::PatchedDuring | Self::CheckoutBefore)
    }

    /// Whether checkouts carry the account's id.
    pub(super) fn is_named_by_checkout(self) -> bool {
        !matches!(self, Self::PatchedDuring | Self::MetadataDuring)
    }

    /// Whether the subscription was bought in a checkout.
    pub(super) fn has_checkout(self) -> bool {
        self != Self::MetadataDuring
    }
}

/// An account of the application.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Account {
    pub(super) id: Uuid,
    /// The customer of its first life.
    pub(super) customer_id: String,
    pub(super) link: Link,
    /// The plan of the local trial that the application gave it first.
    pub(super) local_plan: Option<&'static str>,
    /// Whether one of its subscriptions takes over the row of that trial.
    pub(super) is_local_row_taken: bool,
    /// When that row was made, in seconds since 1970: with the first of its subscriptions.
    pub(super) local_row_since: i64,
}

/// The whole life of one subscription.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Life {
    pub(super) subscription_id: String,
    pub(super) customer_id: String,
    pub(super) shape: Shape,
    /// The connected account that it is of.
    pub(super) connect_account: Option<&'static str>,
    pub(super) account: Account,
    /// In the order in which they happened.
    pub(super) occurrences: Vec<Occurrence>,
    /// Whether its last two changes undo each other within one second: only Stripe knows which came last.
    pub(super) is_for_stripe_to_decide: bool,
}
