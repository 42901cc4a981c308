//! An invoice event, as far as it concerns subscriptions: which of two states is shown. Pure.
//!
//! Sources: <https://docs.stripe.com/api/invoices/object>,
//! <https://docs.stripe.com/invoicing/overview#invoice-statuses>.

use std::cmp::Ordering;

use chrono::{DateTime, Utc};

use super::{Event, Kind};

/// What the newest event of an invoice says of it. Within one second the greater word counts: a failed payment can be
/// made good, and what is paid or void stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InvoiceStatus {
    /// `invoice.finalized`.
    Open,
    /// `invoice.payment_failed`.
    PaymentFailed,
    /// `invoice.payment_action_required`: the customer has to confirm the payment.
    ActionRequired,
    /// `invoice.marked_uncollectible`.
    Uncollectible,
    /// `invoice.paid` and `invoice.payment_succeeded`.
    Paid,
    /// `invoice.voided`.
    Void,
}

impl InvoiceStatus {
    /// Every word, the smallest first.
    pub const ALL: [Self; 6] =
        [Self::Open, Self::PaymentFailed, Self::ActionRequired, Self::Uncollectible, Self::Paid, Self::Void];

    /// The word of the column `latest_invoice_status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::PaymentFailed => "payment_failed",
            Self::ActionRequired => "action_required",
            Self::Uncollectible => "uncollectible",
            Self::Paid => "paid",
            Self::Void => "void",
        }
    }

    /// Reads the column's word.
    pub fn from_column(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// The status that an event of this type gives an invoice; `None` for a type that is not handled.
    pub fn of_event_type(event_type: &str) -> Option<Self> {
        Some(match event_type {
            "invoice.finalized" => Self::Open,
            "invoice.payment_failed" => Self::PaymentFailed,
            "invoice.payment_action_required" => Self::ActionRequired,
            "invoice.marked_uncollectible" => Self::Uncollectible,
            "invoice.paid" | "invoice.payment_succeeded" => Self::Paid,
            "invoice.voided" => Self::Void,
            _ => return None,
        })
    }

    /// The status of an invoice that was fetched because of an event whose type gives `by_type`. Stripe's own word
    /// counts; the type does while the invoice is open, and where the word is not known.
    #[must_use]
    pub fn of_fetched(stripes_status: Option<&str>, by_type: Self) -> Self {
        match stripes_status {
            Some("paid") => Self::Paid,
            Some("void") => Self::Void,
            Some("uncollectible") => Self::Uncollectible,
            _ => by_type,
        }
    }
}

/// The state of an invoice, as an event shows it or as a row has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoice {
    /// `in_…`.
    pub id: String,
    /// What became of it; `None` for a word that a row has and this version does not know.
    pub status: Option<InvoiceStatus>,
    /// When Stripe made the invoice.
    pub created: Option<DateTime<Utc>>,
    /// Stripe's time of the event that shows the state.
    pub event_created: DateTime<Utc>,
    /// The hosted page, where it can be paid.
    pub hosted_url: Option<String>,
    /// When Stripe tries again to collect it.
    pub next_payment_attempt: Option<DateTime<Utc>>,
}

impl Invoice {
    /// Reads an invoice event of this time; `None` for every other event.
    pub fn read(event: &Event, event_created: DateTime<Utc>) -> Option<Self> {
        let Kind::Invoice(status) = event.kind else {
            return None;
        };
        let object = event.object();
        Some(Self {
            id: object.id.clone()?,
            status: Some(status),
            created: object.created.or(object.date),
            event_created,
            hosted_url: object.hosted_invoice_url.clone(),
            next_payment_attempt: object.next_payment_attempt,
        })
    }

    /// How this state relates to `other`; the greater one is shown.
    ///
    /// Of two invoices, the one that was made later (by its own `created`, else by the event's) is the latest, then
    /// the one with the larger id, compared as bytes. Of one invoice, the later event counts; within a second, the
    /// greater word. Two states that are equal in all of that are ordered by what else they show, so that every order
    /// of arrival ends in the same row.
    pub fn compare(&self, other: &Self) -> Ordering {
        if self.id == other.id {
            return self.version().cmp(&other.version());
        }
        let made = |invoice: &Self| invoice.created.unwrap_or(invoice.event_created);
        made(self).cmp(&made(other)).then_with(|| self.id.as_bytes().cmp(other.id.as_bytes()))
    }

    fn version(&self) -> impl Ord + '_ {
        (self.event_created, self.status, self.next_payment_attempt, &self.hosted_url, self.created)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn invoice(id: &str, created: Option<i64>, event_created: i64, status: InvoiceStatus) -> Invoice {
        Invoice {
            id: id.to_owned(),
            status: Some(status),
            created: created.map(at),
            event_created: at(event_created),
            hosted_url: None,
            next_payment_attempt: None,
        }
    }

