//! An invoice event: what is latest of the subscription's invoices, and never its status.

use super::{Handled, HandlerError, Outcome, Work};
use crate::db::parked::Awaited;
use crate::db::subscriptions::LatestInvoice;
use crate::stripe::{Event, Invoice, InvoiceStatus};

/// Writes the invoice onto its subscription's row, unless a later one is there; parked until there is a row.
pub(super) fn apply(work: &mut Work, event: &Event) -> Result<Handled, HandlerError> {
    let created = event.created.ok_or(HandlerError::NoCreated)?;
    let (Some(subscription_id), Some(invoice)) = (&event.subscription_id, Invoice::read(event, created)) else {
        return Ok(Handled::new(Outcome::Ignored, None));
    };
    let Some(mut row) = work.row(subscription_id).cloned() else {
        // Another transaction may make the row before this one commits, and look for parked events too early.
        let releases = vec![Awaited::Subscription(subscription_id.clone())];
        return Ok(Handled { releases, ..Handled::new(Outcome::Parked, None) });
    };
    let account_id = Some(row.account_id);
    if stored(&row.latest_invoice).is_some_and(|stored| stored.compare(&invoice).is_ge()) {
        return Ok(Handled::new(Outcome::Stale, account_id));
    }
    row.latest_invoice = columns(invoice);
    work.put(row, Some(&event.id));
    Ok(Handled::new(Outcome::Applied, account_id))
}

fn columns(invoice: Invoice) -> LatestInvoice {
    LatestInvoice {
        latest_invoice_created: Some(invoice.created.unwrap_or(invoice.event_created)),
        latest_invoice_event_created: Some(invoice.event_created),
        latest_invoice_status: invoice.status.map(|status| status.as_str().to_owned()),
        latest_invoice_url: invoice.hosted_url,
        next_payment_attempt: invoice.next_payment_attempt,
        latest_invoice_id: Some(invoice.id),
    }
}

fn stored(latest: &LatestInvoice) -> Option<Invoice> {
    Some(Invoice {
        id: latest.latest_invoice_id.clone()?,
        status: latest.latest_invoice_status.as_deref().and_then(InvoiceStatus::from_column),
        created: latest.latest_invoice_created,
        event_created: latest.latest_invoice_event_created?,
        hosted_url: latest.latest_invoice_url.clone(),
        next_payment_attempt: latest.next_payment_attempt,
    })
}
