//! What happens to a subscription's invoices and to its customer's features. Like `steps` it only changes a [`Draft`].

use rand::RngExt;

use super::life::{DAY, Draft};
use super::model::{FEATURES, Link, News, What};

impl Draft<'_> {
    /// The latest invoice: it is paid, or its payment fails. One that is paid or void stays so, and nothing more is tried of
    /// one that was given up.
    pub(super) fn settle(&mut self, is_paid: bool) {
        let latest = self.invoices.len() - 1;
        if !matches!((self.invoices[latest].status, is_paid), ("open", _) | ("uncollectible", true)) {
            return;
        }
        if self.is_unheard_of(latest) && self.rng.random_bool(0.7) {
            self.tell_invoice(latest, News::Finalized);
        }
        if is_paid {
            self.pay(latest);
            return;
        }
        self.tell_invoice(latest, News::PaymentFailed);
        if self.rng.random_bool(0.3) {
            self.tell_invoice(latest, News::ActionRequired);
        }
    }

    /// The latest invoice is sent. Whether it is ever paid, perhaps after a newer one, is left open.
    pub(super) fn leave_open(&mut self) {
        let latest = self.invoices.len() - 1;
        if self.is_unheard_of(latest) {
            self.tell_invoice(latest, News::Finalized);
        }
    }

    fn is_unheard_of(&self, at: usize) -> bool {
        !self.life.occurrences.iter().any(|it| is_of(&it.what, &self.invoices[at].id))
    }

    fn pay(&mut self, at: usize) {
        // Stripe sends both; an endpoint may have asked for one of them alone.
        match self.rng.random_range(0..3) {
            0 => self.tell_invoice(at, News::Paid),
            1 => self.tell_invoice(at, News::PaymentSucceeded),
            _ => {
                self.tell_invoice(at, News::Paid);
                self.tell_invoice(at, News::PaymentSucceeded);
            }
        }
    }

    /// Of an invoice that is not settled, and that is not the latest if there is a choice: paid, void or given up.
    pub(super) fn settle_an_older_invoice(&mut self) {
        let unsettled = |at: &usize| matches!(self.invoices[*at].status, "open" | "uncollectible");
        let mut unsettled: Vec<_> = (0..self.invoices.len()).filter(unsettled).collect();
        if unsettled.len() > 1 {
            unsettled.retain(|at| at + 1 < self.invoices.len());
        }
        let Some(&at) = unsettled.get(self.rng.random_range(0..unsettled.len().max(1))) else { return };
        match self.rng.random_range(0..3) {
            0 if self.invoices[at].status == "open" => self.tell_invoice(at, News::Uncollectible),
            1 => self.tell_invoice(at, News::Voided),
            _ => self.pay(at),
        }
    }

    /// Within one second an invoice's events say ever greater words, as they do at Stripe: where one would not, a second
    /// passes first.
    fn tell_invoice(&mut self, at: usize, news: News) {
        let id = &self.invoices[at].id;
        let is_late = self.life.occurrences.iter().any(|told| {
            matches!(&told.what, What::Invoice { invoice, news: former }
                if invoice.id == *id && told.created == self.now && *former >= news)
        });
        self.advance(is_late.into());
        let now = self.now;
        let invoice = &mut self.invoices[at];
        (invoice.status, invoice.next_payment_attempt) = match news {
            News::Finalized | News::ActionRequired => (invoice.status, invoice.next_payment_attempt),
            News::PaymentFailed => (invoice.status, Some(now + 3 * DAY)),
            News::Uncollectible => ("uncollectible", None),
            News::Paid | News::PaymentSucceeded => ("paid", None),
            News::Voided => ("void", None),
        };
        let invoice = invoice.clone();
        self.tell(What::Invoice { invoice, news });
    }

    /// Any number of features, none and more than an event lists among them; sometimes twice within a second.
    pub(super) fn change_features(&mut self) {
        // Nothing links a customer whose subscription names the account itself.
        if self.life.account.link == Link::MetadataDuring {
            return;
        }
        self.advance_up_to(1);
        for _ in 0..self.rng.random_range(1..3) {
            let share = [0.2, 0.5, 0.97][self.rng.random_range(0..3)];
            let features = FEATURES.into_iter().filter(|_| self.rng.random_bool(share)).collect();
            self.tell_features(features);
        }
    }

    pub(super) fn tell_features(&mut self, features: Vec<&'static str>) {
        self.features.clone_from(&features);
        self.tell(What::Features(features));
    }
}

fn is_of(what: &What, invoice_id: &str) -> bool {
    matches!(what, What::Invoice { invoice, .. } if invoice.id == invoice_id)
}
