//! A paid invoice or a failed payment: what is latest of the subscription's invoices, and never its status.

use chrono::{DateTime, Utc};

use super::{HandlerError, Outcome};
use crate::db::Conn;
use crate::db::subscriptions::{self, LatestInvoice};
use crate::stripe::{Event, Invoice, InvoiceStatus};

/// Writes the invoice onto its subscription's row, unless a newer one is there; parked until there is a row.
pub(super) async fn apply(conn: &mut Conn, event: &Event, invoice: &Invoice<'_>) -> Result<Outcome, HandlerError> {
    let created = event.created.ok_or(HandlerError::NoCreated)?;
    let Some(subscription_id) = event.subscription_id.as_deref() else {
        return Ok(Outcome::Ignored);
    };
    let Some(row) = subscriptions::lock(conn, subscription_id).await? else {
        return Ok(Outcome::Parked);
    };
    if rank(&row.latest_invoice).is_some_and(|stored| stored >= (created, Some(invoice.status), invoice.id)) {
        return Ok(Outcome::Stale);
    }
    subscriptions::set_latest_invoice(conn, row.id, &latest(invoice, created)).await?;
    Ok(Outcome::Applied)
}

/// What an invoice event of this time writes.
pub(super) fn latest(invoice: &Invoice<'_>, created: DateTime<Utc>) -> LatestInvoice {
    LatestInvoice {
        latest_invoice_id: Some(invoice.id.to_owned()),
        latest_invoice_status: Some(invoice.status.as_str().to_owned()),
        latest_invoice_event_created: Some(created),
    }
}

/// What orders invoice events: their time, paid after failed, then the invoice's id.
fn rank(latest: &LatestInvoice) -> Option<(DateTime<Utc>, Option<InvoiceStatus>, &str)> {
    let status = latest.latest_invoice_status.as_deref().and_then(InvoiceStatus::from_column);
    Some((latest.latest_invoice_event_created?, status, latest.latest_invoice_id.as_deref()?))
}
