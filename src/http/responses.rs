//! How answers look from outside: the contract's fields, in its names. Times are RFC 3339 in UTC.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::db::entitlements::Entitlement;
use crate::db::failures::Failure;
use crate::db::listing::Listed;
use crate::db::subscriptions::Row;
use crate::service::{AccountPage, AccountView, EventPage, EventView};

/// What became of an event; `failed` when every attempt so far failed.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = EventStatus)]
pub enum Status {
    Applied,
    Stale,
    Ignored,
    Parked,
    Failed,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Stale => "stale",
            Self::Ignored => "ignored",
            Self::Parked => "parked",
            Self::Failed => "failed",
        }
    }
}

/// `applied`: the subscription now shows this event's state. `stale`: a newer state was already there. `ignored`: a
/// type that no handler wants. `parked`: the customer is linked to no account yet. `duplicate`: recorded before.
#[derive(ToSchema)]
#[schema(as = Outcome, rename_all = "lowercase")]
#[expect(dead_code, reason = "the words come from the service; this lists them for the schema")]
enum OutcomeWord {
    Applied,
    Stale,
    Ignored,
    Parked,
    Duplicate,
}

/// What a delivery or a replay came to. It is on disk.
#[derive(Debug, Serialize, ToSchema)]
pub struct Recorded {
    /// Whether this request recorded it; false where it was recorded before.
    pub applied: bool,
    #[schema(value_type = OutcomeWord)]
    pub outcome: String,
}

/// An event, as it is in lists.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ListedEvent)]
pub struct EventInList {
    #[schema(example = "evt_1MtwBwLkdIwHu7ix28a3tqPa")]
    id: String,
    #[schema(example = "customer.subscription.updated")]
    r#type: String,
    #[schema(value_type = Status)]
    status: String,
    /// Stripe's time.
    #[schema(required)]
    created: Option<DateTime<Utc>>,
    /// When it first came.
    received_at: DateTime<Utc>,
    /// The API version that the payload's shape follows.
    #[schema(required)]
    api_version: Option<String>,
    livemode: bool,
    /// The connected account that it is about.
    #[schema(required, example = "acct_1032D82eZvKYlo2C")]
    connect_account: Option<String>,
    #[schema(required, example = "cus_NffrFeUfNV2Hib")]
    customer: Option<String>,
    #[schema(required, example = "sub_1MowQVLkdIwHu7ixeRlqHVzs")]
    subscription: Option<String>,
    /// The account of ours that it concerned; null while it is parked or has only ever failed.
    #[schema(required)]
    account: Option<Uuid>,
    /// The failed attempts, newest first.
    failures: Vec<FailedAttempt>,
}

/// An event, alone.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct Event {
    #[serde(flatten)]
    listed: EventInList,
    /// As it was received; null where only failures are left and none of them kept it.
    payload: Value,
}

/// One failed attempt at an event.
#[derive(Debug, Serialize, ToSchema)]
pub struct FailedAttempt {
    failed_at: DateTime<Utc>,
    /// Why, with every cause.
    error: String,
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventList)]
pub struct Events {
    /// Newest first.
    data: Vec<EventInList>,
    /// Whether there are older ones: ask again with `starting_after` set to the last id.
    has_more: bool,
}

/// An account of the application.
#[derive(Debug, Serialize, ToSchema)]
pub struct Account {
    id: Uuid,
    name: String,
    /// The one that stands in the account itself first.
    stripe_customer_ids: Vec<String>,
    /// Newest first.
    subscriptions: Vec<Subscription>,
    /// The lookup keys of the features that its customers have, by Stripe's entitlements.
    features: Vec<String>,
    entitlement: EntitlementView,
    /// How many parked events of its customers are yet to be applied; absent if none are.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    parked: Option<i64>,
}

impl Account {
    /// The account with the number of its parked events.
    pub fn with_parked(self, count: i64) -> Self {
        Self { parked: (count > 0).then_some(count), ..self }
    }
}

/// A page of accounts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AccountList)]
pub struct Accounts {
    /// Newest first.
    data: Vec<Account>,
    /// Whether there are older ones: ask again with `starting_after` set to the last id.
    has_more: bool,
}

