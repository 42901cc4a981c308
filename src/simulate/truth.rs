//! What the tables have to show for a life once all of it was told: read off the generator's own states and the
//! contract, never computed by the code that is put to the test.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::model::{Life, State, What};

/// What the row of one subscription has to show.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Truth {
    pub(super) account_id: Uuid,
    pub(super) customer_id: String,
    pub(super) state: State,
    pub(super) plan: &'static str,
    /// Of the event whose state is the last one, in Unix seconds.
    pub(super) last_event_created: i64,
    /// Its id and what became of it.
    pub(super) latest_invoice: Option<(String, &'static str)>,
}

impl Truth {
    /// Of a life; `None` for one of which nothing was told.
    pub(super) fn of(life: &Life) -> Option<Self> {
        let last = life.occurrences.iter().rfind(|occurrence| occurrence.what.shows_the_subscription())?;
        Some(Self {
            account_id: life.account.id,
            customer_id: life.customer_id.clone(),
            plan: plan(life, &last.state)?,
            state: last.state.clone(),
            last_event_created: last.created,
            latest_invoice: latest_invoice(life),
        })
    }

    /// The first item's seats; a metered one has none.
    pub(super) fn seat_limit(&self) -> Option<i32> {
        self.state.items.first()?.quantity
    }

    /// The first item's price.
    pub(super) fn price_id(&self) -> Option<&'static str> {
        self.state.items.first().map(|item| item.price.id)
    }
}

/// The price's lookup key, else the plan of the local trial that the account had, else the price's id.
fn plan(life: &Life, state: &State) -> Option<&'static str> {
    let price = state.items.first()?.price;
    Some(price.lookup_key.or(life.account.local_plan.filter(|_| life.account.is_local_row_taken)).unwrap_or(price.id))
}

/// The invoice that was made last (an invoice is made when its period starts), of two of one second the one with the
/// greater id; and what its latest event says, of one second paid after failed.
fn latest_invoice(life: &Life) -> Option<(String, &'static str)> {
    let told = || {
        life.occurrences.iter().filter_map(|occurrence| match &occurrence.what {
            What::Invoice { id, is_paid } => Some((occurrence, *is_paid, id)),
            _ => None,
        })
    };
    let (_, latest) = told().map(|(occurrence, _, id)| (occurrence.state.period.0, id)).max()?;
    let events =
        told().filter(|(_, _, id)| *id == latest).map(|(occurrence, is_paid, _)| (occurrence.created, is_paid));
    let (_, is_paid) = events.max()?;
    Some((latest.clone(), if is_paid { "paid" } else { "payment_failed" }))
}

/// Unix seconds as a column shows them.
pub(super) fn time(seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(seconds, 0)
}
