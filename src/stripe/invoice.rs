//! An invoice event, as far as it concerns subscriptions.
//!
//! Source: <https://docs.stripe.com/api/invoices/object>.

use super::{Event, Kind};

/// What an invoice event says of the invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InvoiceStatus {
    /// `invoice.payment_failed`. Comes before paid: a failed payment can be made good, a paid invoice stays paid.
    PaymentFailed,
    /// `invoice.paid`.
    Paid,
}

impl InvoiceStatus {
    /// The word of the column `latest_invoice_status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PaymentFailed => "payment_failed",
            Self::Paid => "paid",
        }
    }

    /// Reads the column's word.
    pub fn from_column(word: &str) -> Option<Self> {
        [Self::PaymentFailed, Self::Paid].into_iter().find(|status| status.as_str() == word)
    }
}

/// An invoice that was paid, or whose payment failed.
#[derive(Debug)]
pub struct Invoice<'a> {
    /// `in_…`.
    pub id: &'a str,
    /// What became of it.
    pub status: InvoiceStatus,
}

impl<'a> Invoice<'a> {
    /// Reads an invoice event; `None` for every other.
    pub fn read(event: &'a Event) -> Option<Self> {
        let status = match event.kind {
            Kind::InvoicePaid => InvoiceStatus::Paid,
            Kind::InvoicePaymentFailed => InvoiceStatus::PaymentFailed,
            _ => return None,
        };
        event.object().id.as_deref().map(|id| Self { id, status })
    }
}