/// What an account is entitled to, and because of what.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Entitlement)]
pub struct EntitlementView {
    entitled: bool,
    /// Why, or why not, in words.
    reason: String,
    #[schema(required)]
    plan: Option<String>,
    /// Why the plan has its name.
    #[schema(required, value_type = Option<PlanSource>)]
    plan_source: Option<String>,
    #[schema(required)]
    seat_limit: Option<i32>,
    /// The end of the period or the trial, or of the subscription if that comes before.
    #[schema(required)]
    until: Option<DateTime<Utc>>,
    /// Whether the period or the trial ended so long ago that an event must be missing.
    overdue: bool,
    /// The subscription's `id` that entitles the account.
    #[schema(required)]
    subscription_id: Option<Uuid>,
    /// The event that brought the subscription into this state.
    #[schema(required)]
    since_event: Option<String>,
}

/// A row of the table `subscriptions`.
#[derive(Debug, Serialize, ToSchema)]
pub struct Subscription {
    id: Uuid,
    account_id: Uuid,
    #[schema(required)]
    plan: Option<String>,
    /// Why the plan has its name.
    #[schema(required, value_type = Option<PlanSource>)]
    plan_source: Option<String>,
    /// Stripe's word as it is, also one that is not known today.
    #[schema(example = "active")]
    status: String,
    /// Null for a local subscription, one that the application gave.
    #[schema(required)]
    stripe_subscription_id: Option<String>,
    #[schema(required)]
    stripe_price_id: Option<String>,
    #[schema(required)]
    seat_limit: Option<i32>,
    #[schema(required)]
    current_period_start: Option<DateTime<Utc>>,
    #[schema(required)]
    current_period_end: Option<DateTime<Utc>>,
    cancel_at_period_end: bool,
    #[schema(required)]
    cancel_at: Option<DateTime<Utc>>,
    #[schema(required)]
    canceled_at: Option<DateTime<Utc>>,
    #[schema(required)]
    ended_at: Option<DateTime<Utc>>,
    #[schema(required)]
    trial_end: Option<DateTime<Utc>>,
    /// When it ended or will end, as far as that is known.
    #[schema(required)]
    ends_at: Option<DateTime<Utc>>,
    paused_collection: bool,
    /// When Stripe made it.
    #[schema(required)]
    stripe_created: Option<DateTime<Utc>>,
    /// Stripe's word for why it was canceled.
    #[schema(required)]
    cancellation_reason: Option<String>,
    /// The customer's answer to why it was canceled.
    #[schema(required)]
    cancellation_feedback: Option<String>,
    /// The application's notes at Stripe.
    #[schema(value_type = Object)]
    metadata: Value,
    #[schema(value_type = Vec<SubscriptionItem>)]
    items: Value,
    /// False if Stripe listed only some of the items, and there was no key to read the others.
    items_complete: bool,
    #[schema(required)]
    livemode: Option<bool>,
    /// The connected account to which it belongs.
    #[schema(required)]
    connect_account: Option<String>,
    #[schema(required)]
    latest_invoice_id: Option<String>,
    #[schema(required, value_type = Option<InvoiceStatus>)]
    latest_invoice_status: Option<String>,
    /// When Stripe made the latest invoice.
    #[schema(required)]
    latest_invoice_created: Option<DateTime<Utc>>,
    /// The page where the latest invoice can be paid.
    #[schema(required)]
    latest_invoice_url: Option<String>,
    /// When Stripe tries again to collect the latest invoice.
    #[schema(required)]
    next_payment_attempt: Option<DateTime<Utc>>,
    #[schema(required)]
    last_event_id: Option<String>,
    #[schema(required)]
    last_event_created: Option<DateTime<Utc>>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// `price_plans`: the price or product is in `PRICE_PLANS`. `lookup_key`: the price has one. `local`: the plan of the
/// local subscription that was taken over. `price_id`: nothing names the plan. `unknown`: the row is of before an upgrade.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the words come from the table; this lists them for the schema")]
enum PlanSource {
    PricePlans,
    LookupKey,
    Local,
    PriceId,
    Unknown,
}

/// The newest that Stripe said of an invoice.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "the words come from the table; this lists them for the schema")]
enum InvoiceStatus {
    Open,
    PaymentFailed,
    ActionRequired,
    Uncollectible,
    Paid,
    Void,
}

/// An item of a subscription.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the items come from the table as they are; this describes them for the schema")]
struct SubscriptionItem {
    #[schema(required, example = "si_NcLYdDxLHxlFo7")]
    stripe_item_id: Option<String>,
    #[schema(required)]
    stripe_price_id: Option<String>,
    #[schema(required)]
    stripe_product_id: Option<String>,
    #[schema(required)]
    lookup_key: Option<String>,
    /// The name that `PRICE_PLANS` or else the lookup key gives the item.
    #[schema(required)]
    plan: Option<String>,
    /// Absent for a metered item.
    #[schema(required)]
    quantity: Option<i32>,
    #[schema(required, example = "licensed")]
    usage_type: Option<String>,
    /// The price of one unit, in the currency's smallest unit.
    #[schema(required)]
    unit_amount: Option<i64>,
    #[schema(required, example = "usd")]
    currency: Option<String>,
    #[schema(required, example = "month")]
    interval: Option<String>,
    #[schema(required)]
    interval_count: Option<i32>,
    #[schema(required)]
    current_period_start: Option<DateTime<Utc>>,
    #[schema(required)]
    current_period_end: Option<DateTime<Utc>>,
}

impl From<Failure> for FailedAttempt {
    fn from(Failure { failed_at, error }: Failure) -> Self {
        Self { failed_at, error }
    }
}

impl From<(Listed, Vec<Failure>)> for EventInList {
    fn from((event, failures): (Listed, Vec<Failure>)) -> Self {
        Self {
            id: event.id,
            r#type: event.type_,
            status: event.status,
            created: event.created,
            received_at: event.received_at,
            api_version: event.api_version,
            livemode: event.livemode,
            connect_account: event.connect_account,
            customer: event.customer_id,
            subscription: event.subscription_id,
            account: event.account_id,
            failures: failures.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<EventView> for Event {
    fn from(EventView { event, failures, payload }: EventView) -> Self {
        let payload = payload.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or(Value::String(text)));
        Self { listed: (event, failures).into(), payload }
    }
}

impl From<EventPage> for Events {
    fn from(EventPage { events, has_more }: EventPage) -> Self {
        Self { data: events.into_iter().map(Into::into).collect(), has_more }
    }
}

impl From<AccountPage> for Accounts {
    fn from(AccountPage { accounts, has_more }: AccountPage) -> Self {
        Self { data: accounts.into_iter().map(Into::into).collect(), has_more }
    }
}

impl From<AccountView> for Account {
    fn from(view: AccountView) -> Self {
        Self {
            id: view.account.id,
            name: view.account.name,
            stripe_customer_ids: view.customers,
            subscriptions: view.subscriptions.into_iter().map(Into::into).collect(),
            features: view.features,
            entitlement: view.entitlement.into(),
            parked: None,
        }
    }
}

impl From<Entitlement> for EntitlementView {
    fn from(row: Entitlement) -> Self {
        Self {
            entitled: row.entitled,
            reason: row.reason,
            plan: row.plan,
            plan_source: row.plan_source,
            seat_limit: row.seat_limit,
            until: row.until,
            overdue: row.overdue,
            subscription_id: row.subscription_id,
            since_event: row.since_event,
        }
    }
}

impl From<Row> for Subscription {
    fn from(row: Row) -> Self {
        let (state, as_of, invoice) = (row.state, row.as_of, row.latest_invoice);
        Self {
            id: row.id,
            account_id: row.account_id,
            plan: state.plan,
            plan_source: state.plan_source,
            status: state.status,
            stripe_subscription_id: row.stripe_subscription_id,
            stripe_price_id: state.stripe_price_id,
            seat_limit: state.seat_limit,
            current_period_start: state.current_period_start,
            current_period_end: state.current_period_end,
            cancel_at_period_end: state.cancel_at_period_end,
            cancel_at: state.cancel_at,
            canceled_at: state.canceled_at,
            ended_at: state.ended_at,
            trial_end: state.trial_end,
            ends_at: row.ends_at,
            paused_collection: state.paused_collection,
            stripe_created: state.stripe_created,
            cancellation_reason: state.cancellation_reason,
            cancellation_feedback: state.cancellation_feedback,
            metadata: state.metadata,
            items: state.items,
            items_complete: state.items_complete,
            livemode: state.livemode,
            connect_account: state.connect_account,
            latest_invoice_id: invoice.latest_invoice_id,
            latest_invoice_status: invoice.latest_invoice_status,
            latest_invoice_created: invoice.latest_invoice_created,
            latest_invoice_url: invoice.latest_invoice_url,
            next_payment_attempt: invoice.next_payment_attempt,
            last_event_id: as_of.last_event_id,
            last_event_created: as_of.last_event_created,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}
