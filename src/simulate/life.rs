//! Draws whole lives of subscriptions, the same for the same seed. What a life says, it says in states; how Stripe
//! writes them down is not known here.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::ids::Ids;
use super::model::{
    ADD_ONS, Account, CONNECTED_ACCOUNT, Invoice, Item, Life, Link, MEMBERS, Occurrence, PLANS, Price, Shape, State,
    Thin, What, YEARLY_ADD_ON,
};

pub(super) const DAY: i64 = 86_400;
const MONTH: i64 = 30 * DAY;

/// The first second in which a life may begin: 2025-01-01.
const FIRST_BIRTH: i64 = 1_735_689_600;

/// Every life of `customers` customers; some come back after their subscription ended.
pub(super) fn lives(seed: u64, customers: usize, ids: &Ids) -> Vec<Life> {
    (0..customers).flat_map(|number| with_take_over(lives_of_one(seed, number, ids))).collect()
}

/// The statuses in which a subscription takes over its account's local row: `ENTITLED_STATUSES` as it is by default.
const ENTITLED: [&str; 3] = ["active", "trialing", "past_due"];

/// The lives of one account with what becomes of its local row.
fn with_take_over(mut lives: Vec<Life>) -> Vec<Life> {
    let shows_entitled = |occurrence: &Occurrence| {
        occurrence.what.shows_the_subscription() && ENTITLED.contains(&occurrence.state.status)
    };
    let is_taken_over = lives.iter().any(|life| life.occurrences.iter().any(shows_entitled));
    let born = lives.iter().filter_map(|life| life.occurrences.first()).map(|first| first.created).min();
    for life in &mut lives {
        life.account.is_local_row_taken = is_taken_over;
        life.account.local_row_since = born.unwrap_or_default();
    }
    lives
}

fn lives_of_one(seed: u64, number: usize, ids: &Ids) -> Vec<Life> {
    let mut rng = StdRng::seed_from_u64(seed.rotate_left(32) ^ number as u64);
    let account = account(&mut rng, number, ids);
    let born = FIRST_BIRTH + rng.random_range(0..200 * DAY);
    // What a connected account's checkout or metadata name does not count: its customer has to be linked otherwise.
    let connect_account = (account.link == Link::PatchedDuring && rng.random_bool(0.5)).then_some(CONNECTED_ACCOUNT);
    let mut first = Draft::new(rng, ids, 2 * number, account.customer_id.clone(), account.clone(), born);
    first.life.connect_account = connect_account;
    first.live();
    let Draft { life, now, mut rng, .. } = first;
    let is_deleted = life.occurrences.iter().any(|occurrence| occurrence.what == What::Deleted);
    if !is_deleted || rng.random_bool(0.5) {
        return vec![life];
    }
    // Checkout makes a new customer unless it is told one.
    let is_new_customer = account.link.is_named_by_checkout() && rng.random_bool(0.5);
    let customer = if is_new_customer { ids.of("cus", 2 * number, 1) } else { account.customer_id.clone() };
    let mut second = Draft::new(rng, ids, 2 * number + 1, customer, account, now + 9 * DAY);
    second.life.connect_account = connect_account;
    second.live();
    vec![life, second.life]
}

fn account(rng: &mut StdRng, number: usize, ids: &Ids) -> Account {
    let link = match rng.random_range(0..100) {
        0..25 => Link::CustomerBefore,
        25..40 => Link::CustomerDuring,
        40..50 => Link::PatchedDuring,
        50..70 => Link::CheckoutBefore,
        70..90 => Link::CheckoutDuring,
        _ => Link::MetadataDuring,
    };
    let has_trial = link.has_account_before() && rng.random_bool(0.3);
    Account {
        id: ids.account(number),
        customer_id: ids.of("cus", 2 * number, 0),
        link,
        local_plan: has_trial.then_some("given_trial"),
        is_local_row_taken: false,
        local_row_since: 0,
    }
}

/// A life in the making.
pub(super) struct Draft<'a> {
    pub(super) rng: StdRng,
    ids: &'a Ids,
    number: usize,
    pub(super) life: Life,
    pub(super) now: i64,
    pub(super) state: State,
    /// What the subscription looked like at the start of this second, and after each change in it.
    seen: Vec<State>,
    /// All that were made, the latest last.
    pub(super) invoices: Vec<Invoice>,
    /// The customer's features.
    pub(super) features: Vec<&'static str>,
}

impl<'a> Draft<'a> {
    fn new(mut rng: StdRng, ids: &'a Ids, number: usize, customer_id: String, account: Account, born: i64) -> Self {
        let price = &PLANS[rng.random_range(0..PLANS.len())];
        let quantity = (!price.is_metered).then(|| rng.random_range(1..20));
        let item = Item { id: ids.of("si", number, 0), created: born, price, quantity, period: None, trial: None };
        let state = State {
            status: "incomplete",
            items: vec![item],
            period: (born, born + MONTH),
            cancel_at_period_end: false,
            cancel_at: None,
            canceled_at: None,
            cancellation_reason: None,
            cancellation_feedback: None,
            ended_at: None,
            trial: None,
            pause: None,
            latest_invoice: String::new(),
            payment_method: None,
            note: None,
        };
        let life = Life {
            subscription_id: ids.of("sub", number, 0),
            customer_id,
            shape: [Shape::Classic, Shape::Basil, Shape::Endive, Shape::Endive][rng.random_range(0..4)],
            connect_account: None,
            account,
            occurrences: Vec::new(),
            is_for_stripe_to_decide: false,
        };
        let (seen, invoices, features) = (Vec::new(), Vec::new(), Vec::new());
        let mut draft = Self { rng, ids, number, life, now: born, state, seen, invoices, features };
        draft.state.latest_invoice = draft.bill();
        draft
    }

