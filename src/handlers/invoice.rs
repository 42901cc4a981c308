//! An invoice event: what is latest of the subscription's invoices, and never its status.

use std::cmp::Ordering;

use super::account::link_second_customer;
use super::{Context, Handled, HandlerError, Outcome, Work};
use crate::db::Conn;
use crate::db::parked::Awaited;
use crate::db::subscriptions::LatestInvoice;
use crate::stripe::{Event, Invoice, InvoiceStatus};

/// Writes the invoice onto its subscription's row, unless a later one is there; parked until there is a row.
pub(super) async fn apply(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
) -> Result<Handled, HandlerError> {
    let mut notes = Vec::new();
    link_second_customer(conn, ctx, event, work.facts(event)?, &mut notes).await?;
    Ok(Handled { notes, ..show(work, event)? })
}

fn show(work: &mut Work, event: &Event) -> Result<Handled, HandlerError> {
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
    match shown(&row.latest_invoice).map_or(Ordering::Greater, |shown| invoice.compare(&shown)) {
        Ordering::Less => Ok(Handled::new(Outcome::Stale, account_id)),
        // The row shows this very state, by an event that says the same.
        Ordering::Equal => Ok(Handled::new(Outcome::Applied, account_id)),
        Ordering::Greater => {
            row.latest_invoice = latest(&invoice);
            row.updated_at = work.facts(event)?.now;
            work.put(row, Some(&event.id));
            Ok(Handled::new(Outcome::Applied, account_id))
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
