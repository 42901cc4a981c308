//! What one event does to rows. A handler takes `&mut Conn` and one event; it neither commits, nor calls the network,
//! nor knows HTTP. Where it needs Stripe's word it says so and is run again, in a new transaction, with the answer.

mod answers;
mod checkout;
mod features;
pub mod invoice;
pub mod ordering;
mod parked;
mod place;
pub mod projection;
mod shortcut;
mod subscription;
mod tie;

use diesel::QueryResult;
use thiserror::Error;
use uuid::Uuid;

pub use answers::{Answers, Question, Subject};
pub use parked::{Waiting, wake};
pub use place::link_customer;
pub use shortcut::Shortcut;

use crate::db::{Conn, accounts, locks};
use crate::stripe::{Checkout, Event, Kind, PricePlans, SubscriptionError};

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The subscription now shows this event's state.
    Applied,
    /// A newer state was already there; nothing changed.
    Stale,
    /// A type that no handler wants.
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

/// Something that an admin should hear of once the transaction is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Two states of one second could not be told apart, and the one that came last was taken.
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
    /// A parked event could be placed, but failed. It stays parked.
    WokenFailed {
        /// The parked event.
        event_id: String,
        /// Why.
        error: String,
    },
    /// A parked event was applied.
    Woken {
        /// The event that was parked.
        event_id: String,
        /// Its type.
        event_type: String,
        /// What became of it.
        outcome: Outcome,
    },
}

/// What handling an event came to.
#[derive(Clone, Debug)]
pub struct Handled {
    /// What became of the event.
    pub outcome: Outcome,
    /// The account that it concerns.
    pub account_id: Option<Uuid>,
    /// What to tell once it is committed.
    pub notes: Vec<Note>,
}

/// Why an event could not be handled. The transaction is rolled back.
#[derive(Debug, Error)]
pub enum HandlerError {
    /// A statement failed.
    #[error("a statement failed")]
    Database(#[from] diesel::result::Error),
    /// Only Stripe knows. Not a failure: ask, and run the transaction again.
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

/// What handlers know beside the event and the rows.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Which price is which plan.
    pub plans: &'a PricePlans,
    /// What Stripe has been asked so far.
    pub answers: &'a Answers,
}

/// What an event is about, for the handlers that want it.
enum Concern<'a> {
    Subscription,
    Checkout(Checkout<'a>),
    Invoice,
    Features,
}

impl<'a> Concern<'a> {
    /// `None` where no handler wants the event.
    fn of(event: &'a Event) -> Option<Self> {
        if event.kind.shows_a_subscription() {
            return Some(Self::Subscription);
        }
        if matches!(event.kind, Kind::Invoice(_)) {
            return event.subscription_id.is_some().then_some(Self::Invoice);
        }
        if event.kind == Kind::Features {
            return event.customer_id.is_some().then_some(Self::Features);
        }
        (event.kind == Kind::Checkout).then(|| Checkout::read(event.object())).flatten().map(Self::Checkout)
    }
}

/// Something that handles events. There is one, [`Handlers`]; a test may have others.
pub trait Handle: Sync {
    /// What may spare [`Handle::handle`]. The service takes it first.
    fn shortcut(&self, _: &PricePlans, _: &Event) -> Option<Shortcut> {
        None
    }

    /// Handles an event whose idempotency row was inserted in this transaction.
    ///
    /// # Errors
    /// [`HandlerError`]; the transaction is then rolled back.
    fn handle(
        &self,
        conn: &mut Conn,
        ctx: Context<'_>,
        event: &Event,
    ) -> impl Future<Output = Result<Handled, HandlerError>> + Send;
}

/// The handlers of every type that is handled.
#[derive(Clone, Copy, Debug)]
pub struct Handlers;

impl Handle for Handlers {
    fn shortcut(&self, plans: &PricePlans, event: &Event) -> Option<Shortcut> {
        Shortcut::of(event, Concern::of(event).as_ref(), plans)
    }

