//! Handlers: how one event changes rows. A handler takes `&mut Conn` and the transaction's [`Work`], decides, and neither
//! commits, nor calls the network, nor knows HTTP.
//!
//! Most events are decided on the rows that [`Work::load`] read, several in one transaction. A handler that needs more
//! returns [`HandlerError::GoesAlone`]; it is then run in a transaction of its own, where it may read through `&mut Conn`.
//! A handler that has to ask Stripe returns [`HandlerError::NeedsStripe`], and is run again with the answer.

mod account;
mod answers;
pub mod change;
mod checkout;
mod features;
pub mod invoice;
mod local_row;
pub mod ordering;
pub mod projection;
mod subscription;
mod tie_break;
pub mod work;

use futures_util::future::{BoxFuture, FutureExt};
use thiserror::Error;
use uuid::Uuid;

pub use account::{link_customer, move_misplaced};
pub use answers::{Answers, Question, Subject};
pub use work::{Recording, Submission, Work, WriteError};

use crate::db::Conn;
use crate::db::entitlements::Settings;
use crate::db::parked::Awaited;
use crate::stripe::trust::{ConnectTrust, Mode};
use crate::stripe::{Checkout, Event, Kind, PricePlans, SubscriptionError};

/// The outcome of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// What the event says is shown now, or was shown already.
    Applied,
    /// A newer state was there already, so that this event's is not shown. The row may still have moved, or have taken over
    /// a local row.
    Stale,
    /// An event of a type without a handler, or of the mode that `STRIPE_MODE` excludes.
    Ignored,
    /// The customer is linked to no account yet, or the invoice's subscription has no row yet.
    Parked,
}

impl Outcome {
    /// The word of the column `outcome` and of the webhook's answer.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Stale => "stale",
            Self::Ignored => "ignored",
            Self::Parked => "parked",
        }
    }
}

/// A note for the log and the metrics, written once the transaction is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The order of two states of one second is unknown. The one that arrived last was taken.
    UndecidedTie {
        /// The event that was taken.
        event_id: String,
        /// The subscription.
        subscription_id: String,
    },
    /// A checkout names another account than the one to which its customer or subscription belongs.
    AccountConflict {
        /// The checkout's event.
        event_id: String,
        /// Where it was projected.
        belongs_to: Uuid,
        /// What it names.
        names: Uuid,
    },
    /// An event lists only some of a customer's features, and there was no key to read the others.
    FeaturesIncomplete {
        /// The event.
        event_id: String,
        /// The customer.
        customer_id: String,
    },
    /// The event's `cus_…` and `acct_…` are linked to different accounts. The `cus_…` counts.
    CustomerConflict {
        /// The event.
        event_id: String,
        /// The account of the `cus_…`.
        account_of_customer: Uuid,
        /// The account of the `acct_…`.
        account_of_customer_account: Uuid,
    },
    /// The event is of the other mode than `STRIPE_MODE`, and was ignored.
    OtherMode {
        /// The event.
        event_id: String,
        /// Whether it is about real money.
        livemode: bool,
    },
    /// The event of a connected account names an account of ours, which does not count (`TRUST_CONNECT_METADATA`).
    UntrustedName {
        /// The event.
        event_id: String,
        /// The connected account.
        connect_account: String,
    },
}

/// A handled event.
#[derive(Clone, Debug)]
pub struct Handled {
    /// The event's outcome.
    pub outcome: Outcome,
    /// The account that it concerns.
    pub account_id: Option<Uuid>,
    /// Notes for the log and the metrics.
    pub notes: Vec<Note>,
    /// What parked events may wait for: they are looked for once this is committed. A parked event names what it waits for
    /// itself, because that may have been committed meanwhile.
    pub releases: Vec<Awaited>,
}

impl Handled {
    /// An outcome that concerns an account.
    pub fn new(outcome: Outcome, account_id: Option<Uuid>) -> Self {
        Self { outcome, account_id, notes: Vec::new(), releases: Vec::new() }
    }
}

/// Why an event was not handled. Nothing of it may then be written.
#[derive(Debug, Error)]
pub enum HandlerError {
    /// A statement failed.
    #[error("a statement failed")]
    Database(#[from] diesel::result::Error),
    /// The handler needs more than was loaded. Not a failure: run the event in a transaction of its own.
    #[error("the event needs a transaction of its own")]
    GoesAlone,
    /// Stripe has to be asked. Not a failure: ask, and run the transaction again with the answer.
    #[error("Stripe has to be asked")]
    NeedsStripe(Question),
    /// The subscription cannot be projected.
    #[error("the event's subscription cannot be projected")]
    Subscription(#[from] SubscriptionError),
    /// Without its time an event cannot be ordered.
    #[error("the event has no usable `created`")]
    NoCreated,
    /// A row that this transaction has just seen is gone.
    #[error("{0} is gone")]
    Gone(&'static str),
}

/// Which events act, and how: the part of the configuration that handlers know.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Which price is which plan.
    pub plans: PricePlans,
    /// Which events act.
    pub mode: Mode,
    /// The connected accounts whose metadata may name an account of ours.
    pub trust: ConnectTrust,
    /// What entitles an account.
    pub entitlement: Settings,
}

impl Policy {
    /// The accounts of ours that the object names, as far as the names count.
    pub(crate) fn trusted_names<'a>(&self, event: &'a Event) -> &'a [Uuid] {
        let is_trusted =
            event.connect_account.as_ref().is_none_or(|connect_account| self.trust.trusts(connect_account));
        if is_trusted { &event.named_account_ids } else { &[] }
    }

