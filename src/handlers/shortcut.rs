//! What most events come to: a change that one guarded statement can make, together with the idempotency row. Only
//! said here; the service runs it, since the statement commits.

use super::Concern;
use crate::db::record::Newer;
use crate::db::subscriptions::LatestInvoice;
use crate::stripe::{Event, PricePlans};

/// All there is to do for an event, if the guard of its statement holds.
#[derive(Debug)]
pub enum Shortcut {
    /// Write the state, if the row is there and shows an older one.
    NewerState(Box<Newer>),
    /// Write the invoice, if the row is there and shows an older one.
    NewerInvoice(LatestInvoice),
    /// Nothing: no handler wants the event.
    Nothing,
}

impl Shortcut {
    /// The shortcut for an event, if there is one for its kind.
    pub(super) fn of(_: &Event, concern: Option<&Concern<'_>>, _: &PricePlans) -> Option<Self> {
        match concern {
            None => Some(Self::Nothing),
            // The event that creates a row has to find its account, too.
            Some(Concern::Subscription | Concern::Invoice | Concern::Features) => None,
            Some(Concern::Checkout(_)) => None,
        }
    }
}
