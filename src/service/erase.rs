//! Erasing: removes a customer's personal data from everything that is stored, in one transaction.

use diesel::QueryResult;
use diesel::result::Error as DieselError;
use diesel_async::AsyncConnection;

use super::{Service, ServiceError};
use crate::db::{Conn, erase, subscriptions};
use crate::handlers::{Work, WriteError};
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
    // First, because this locks the rows: no event of theirs commits until the end of this transaction.
    let rows = erase_invoice_urls(conn, &subscriptions).await?;
    // Among these changes are those just written, whose `before` still has the link.
    let changes = erase::clear_invoice_urls_of_changes(conn, &subscriptions).await?.saturating_sub(rows);
    Ok(Erased {
        events: erase_events(conn, customer_id, &subscriptions).await?,
        failures: erase_failures(conn, customer_id, &subscriptions).await?,
        subscriptions: rows,
        changes,
    })
}

/// Removes the links to invoice pages from the subscriptions' rows and announces that; returns how many rows had one.
async fn erase_invoice_urls(conn: &mut Conn, subscriptions: &[String]) -> QueryResult<usize> {
    let ids: Vec<_> = subscriptions.iter().map(String::as_str).collect();
    let mut work = Work::default();
    let mut count = 0;
    for mut row in subscriptions::lock(conn, &ids).await? {
        work.adopt(row.clone());
        count += usize::from(row.latest_invoice.latest_invoice_url.take().is_some());
        work.put(row, None);
    }
    match work.write(conn).await {
        Ok(()) => Ok(count),
        Err(WriteError::Database(error)) => Err(error),
        // No event is recorded here.
        Err(WriteError::AlreadyRecorded) => Err(DieselError::RollbackTransaction),
    }
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
