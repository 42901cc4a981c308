//! Erasing: removes a customer's personal data from everything that is stored, in one transaction.

use diesel::QueryResult;
use diesel_async::AsyncConnection;

use super::{Service, ServiceError};
use crate::db::{Conn, erase};
use crate::stripe::redact;

/// Payloads that are in memory at once.
const BATCH: usize = 100;

/// How many rows held something of the customer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Events.
    pub events: usize,
    /// Failed attempts that kept a payload.
    pub failures: usize,
    /// Subscriptions that linked to an invoice's page.
    pub subscriptions: usize,
    /// Changes that linked to an invoice's page.
    pub changes: usize,
}

impl Service {
    /// Redacts every payload that is stored of a customer and removes the links to its invoices' pages. Ids, states
    /// and idempotency rows stay.
    ///
    /// # Errors
    /// [`ServiceError`]: nothing was changed.
    pub async fn erase(&self, customer_id: String) -> Result<Erased, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let mut conn = service.connection().await?;
            Ok(conn.transaction(async |conn| erase_all(conn, &customer_id).await).await?)
        })
        .await
    }
}

async fn erase_all(conn: &mut Conn, customer_id: &str) -> QueryResult<Erased> {
    let subscriptions = erase::subscription_ids(conn, customer_id).await?;
    Ok(Erased {
        events: erase_events(conn, customer_id, &subscriptions).await?,
        failures: erase_failures(conn, customer_id, &subscriptions).await?,
        subscriptions: erase::clear_invoice_urls(conn, &subscriptions).await?,
        changes: erase::clear_invoice_urls_of_changes(conn, &subscriptions).await?,
    })
}

async fn erase_events(conn: &mut Conn, customer_id: &str, subscriptions: &[String]) -> QueryResult<usize> {
    let mut erased = 0;
    for ids in erase::event_ids(conn, customer_id, subscriptions).await?.chunks(BATCH) {
        let stored = erase::events(conn, ids).await?;
        let (ids, payloads): (Vec<_>, Vec<_>) =
            stored.into_iter().map(|event| (event.id, redact::erase(&event.payload))).unzip();
        erased += erase::set_event_payloads(conn, &ids, &payloads).await?;
    }
    Ok(erased)
}

async fn erase_failures(conn: &mut Conn, customer_id: &str, subscriptions: &[String]) -> QueryResult<usize> {
    let mut erased = 0;
    for ids in erase::failure_ids(conn, customer_id, subscriptions).await?.chunks(BATCH) {
        let stored = erase::failures(conn, ids).await?;
        let (ids, payloads): (Vec<_>, Vec<_>) =
            stored.into_iter().map(|failure| (failure.id, redact::erase(&failure.payload))).unzip();
        erased += erase::set_failure_payloads(conn, &ids, &payloads).await?;
    }
    Ok(erased)
}
