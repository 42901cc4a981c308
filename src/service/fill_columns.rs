//! Fills the columns of rows that a server of an earlier version wrote, from the payloads of the events that the rows
//! show: after an upgrade, and while such servers still run.

use std::time::Duration;

use diesel_async::AsyncConnection;
use serde_json::{Value, json};
use uuid::Uuid;

use super::error::AttemptError;
use super::{Service, ServiceError};
use crate::db::Conn;
use crate::db::backfill::{self, Filled, FilledInvoice, Outdated};
use crate::handlers::projection::{Origin, columns_of};
use crate::stripe::signature::Verified;
use crate::stripe::{Event, Invoice, PricePlans, Subscription};

/// Rows of one transaction. Few, since a delivery waits for the rows that it holds.
const BATCH: i64 = 50;

/// The pause between two passes.
const PAUSE: Duration = Duration::from_secs(60);

/// Passes after a start: a rolling upgrade that takes longer than an hour leaves rows to their next event.
const PASSES: u32 = 60;

impl Service {
    /// Starts filling in the background.
    pub fn start_filling_columns(&self) {
        let service = self.clone();
        self.parts().runtime.spawn(async move {
            for _ in 0..PASSES {
                match service.fill_columns().await {
                    Ok(0) => {}
                    Ok(rows) => log::info!("filled the new columns of {rows} subscriptions from stored events"),
                    Err(error) => log::warn!("cannot fill the new columns of subscriptions yet: {}", error.chain()),
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// Fills every outdated row once, and returns how many there were.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer; the next pass goes on from there.
    pub async fn fill_columns(&self) -> Result<usize, ServiceError> {
        let (mut after, mut rows) = (Uuid::nil(), 0);
        loop {
            let service = self.clone();
            let batch = self.on_runtime(async move {
                let mut conn = service.connection().await?;
                let plans = &service.parts().policy.plans;
                let filled = conn.transaction(async |conn| fill_batch(conn, plans, after).await).await;
                Ok(filled.map_err(AttemptError::from)?)
            });
            let (Some(last), filled) = batch.await? else { return Ok(rows) };
            after = last;
            rows += filled;
        }
    }
}

/// Fills the rows behind `after`; the last one's id, and how many.
async fn fill_batch(conn: &mut Conn, plans: &PricePlans, after: Uuid) -> diesel::QueryResult<(Option<Uuid>, usize)> {
    let rows = backfill::lock_outdated(conn, after, BATCH).await?;
    for row in &rows {
        backfill::fill(conn, row.id, &filled(row, plans)).await?;
        if let Some(invoice) = filled_invoice(row) {
            backfill::fill_invoice(conn, row.id, &invoice).await?;
        }
    }
    Ok((rows.last().map(|row| row.id), rows.len()))
}

/// The columns that the stored event gives; of none, those that say that nothing is known.
fn filled(row: &Outdated, plans: &PricePlans) -> Filled {
    let event = row.payload.clone().and_then(|text| Event::parse(&Verified::from_own_tables(text)).ok());
    let origin = event.as_ref().map(Origin::of).unwrap_or_default();
    let shown = event.filter(|event| event.kind.shows_a_subscription());
    let shown = shown.and_then(|event| Subscription::project(event.object(), plans).ok());
    let projected_event_id = row.last_event_id.clone();
    let Some(shown) = shown.filter(|shown| Some(&shown.id) == row.stripe_subscription_id.as_ref()) else {
        return Filled {
            plan_source: Some("unknown".to_owned()),
            metadata: json!({}),
            items: Value::Array(Vec::new()),
            livemode: origin.livemode,
            connect_account: origin.connect_account,
            projected_event_id,
            ..Filled::default()
        };
    };
    let state = columns_of(&shown, &origin, row.local_plan.as_deref());
    // The row's plan was named by other settings, or by a state that was fetched.
    let is_other_plan = state.plan != row.plan;
    Filled {
        plan_source: if is_other_plan { Some("unknown".to_owned()) } else { state.plan_source },
        stripe_created: state.stripe_created,
        cancellation_reason: state.cancellation_reason,
        cancellation_feedback: state.cancellation_feedback,
        metadata: state.metadata,
        items: state.items,
        items_complete: state.items_complete,
        livemode: state.livemode,
        connect_account: state.connect_account,
        projected_event_id,
    }
}

fn filled_invoice(row: &Outdated) -> Option<FilledInvoice> {
    let event = Event::parse(&Verified::from_own_tables(row.invoice_payload.clone()?)).ok()?;
    let invoice = Invoice::read(&event, row.latest_invoice_event_created?)?;
    Some(FilledInvoice {
        latest_invoice_created: invoice.created,
        latest_invoice_url: invoice.hosted_url,
        next_payment_attempt: invoice.next_payment_attempt,
    })
}
