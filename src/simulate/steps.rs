//! What may happen to a subscription between its birth and its end. It only changes a [`Draft`]; the order and the
//! number of the steps are drawn by `life`.

use rand::RngExt;

use super::life::{DAY, Draft};
use super::model::{PLANS, State, What};

impl Draft<'_> {
    /// One thing that may happen to the subscription as it now is.
    pub(super) fn step(&mut self) {
        match self.state.status {
            "paused" => self.resume(),
            "trialing" if self.rng.random_bool(0.4) => self.end_trial(),
            "past_due" | "unpaid" if self.rng.random_bool(0.6) => self.pay_late(),
            _ => self.any_change(),
        }
    }

    fn any_change(&mut self) {
        match self.rng.random_range(0..100) {
            0..22 => self.change_quantity(),
            22..34 => self.change_price(),
            34..42 => self.change_cancellation(),
            42..46 => self.cancel_at_a_date(),
            46..56 => self.change_collection(),
            56..76 => self.renew(),
            76..82 => self.change_payment_method(),
            82..88 => self.change_add_on(),
            88..92 => self.grant_trial(),
            92..96 => self.remind_of_trial(),
            _ => self.undo(),
        }
    }

    fn change_quantity(&mut self) {
        let by = self.rng.random_range(1..9);
        let up = self.rng.random_bool(0.6);
        self.change(|state| {
            let item = &mut state.items[0];
            item.quantity =
                item.quantity.map(|quantity| if up || quantity <= by { quantity + by } else { quantity - by });
        });
    }

    /// Several changes within one second, so that only the former values of all of them tell which was the last.
    pub(super) fn change_in_a_flurry(&mut self) {
        for _ in 0..self.rng.random_range(3..7) {
            if self.rng.random_bool(0.6) { self.change_quantity() } else { self.change_payment_method() }
        }
    }

    fn change_price(&mut self) {
        let price = &PLANS[self.rng.random_range(0..PLANS.len())];
        let seats = self.rng.random_range(1..20);
        self.change(|state| {
            let item = &mut state.items[0];
            item.price = price;
            item.quantity = (!price.is_metered).then(|| item.quantity.unwrap_or(seats));
        });
    }

    fn change_add_on(&mut self) {
        let add_on = self.add_on();
        self.change(|state| {
            if state.items.len() > 1 {
                state.items.truncate(1);
            } else {
                state.items.push(add_on);
            }
        });
    }

    pub(super) fn change_payment_method(&mut self) {
        let method = self.next_id("pm");
        self.change(|state| state.payment_method = Some(method));
    }

    /// To end with the period, or not after all.
    fn change_cancellation(&mut self) {
        let now = self.now;
        self.change(|state| {
            let is_wanted = state.cancel_at.is_none();
            state.cancel_at_period_end = is_wanted;
            state.cancel_at = is_wanted.then_some(state.period.1);
            state.canceled_at = is_wanted.then_some(now);
            state.cancellation_reason = is_wanted.then_some("cancellation_requested");
        });
    }

    fn cancel_at_a_date(&mut self) {
        let (now, at) = (self.now, self.now + self.rng.random_range(9..90) * DAY);
        self.change(|state| {
            state.cancel_at_period_end = false;
            state.cancel_at = Some(at);
            state.canceled_at = Some(now);
            state.cancellation_reason = Some("cancellation_requested");
        });
    }

    fn change_collection(&mut self) {
        let behavior = ["void", "keep_as_draft", "mark_uncollectible"][self.rng.random_range(0..3)];
        self.change(|state| state.pause = if state.pause.is_none() { Some(behavior) } else { None });
    }

    /// The next period begins, and its invoice is paid or not; or the end comes that was asked for.
    fn renew(&mut self) {
        let start = self.state.period.1;
        self.advance_to(start);
        if self.state.cancel_at.is_some_and(|at| at <= self.now) {
            self.end();
            return;
        }
        let (period, invoice) = (self.next_period(start), self.next_invoice());
        self.change(|state| {
            state.period = period;
            state.latest_invoice = invoice;
        });
        self.advance_up_to(2);
        let is_paid = self.rng.random_bool(0.7);
        self.invoice(is_paid);
        if !is_paid && self.state.status == "active" {
            self.change(|state| state.status = "past_due");
        }
    }

    /// Of an invoice that was not paid: more attempts fail, or one succeeds.
    fn pay_late(&mut self) {
        let fails_once_more = self.rng.random_bool(0.3);
        if fails_once_more {
            self.invoice(false);
        }
        if self.rng.random_bool(0.2) {
            self.change(|state| state.status = "unpaid");
            return;
        }
        self.invoice(true);
        self.change(|state| state.status = "active");
    }

    fn grant_trial(&mut self) {
        let trial = (self.now, self.now + 13 * DAY);
        if self.state.status == "active" {
            self.change(|state| {
                state.status = "trialing";
                state.trial = Some(trial);
                state.period = trial;
            });
        }
    }

    fn remind_of_trial(&mut self) {
        if self.state.status == "trialing" {
            self.tell(What::TrialWillEnd);
        }
    }

    fn end_trial(&mut self) {
        let Some((_, end)) = self.state.trial else { return };
        if self.rng.random_bool(0.7) {
            self.advance_to(end - 3 * DAY);
            self.tell(What::TrialWillEnd);
        }
        self.advance_to(end);
        if self.rng.random_bool(0.35) {
            self.change(|state| state.status = "paused");
            self.tell(What::Paused);
            return;
        }
        self.begin_period("active");
        self.invoice(true);
    }

    fn resume(&mut self) {
        self.begin_period("active");
        self.tell(What::Resumed);
        self.invoice(true);
    }

    fn begin_period(&mut self, status: &'static str) {
        let (period, invoice) = (self.next_period(self.now), self.next_invoice());
        self.change(|state| {
            state.status = status;
            state.period = period;
            state.latest_invoice = invoice;
        });
    }

    /// Two changes within one second of which the second undoes the first.
    pub(super) fn undo(&mut self) {
        self.advance_up_to(9);
        self.advance(1);
        let former = self.state.clone();
        let mut changed = former.clone();
        match &mut changed.items[0].quantity {
            Some(quantity) if self.rng.random_bool(0.7) => *quantity += 3,
            _ => changed.pause = if changed.pause.is_none() { Some("void") } else { None },
        }
        self.become_and_tell(changed);
        self.become_and_tell(former);
        self.advance(1);
    }

    /// Deleted; what is owed may still be paid, or not.
    pub(super) fn end(&mut self) {
        let now = self.now;
        let ended = State {
            status: "canceled",
            canceled_at: self.state.canceled_at.or(Some(now)),
            cancellation_reason: self.state.cancellation_reason.or(Some("cancellation_requested")),
            ended_at: Some(now),
            ..self.state.clone()
        };
        self.state = ended;
        self.tell(What::Deleted);
        if self.rng.random_bool(0.3) {
            self.advance_up_to(5);
            let is_paid = self.rng.random_bool(0.5);
            self.invoice(is_paid);
        }
    }
}