    /// What makes a place for an event that belongs to no account yet. An account that it may not name is nothing to wait
    /// for.
    pub(crate) fn awaited_placement(&self, event: &Event) -> Vec<Awaited> {
        let customers = event.customer_ids.iter().map(|customer| Awaited::Customer(customer.clone()));
        customers.chain(self.trusted_names(event).iter().map(|id| Awaited::Account(*id))).collect()
    }
}

/// Whether several events share the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Several events may share it. A handler decides on what was loaded, and makes no query.
    Batch,
    /// One event alone.
    Alone,
}

/// The configuration and the answers of Stripe, for handlers.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The configuration.
    pub policy: &'a Policy,
    /// The answers of Stripe so far.
    pub answers: &'a Answers,
    /// Whether several events share the transaction.
    pub sharing: Sharing,
}

impl Context<'_> {
    /// Returns [`HandlerError::GoesAlone`] in a batch, where handlers make no query.
    pub(crate) fn needs_own_transaction(&self) -> Result<(), HandlerError> {
        match self.sharing {
            Sharing::Batch => Err(HandlerError::GoesAlone),
            Sharing::Alone => Ok(()),
        }
    }
}

/// Something that handles events. There is one, [`Handlers`]; a test may have others.
pub trait Handle: Send + Sync {
    /// Handles an event.
    ///
    /// # Errors
    /// [`HandlerError`]; nothing of the event may then be written.
    fn handle<'a>(
        &'a self,
        conn: &'a mut Conn,
        work: &'a mut Work,
        ctx: Context<'a>,
        event: &'a Event,
    ) -> BoxFuture<'a, Result<Handled, HandlerError>>;
}

/// The handlers of every type that is handled.
#[derive(Clone, Copy, Debug)]
pub struct Handlers;

impl Handle for Handlers {
    fn handle<'a>(
        &'a self,
        conn: &'a mut Conn,
        work: &'a mut Work,
        ctx: Context<'a>,
        event: &'a Event,
    ) -> BoxFuture<'a, Result<Handled, HandlerError>> {
        dispatch(conn, work, ctx, event).boxed()
    }
}

/// The subscription whose row is locked before the event is handled.
fn locked_subscription(event: &Event) -> Option<&str> {
    event.subscription_id.as_deref().filter(|_| event.kind != Kind::Other)
}

async fn dispatch(conn: &mut Conn, work: &mut Work, ctx: Context<'_>, event: &Event) -> Result<Handled, HandlerError> {
    let facts = work.facts(event)?;
    if !ctx.policy.mode.allows(event.livemode) {
        let mut handled = Handled::new(Outcome::Ignored, facts.account());
        handled.notes.push(Note::OtherMode { event_id: event.id.clone(), livemode: event.livemode });
        return Ok(handled);
    }
    // Also if this event will be parked: it may be an invoice, and a parked event may be the one that makes its row.
    let newly_linked = facts.account().filter(|_| facts.has_new_links);
    let mut handled = match event.kind {
        Kind::SubscriptionCreated | Kind::SubscriptionChanged | Kind::SubscriptionDeleted => {
            subscription::apply(conn, work, ctx, event).await?
        }
        Kind::Checkout => match Checkout::read(event.object()) {
            Some(checkout) => checkout::apply(conn, work, ctx, event, &checkout).await?,
            None => Handled::new(Outcome::Ignored, facts.account_of_row.or(facts.linked_account())),
        },
        Kind::Invoice(_) if event.subscription_id.is_some() => invoice::apply(conn, work, ctx, event).await?,
        Kind::Features if event.customer_id.is_some() => features::apply(conn, work, ctx, event).await?,
        Kind::Invoice(_) | Kind::Features | Kind::Other => {
            Handled::new(Outcome::Ignored, facts.account_of_row.or(facts.linked_account()))
        }
    };
    handled.releases.extend(newly_linked.map(Awaited::Account));
    if let Some(note) = untrusted_name(ctx, event) {
        handled.notes.push(note);
    }
    Ok(handled)
}

fn untrusted_name(ctx: Context<'_>, event: &Event) -> Option<Note> {
    let is_ignored = !event.named_account_ids.is_empty() && ctx.policy.trusted_names(event).is_empty();
    let connect_account = event.connect_account.clone().filter(|_| is_ignored)?;
    Some(Note::UntrustedName { event_id: event.id.clone(), connect_account })
}