    fn live(&mut self) {
        // Some have only just begun, all within one second.
        let is_young = self.rng.random_bool(0.1);
        self.be_born(if is_young { 0 } else { 1 });
        if self.state.status == "incomplete" {
            self.expire();
            return;
        }
        let steps = if is_young { 0 } else { self.rng.random_range(3..14) };
        for _ in 0..steps {
            self.pass_time();
            self.step();
            if self.state.ended_at.is_some() {
                return;
            }
        }
        // Nothing is left to the checkout: its fetched state counts as of a second that a later event has, too.
        self.change_payment_method();
        if !is_young {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.pass_time();
        match self.rng.random_range(0..100) {
            0..28 => self.end(),
            28..36 => {
                self.undo();
                self.life.is_for_stripe_to_decide = true;
            }
            36..56 => self.change_in_a_flurry(),
            _ => {}
        }
    }

    /// Born, paid for and bought, with at most `pause` seconds from one to the next.
    fn be_born(&mut self, pause: i64) {
        if self.rng.random_bool(0.3) {
            let end = self.now + 14 * DAY;
            self.state.status = "trialing";
            self.state.trial = Some((self.now, end));
            self.state.period = (self.now, end);
        }
        self.tell(What::Created);
        self.advance_up_to(pause);
        if self.rng.random_bool(0.04) && self.state.status == "incomplete" {
            self.tell_checkout();
            return;
        }
        self.settle(true);
        let method = self.ids.of("pm", self.number, 0);
        self.change(|state| {
            if state.status == "incomplete" {
                state.status = "active";
            }
            state.payment_method = Some(method);
        });
        self.advance_up_to(pause);
        self.tell_checkout();
    }

    fn tell_checkout(&mut self) {
        if self.life.account.link.has_checkout() {
            self.tell(What::Checkout);
        }
        if self.rng.random_bool(0.5) {
            self.change_features();
        }
    }

    /// Nobody pays the first invoice.
    fn expire(&mut self) {
        self.advance(DAY);
        self.settle(false);
        let now = self.now;
        self.change(|state| {
            state.status = "incomplete_expired";
            state.ended_at = Some(now);
        });
    }

    /// Changes the subscription and tells of it. Within one second no value comes back, so that the former values of
    /// each change still name the one before: where one would, a second passes first.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut State)) {
        let mut next = self.state.clone();
        change(&mut next);
        if self.comes_back(&next) {
            self.advance(1);
        }
        self.become_and_tell(next);
    }

    fn comes_back(&self, next: &State) -> bool {
        let is_changed = |is_same: &&fn(&State, &State) -> bool| !is_same(&self.state, next);
        MEMBERS.iter().filter(is_changed).any(|is_same| self.seen.iter().any(|seen| is_same(seen, next)))
    }

    /// The same without that care.
    pub(super) fn become_and_tell(&mut self, next: State) {
        if next != self.state {
            self.state = next;
            self.tell(What::Updated);
        }
    }

    pub(super) fn tell(&mut self, what: What) {
        let event_id = self.ids.of("evt", self.number, self.life.occurrences.len());
        let thin = match self.rng.random_range(0..3) {
            0 => Thin::NamesSnapshot,
            // A summary of features has no id by which it could be read.
            1 if !matches!(what, What::Features(_)) => Thin::ObjectOnly,
            _ => Thin::FindsSnapshot,
        };
        let occurrence = Occurrence { event_id, what, created: self.now, state: self.state.clone(), thin };
        self.life.occurrences.push(occurrence);
        self.seen.push(self.state.clone());
    }

    /// Makes an invoice, which is the latest from now on, and returns its id.
    pub(super) fn bill(&mut self) -> String {
        let id = self.ids.of("in", self.number, self.invoices.len());
        let invoice = Invoice { id: id.clone(), created: self.now, status: "open", next_payment_attempt: None };
        self.invoices.push(invoice);
        id
    }

    /// An id that nothing else of this life has.
    pub(super) fn next_id(&self, kind: &str) -> String {
        self.ids.of(kind, self.number, self.life.occurrences.len())
    }

    /// Half of the time none at all.
    fn pass_time(&mut self) {
        match self.rng.random_range(0..100) {
            0..50 => {}
            50..65 => self.advance_up_to(3),
            _ => {
                let seconds = self.rng.random_range(60..6 * DAY);
                self.advance(seconds);
            }
        }
    }

    pub(super) fn advance_up_to(&mut self, seconds: i64) {
        let seconds = self.rng.random_range(0..=seconds);
        self.advance(seconds);
    }

    pub(super) fn advance(&mut self, seconds: i64) {
        if seconds > 0 {
            self.now += seconds;
            self.seen = vec![self.state.clone()];
        }
    }

    /// At least one second.
    pub(super) fn advance_to(&mut self, time: i64) {
        self.advance((time - self.now).max(1));
    }

    pub(super) fn next_period(&self, start: i64) -> (i64, i64) {
        (start, start + MONTH)
    }

    pub(super) fn add_on(&mut self) -> Item {
        let is_yearly = self.life.shape == Shape::Endive && self.rng.random_bool(0.4);
        let price: &'static Price =
            if is_yearly { &YEARLY_ADD_ON } else { &ADD_ONS[self.rng.random_range(0..ADD_ONS.len())] };
        let period = is_yearly.then_some((self.now, self.now + 365 * DAY));
        let quantity = Some(self.rng.random_range(1..4));
        Item { id: self.next_id("si"), created: self.now, price, quantity, period, trial: None }
    }
}
