//! What most events come to, as one guarded statement that is sent along with the idempotency row and spares every
//! look and every lock of the long way. Where its guard does not hold it changes nothing.

use diesel::QueryResult;

use super::subscription::{as_of, columns, newcomer, shown_by};
use super::{Concern, Outcome, invoice};
use crate::db::subscriptions::{self, AsOf, LatestInvoice, State};
use crate::db::{Conn, events};
use crate::ordering::Version;
use crate::stripe::{Event, Kind, PricePlans};

/// Whether an attempt at a transaction may take a shortcut, or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortcuts {
    /// None was taken so far.
    Allowed,
    /// One was taken and its guard did not hold. The subscription's row may have been locked on the way.
    Missed,
    /// The long way is to be gone from its start.
    Avoided,
}

/// The one statement that is all there is to do for an event, if its guard holds.
#[derive(Debug)]
pub struct Shortcut<'a> {
    event: &'a Event,
    change: Change,
}

#[derive(Debug)]
enum Change {
    /// The row is there and shows an older state.
    NewerState { named_plan: Option<String>, state: Box<State>, as_of: AsOf, version: Version },
    /// The row is there and shows an older invoice.
    NewerInvoice(LatestInvoice),
    /// No handler wants the event.
    Nothing,
}

impl<'a> Shortcut<'a> {
    /// The shortcut for an event, if there is one for its kind.
    pub(super) fn of(event: &'a Event, concern: Option<&Concern<'_>>, plans: &PricePlans) -> Option<Self> {
        let change = match concern {
            None => Change::Nothing,
            // The event that creates a row has to find its account, too.
            Some(Concern::Subscription) if event.kind == Kind::SubscriptionCreated => return None,
            Some(Concern::Subscription) => {
                let shown = shown_by(event, plans).ok()?;
                Change::NewerState {
                    version: newcomer(event, &shown).ok()?,
                    state: Box::new(columns(&shown, None)),
                    as_of: as_of(event),
                    named_plan: shown.named_plan,
                }
            }
            Some(Concern::Invoice(invoice)) => Change::NewerInvoice(invoice::latest(invoice, event.created?)),
            Some(Concern::Checkout(_)) => return None,
        };
        Some(Self { event, change })
    }

    /// What becomes of the event if the guard holds.
    pub fn outcome(&self) -> Outcome {
        match self.change {
            Change::NewerState { .. } | Change::NewerInvoice(_) => Outcome::Applied,
            Change::Nothing => Outcome::Ignored,
        }
    }

    /// Whether the guard held: what there was to do is done. In every case it takes that no parked event waits for
    /// what the event is about, since those go first.
    pub async fn take(&self, conn: &Conn) -> QueryResult<bool> {
        let (customer, subscription) = (self.event.customer_id.as_deref(), self.event.subscription_id.as_deref());
        match (&self.change, subscription) {
            (Change::NewerState { named_plan, state, as_of, version }, Some(subscription)) => {
                let newer = subscriptions::Newer { named_plan: named_plan.as_deref(), state, as_of, version: *version };
                Ok(subscriptions::set_newer_state(conn, subscription, customer, newer).await? == 1)
            }
            (Change::NewerInvoice(latest), Some(subscription)) => {
                Ok(subscriptions::set_newer_invoice(conn, subscription, customer, latest).await? == 1)
            }
            (Change::NewerState { .. } | Change::NewerInvoice(_), None) => Ok(false),
            (Change::Nothing, None) if customer.is_none() => Ok(true),
            (Change::Nothing, _) => events::nothing_waits_for(conn, customer, subscription).await,
        }
    }

    /// Whether the guard did not hold because the event is old, which is then recorded: nothing else is to be done.
    /// Soon, since the row may be locked that others wait for.
    pub async fn settle_stale(&self, conn: &Conn) -> QueryResult<bool> {
        let (Change::NewerState { version, .. }, Some(subscription)) =
            (&self.change, self.event.subscription_id.as_deref())
        else {
            return Ok(false);
        };
        let (id, customer) = (&self.event.id, self.event.customer_id.as_deref());
        Ok(subscriptions::mark_stale_if_older(conn, id, subscription, customer, *version).await? == 1)
    }
}
