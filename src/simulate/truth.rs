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
    Some(price.lookup_key.or(life.account.local_plan).unwrap_or(price.id))
}

/// The largest `created` of an invoice event; of equal ones paid after failed, then the greater invoice id.
fn latest_invoice(life: &Life) -> Option<(String, &'static str)> {
    let ranked = life.occurrences.iter().filter_map(|occurrence| match &occurrence.what {
        What::Invoice { id, is_paid } => Some((occurrence.created, *is_paid, id)),
        _ => None,
    });
    ranked.max().map(|(_, is_paid, id)| (id.clone(), if is_paid { "paid" } else { "payment_failed" }))
}

/// Unix seconds as a column shows them.
pub(super) fn time(seconds: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(seconds, 0)
}
