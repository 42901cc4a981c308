//! What most events come to: a change that one guarded statement can make, together with the idempotency row. Only
//! said here; the service runs it, since the statement commits.

use super::subscription::{columns, newcomer, shown_by};
use super::{Concern, invoice};
use crate::db::record::Newer;
use crate::db::subscriptions::LatestInvoice;
use crate::stripe::{Event, Kind, PricePlans};

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
    pub(super) fn of(event: &Event, concern: Option<&Concern<'_>>, plans: &PricePlans) -> Option<Self> {
        match concern {
            None => Some(Self::Nothing),
            // The event that creates a row has to find its account, too.
            Some(Concern::Subscription) if event.kind == Kind::SubscriptionCreated => None,
            Some(Concern::Subscription) => {
                let shown = shown_by(event, plans).ok()?;
                Some(Self::NewerState(Box::new(Newer {
                    names_plan: shown.named_plan.is_some(),
                    state: columns(&shown, None),
                    version: newcomer(event, &shown).ok()?,
                })))
            }
            Some(Concern::Invoice(invoice)) => Some(Self::NewerInvoice(invoice::latest(invoice, event.created?))),
            Some(Concern::Checkout(_)) => None,
        }
    }
}