    /// The state that is shown once `states` have come in this order.
    fn shown(states: &[Invoice]) -> Option<&Invoice> {
        let newer = |shown, next: &Invoice| next.compare(shown) == Ordering::Greater;
        states.iter().reduce(|shown, next| if newer(shown, next) { next } else { shown })
    }

    #[test]
    fn the_latest_invoice_is_the_one_that_was_made_last() {
        use InvoiceStatus::{Open, Paid, PaymentFailed, Void};
        let january = invoice("in_z", Some(100), 900, Void);
        let february = invoice("in_a", Some(200), 300, Open);
        assert_eq!(shown(&[january.clone(), february.clone()]), Some(&february), "whenever its events came");
        let twin = invoice("in_b", Some(200), 250, Open);
        assert_eq!(shown(&[twin.clone(), february.clone()]), Some(&twin), "of one second, the larger id");
        let upper = invoice("in_B", Some(200), 999, Open);
        assert_eq!(shown(&[upper, twin.clone()]), Some(&twin), "compared as bytes");
        let timeless = invoice("in_c", None, 201, Open);
        assert_eq!(shown(&[timeless.clone(), twin]), Some(&timeless), "without a time of its own, the event's");
        let (failed, paid) = (invoice("in_a", Some(200), 300, PaymentFailed), invoice("in_a", Some(200), 300, Paid));
        assert_eq!(shown(&[paid.clone(), failed.clone(), february]), Some(&paid), "of one second, the word");
        let late_failure = Invoice { event_created: at(301), ..failed };
        assert_eq!(shown(&[late_failure.clone(), paid]), Some(&late_failure), "of two seconds, the later");
    }

    #[test]
    fn every_type_gives_its_word_and_the_words_are_read_back() {
        for (event_type, word) in [
            ("invoice.finalized", "open"),
            ("invoice.payment_failed", "payment_failed"),
            ("invoice.payment_action_required", "action_required"),
            ("invoice.marked_uncollectible", "uncollectible"),
            ("invoice.paid", "paid"),
            ("invoice.payment_succeeded", "paid"),
            ("invoice.voided", "void"),
        ] {
            let status = InvoiceStatus::of_event_type(event_type).unwrap();
            assert_eq!((status.as_str(), InvoiceStatus::from_column(word)), (word, Some(status)));
        }
        for none in ["invoice.upcoming", "invoice.created", "invoice.updated", "invoice.deleted", "invoice"] {
            assert_eq!(InvoiceStatus::of_event_type(none), None, "{none}");
        }
        assert!(InvoiceStatus::ALL.is_sorted());
    }

    #[test]
    fn a_fetched_invoice_has_stripes_own_word_once_it_is_no_longer_open() {
        let fetched = |word| InvoiceStatus::of_fetched(word, InvoiceStatus::ActionRequired);
        assert_eq!(fetched(Some("open")), InvoiceStatus::ActionRequired);
        assert_eq!(fetched(None), InvoiceStatus::ActionRequired);
        assert_eq!(fetched(Some("paid")), InvoiceStatus::Paid);
        assert_eq!(fetched(Some("void")), InvoiceStatus::Void);
        assert_eq!(fetched(Some("uncollectible")), InvoiceStatus::Uncollectible);
    }

    prop_compose! {
        fn any_state()(
            id in 0..3_usize, event_created in 10..13_i64, status in 0..6_usize, attempt in proptest::option::of(0..2_i64),
            url in proptest::option::of("[ab]"),
        ) -> Invoice {
            // One has no time of its own, and two are of one second.
            let (id, created) = [("in_a", Some(11)), ("in_b", Some(11)), ("in_c", None)][id];
            let next_payment_attempt = attempt.map(at);
            Invoice {
                next_payment_attempt, hosted_url: url,
                ..invoice(id, created, event_created, InvoiceStatus::ALL[status])
            }
        }
    }

    proptest! {
        #[test]
        fn every_order_of_arrival_ends_in_the_same_state(
            (states, shuffled) in proptest::collection::vec(any_state(), 1..8)
                .prop_flat_map(|states| (Just(states.clone()), Just(states).prop_shuffle()))
        ) {
            prop_assert_eq!(shown(&states), shown(&shuffled));
        }

        #[test]
        fn the_order_is_total(a in any_state(), b in any_state(), c in any_state()) {
            prop_assert_eq!(a.compare(&b), b.compare(&a).reverse());
            prop_assert_eq!(a.compare(&b) == Ordering::Equal, a == b);
            if a.compare(&b).is_le() && b.compare(&c).is_le() {
                prop_assert!(a.compare(&c).is_le());
            }
        }
    }
}