    async fn handle(&self, conn: &mut Conn, ctx: Context<'_>, event: &Event) -> Result<Handled, HandlerError> {
        dispatch(conn, ctx, event).await
    }
}

async fn dispatch(conn: &mut Conn, ctx: Context<'_>, event: &Event) -> Result<Handled, HandlerError> {
    let Some(concern) = Concern::of(event) else {
        return ignore(conn, ctx, event).await;
    };
    hold_names(conn, event).await?;
    let mut notes = Vec::new();
    let place = look_up(conn, event).await?;
    let mut account_id = place::settle(conn, event, &concern, &place, &mut notes).await?;
    // The application may have linked the customer by SQL since these were parked; they come first, in their order.
    let mut waiting = Waiting::of(event);
    if place.has_waiting && (account_id.is_some() || is_named_by_waiting(conn, event).await?) {
        wake(conn, ctx, &mut waiting, &mut notes).await?;
        if account_id.is_none() {
            let place = look_up(conn, event).await?;
            account_id = place::settle(conn, event, &concern, &place, &mut notes).await?;
        }
    }
    let outcome = act(conn, ctx, event, &concern, account_id, &mut notes).await?;
    if outcome == Outcome::Applied && place.has_waiting {
        wake(conn, ctx, &mut waiting, &mut notes).await?;
    }
    Ok(Handled { outcome, account_id: account_id.filter(|_| outcome != Outcome::Parked), notes })
}

/// Changes nothing for an event that no handler wants. But the application may have linked its customer by SQL, and
/// this be the first that is heard of the customer since.
async fn ignore(conn: &mut Conn, ctx: Context<'_>, event: &Event) -> Result<Handled, HandlerError> {
    let mut handled = Handled { outcome: Outcome::Ignored, account_id: None, notes: Vec::new() };
    if event.customer_id.is_some() || event.subscription_id.is_some() {
        let place = look_up(conn, event).await?;
        handled.account_id = place.by_subscription.or(place.by_customer);
        if place.has_waiting && handled.account_id.is_some() {
            wake(conn, ctx, &mut Waiting::of(event), &mut handled.notes).await?;
        }
    }
    Ok(handled)
}

/// Changes the rows that the event concerns, in an account that is settled.
async fn act(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    concern: &Concern<'_>,
    account_id: Option<Uuid>,
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let Some(account_id) = account_id else {
        return Ok(Outcome::Parked);
    };
    match concern {
        Concern::Subscription => subscription::apply(conn, ctx, event, account_id, notes).await,
        Concern::Checkout(checkout) => checkout::apply(conn, ctx, event, checkout, account_id, notes).await,
        Concern::Invoice => invoice::apply(conn, event).await,
        Concern::Features => features::apply(conn, ctx, event, notes).await,
    }
}

async fn look_up(conn: &mut Conn, event: &Event) -> QueryResult<accounts::Place> {
    accounts::place(conn, event.subscription_id.as_deref(), event.customer_id.as_deref(), &event.named_account_ids)
        .await
}

async fn is_named_by_waiting(conn: &mut Conn, event: &Event) -> QueryResult<bool> {
    accounts::is_named_by_waiting(conn, event.subscription_id.as_deref(), event.customer_id.as_deref()).await
}

/// Locks everything that the event names, rows or not: two first events of one subscription, or an event and the
/// link that it needs, would otherwise each miss the other's uncommitted work.
async fn hold_names(conn: &mut Conn, event: &Event) -> QueryResult<()> {
    let mut names = owner_locks(event.customer_id.as_deref(), event.subscription_id.as_deref());
    names.extend(event.named_account_ids.iter().copied().map(account_lock));
    locks::hold(conn, &names).await
}

/// The names to lock before anything of a customer or of a subscription is looked up.
fn owner_locks(customer_id: Option<&str>, subscription_id: Option<&str>) -> Vec<String> {
    let subscription = subscription_id.map(|id| format!("subscription {id}"));
    customer_id.map(customer_lock).into_iter().chain(subscription).collect()
}

/// The name to lock before a customer is linked.
pub fn customer_lock(customer_id: &str) -> String {
    format!("customer {customer_id}")
}

/// The name to lock before an account is created.
pub fn account_lock(account_id: Uuid) -> String {
    format!("account {account_id}")
}
