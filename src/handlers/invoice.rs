//! An event of an invoice: the latest of the subscription's invoices, and never its status.

use std::cmp::Ordering;

use super::{HandlerError, Outcome};
use crate::db::Conn;
use crate::db::subscriptions::{self, LatestInvoice};
use crate::stripe::{Event, Invoice, InvoiceStatus};

/// Writes the invoice onto its subscription's row, unless a newer one is there; parked until there is a row.
pub(super) async fn apply(conn: &mut Conn, event: &Event) -> Result<Outcome, HandlerError> {
    let created = event.created.ok_or(HandlerError::NoCreated)?;
    let (Some(subscription_id), Some(invoice)) = (&event.subscription_id, Invoice::read(event, created)) else {
        return Ok(Outcome::Ignored);
    };
    let Some(row) = subscriptions::lock(conn, subscription_id).await? else {
        return Ok(Outcome::Parked);
    };
    match shown(&row.latest_invoice).map_or(Ordering::Greater, |shown| invoice.compare(&shown)) {
        Ordering::Less => Ok(Outcome::Stale),
        // The row shows this very state, by an event that says the same.
        Ordering::Equal => Ok(Outcome::Applied),
        Ordering::Greater => {
            subscriptions::set_latest_invoice(conn, row.id, &latest(&invoice)).await?;
            Ok(Outcome::Applied)
        }
    }
}

/// The columns that show an invoice.
pub fn latest(invoice: &Invoice) -> LatestInvoice {
    LatestInvoice {
        latest_invoice_id: Some(invoice.id.clone()),
        latest_invoice_status: invoice.status.map(|status| status.as_str().to_owned()),
        latest_invoice_event_created: Some(invoice.event_created),
        latest_invoice_created: invoice.created,
        latest_invoice_url: invoice.hosted_url.clone(),
        next_payment_attempt: invoice.next_payment_attempt,
    }
}

/// The invoice that a row shows; `None` if no event has written one yet.
pub fn shown(latest: &LatestInvoice) -> Option<Invoice> {
    Some(Invoice {
        id: latest.latest_invoice_id.clone()?,
        status: latest.latest_invoice_status.as_deref().and_then(InvoiceStatus::from_column),
        created: latest.latest_invoice_created,
        event_created: latest.latest_invoice_event_created?,
        hosted_url: latest.latest_invoice_url.clone(),
        next_payment_attempt: latest.next_payment_attempt,
    })
}
