//! What may happen to a subscription between its birth and its end. It only changes a [`Draft`]; the order and the
//! number of the steps are drawn by `life`.

use rand::RngExt;

use super::life::{DAY, Draft};
use super::model::{Item, PLANS, Shape, State, What};

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
            0..14 => self.change_quantity(),
            14..22 => self.change_price(),
            22..30 => self.change_cancellation(),
            30..34 => self.cancel_at_a_date(),
            34..38 => self.change_collection(),
            38..56 => self.renew(),
            56..60 => self.change_payment_method(),
            60..68 => self.change_add_ons(),
            68..72 => self.settle_an_older_invoice(),
            72..75 => self.grant_trial(),
            75..79 => self.change_item_trial(),
            79..82 => self.remind_of_trial(),
            82..86 => self.change_note(),
            86..91 => self.change_features(),
            91..97 => self.settle_an_older_invoice(),
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

    /// An add-on comes, goes, or changes its quantity; what is added is billed.
    fn change_add_ons(&mut self) {
        let add_on = self.add_on();
        let (count, at) = (self.state.items.len(), self.rng.random_range(0..self.state.items.len()));
        match self.rng.random_range(0..3) {
            0 if at > 0 => self.change(|state| drop(state.items.remove(at))),
            1 if at > 0 => self.change(|state| {
                let item = &mut state.items[at];
                item.quantity = item.quantity.map(|quantity| quantity + 1);
            }),
            _ if count < 4 => {
                let invoice = self.bill();
                self.change(|state| {
                    state.items.push(add_on);
                    state.latest_invoice = invoice;
                });
                self.advance_up_to(1);
                let is_paid = self.rng.random_bool(0.8);
                self.settle(is_paid);
            }
            _ => {}
        }
    }

    /// A trial of one item, whose subscription goes on as it was.
    fn change_item_trial(&mut self) {
        if self.life.shape != Shape::Endive {
            return;
        }
        let (trial, at) = ((self.now, self.now + 14 * DAY), self.rng.random_range(0..self.state.items.len()));
        self.change(|state| {
            let Item { trial: former, .. } = &mut state.items[at];
            *former = if former.is_none() { Some(trial) } else { None };
        });
    }

    /// A note comes, is replaced, or goes.
    fn change_note(&mut self) {
        let (note, is_kept) = (self.next_id("note"), self.rng.random_bool(0.7));
        self.change(|state| state.note = is_kept.then_some(note));
    }

    pub(super) fn change_payment_method(&mut self) {
        let method = self.next_id("pm");
        self.change(|state| state.payment_method = Some(method));
    }

    /// To end with the period, or not after all. With flexible billing that is a date like any other.
    fn change_cancellation(&mut self) {
        if self.state.is_scheduled_to_end() {
            self.change(|state| {
                state.cancel_at_period_end = false;
                state.cancel_at = None;
                state.canceled_at = None;
                state.cancellation_reason = None;
                state.cancellation_feedback = None;
            });
        } else {
            self.schedule_the_end(self.life.shape != Shape::Endive, self.state.period.1);
        }
    }

    fn cancel_at_a_date(&mut self) {
        let at = self.now + self.rng.random_range(9..90) * DAY;
        self.schedule_the_end(false, at);
    }

    fn schedule_the_end(&mut self, is_with_period: bool, at: i64) {
        let (now, feedback) = (self.now, self.feedback());
        // Before it was made for both, `cancel_at` was for other days than the period's end.
        let is_bare = is_with_period && self.life.shape == Shape::Classic && self.rng.random_bool(0.3);
        self.change(|state| {
            state.cancel_at_period_end = is_with_period;
            state.cancel_at = (!is_bare).then_some(at);
            state.canceled_at = Some(now);
            state.cancellation_reason = Some("cancellation_requested");
            state.cancellation_feedback = feedback;
        });
    }

    fn feedback(&mut self) -> Option<&'static str> {
        [None, Some("too_expensive"), Some("unused"), Some("missing_features")][self.rng.random_range(0..4)]
    }

    fn change_collection(&mut self) {
        let behavior = ["void", "keep_as_draft", "mark_uncollectible"][self.rng.random_range(0..3)];
        self.change(|state| state.pause = if state.pause.is_none() { Some(behavior) } else { None });
    }

    /// The next period begins, and its invoice is paid or not; or the end comes that was asked for.
    fn renew(&mut self) {
        let start = self.state.period.1;
        self.advance_to(start);
        if self.state.cancel_at_period_end || self.state.cancel_at.is_some_and(|at| at <= self.now) {
            self.end();
            return;
        }
        let (period, invoice) = (self.next_period(start), self.bill());
        self.change(|state| {
            state.period = period;
            state.latest_invoice = invoice;
        });
        self.advance_up_to(2);
        if self.rng.random_bool(0.3) {
            self.leave_open();
            return;
        }
        let is_paid = self.rng.random_bool(0.7);
        self.settle(is_paid);
        if !is_paid && self.state.status == "active" {
            self.change(|state| state.status = "past_due");
        }
    }

    /// Of an invoice that was not paid: more attempts fail, or one succeeds, or it is given up.
    fn pay_late(&mut self) {
        let fails_once_more = self.rng.random_bool(0.3);
        if fails_once_more {
            self.settle(false);
        }
        if self.rng.random_bool(0.2) {
            self.change(|state| state.status = "unpaid");
            return;
        }
        self.settle(true);
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
        self.settle(true);
    }

    fn resume(&mut self) {
        self.begin_period("active");
        self.tell(What::Resumed);
        self.settle(true);
    }

    fn begin_period(&mut self, status: &'static str) {
        let (period, invoice) = (self.next_period(self.now), self.bill());
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

    /// Deleted, with the customer's features; what is owed may still be paid, or not.
    pub(super) fn end(&mut self) {
        let now = self.now;
        let reason = if matches!(self.state.status, "past_due" | "unpaid") {
            "payment_failed"
        } else {
            "cancellation_requested"
        };
        let ended = State {
            status: "canceled",
            canceled_at: self.state.canceled_at.or(Some(now)),
            cancellation_reason: self.state.cancellation_reason.or(Some(reason)),
            ended_at: Some(now),
            ..self.state.clone()
        };
        self.state = ended;
        self.tell(What::Deleted);
        if !self.features.is_empty() {
            self.tell_features(Vec::new());
        }
        if self.rng.random_bool(0.7) {
            self.advance_up_to(5);
            self.settle_an_older_invoice();
        }
    }
}
