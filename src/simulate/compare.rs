//! Compares what the tables show with the truth. It reads; it writes nothing and asks the service nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Debug, Display};

use diesel::QueryResult;

use super::model::Life;
use super::truth::{Truth, time};
use crate::db::subscriptions::Row;
use crate::db::{Conn, events, subscriptions};
use crate::handlers::Outcome;

/// What stands for the outcome of an event that is not recorded.
const LOST: &str = "lost";

/// The field of a difference in an event's outcome.
const OUTCOME: &str = "outcome";

/// Ids that one query asks for.
const BATCH: usize = 500;

/// A place where the tables do not show the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// The subscription's or the event's id.
    of: String,
    field: &'static str,
    expected: String,
    found: String,
}

impl Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.of, self.field, self.expected, self.found)
    }
}

/// What was compared, and how it came out.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) differences: Vec<Difference>,
    pub(super) subscriptions: usize,
    /// Subscriptions whose state only a fetch can decide, and that were left out.
    pub(super) left_out: usize,
    /// Recorded events, by outcome.
    pub(super) outcomes: BTreeMap<String, usize>,
}

impl Comparison {
    /// Whether nothing of what was sent is there.
    pub(super) fn is_all_lost(&self) -> bool {
        self.outcomes.keys().all(|outcome| outcome == LOST)
    }

    /// Whether an event is parked that should have been applied.
    pub(super) fn leaves_parked(&self) -> bool {
        let parked = Outcome::Parked.as_str();
        self.differences.iter().any(|difference| difference.field == OUTCOME && difference.found == parked)
    }
}

/// Compares all lives. `can_fetch` is whether the server can ask Stripe.
///
/// # Errors
/// Where the database does not answer.
pub(super) async fn compare(conn: &mut Conn, lives: &[Life], can_fetch: bool) -> QueryResult<Comparison> {
    let mut comparison = Comparison { subscriptions: lives.len(), ..Comparison::default() };
    for lives in lives.chunks(BATCH) {
        compare_rows(conn, lives, can_fetch, &mut comparison).await?;
    }
    let event_ids: Vec<_> = lives.iter().flat_map(|life| &life.occurrences).map(|it| it.event_id.as_str()).collect();
    for event_ids in event_ids.chunks(BATCH) {
        compare_events(conn, event_ids, &mut comparison).await?;
    }
    Ok(comparison)
}

async fn compare_rows(
    conn: &mut Conn,
    lives: &[Life],
    can_fetch: bool,
    comparison: &mut Comparison,
) -> QueryResult<()> {
    let ids: Vec<_> = lives.iter().map(|life| life.subscription_id.as_str()).collect();
    let accounts: Vec<_> = lives.iter().map(|life| life.account.id).collect();
    let mut rows: HashMap<String, Vec<Row>> = HashMap::new();
    for row in subscriptions::of_subscriptions_or_accounts(conn, &ids, &accounts).await? {
        rows.entry(row.stripe_subscription_id.clone().unwrap_or_default()).or_default().push(row);
    }
    for life in lives {
        let Some(truth) = Truth::of(life) else { continue };
        let found = rows.remove(&life.subscription_id).unwrap_or_default();
        let is_left_out = life.is_for_stripe_to_decide && !can_fetch;
        comparison.left_out += usize::from(is_left_out);
        let mut fields = Fields { of: &life.subscription_id, differences: &mut comparison.differences };
        fields.expect("number of rows", &1, &found.len());
        for row in &found {
            fields.row(&truth, row);
            if !is_left_out {
                fields.state(&truth, row);
            }
        }
    }
    let local = rows.remove("").unwrap_or_default();
    for account in super::accounts(lives).filter(|account| account.local_plan.is_some()) {
        let found = local.iter().filter(|row| row.account_id == account.id).count();
        let of = format!("account {}", account.id);
        let mut fields = Fields { of: &of, differences: &mut comparison.differences };
        fields.expect("local rows", &usize::from(!account.is_local_row_taken), &found);
    }
    Ok(())
}

async fn compare_events(conn: &mut Conn, event_ids: &[&str], comparison: &mut Comparison) -> QueryResult<()> {
    let found: HashMap<_, _> = events::outcomes(conn, event_ids).await?.into_iter().collect();
    for &id in event_ids {
        let outcome = found.get(id).map(String::as_str);
        if !matches!(outcome, Some("applied" | "stale")) {
            let found = outcome.unwrap_or(LOST).to_owned();
            let expected = "applied or stale".to_owned();
            comparison.differences.push(Difference { of: id.to_owned(), field: OUTCOME, expected, found });
        }
        *comparison.outcomes.entry(outcome.unwrap_or(LOST).to_owned()).or_default() += 1;
    }
    Ok(())
}

struct Fields<'a> {
    of: &'a str,
    differences: &'a mut Vec<Difference>,
}

impl Fields<'_> {
    fn expect<T: PartialEq + Debug + ?Sized>(&mut self, field: &'static str, expected: &T, found: &T) {
        if expected != found {
            let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
            self.differences.push(Difference { of: self.of.to_owned(), field, expected, found });
        }
    }

    /// What holds whichever of two changes of one second came last.
    fn row(&mut self, truth: &Truth, row: &Row) {
        self.expect("account_id", &truth.account_id, &row.account_id);
        self.expect("stripe_customer_id", &Some(truth.customer_id.as_str()), &row.state.stripe_customer_id.as_deref());
        self.expect("last_event_created", &time(truth.last_event_created), &row.as_of.last_event_created);
        let (id, status) = truth.latest_invoice.as_ref().map(|(id, status)| (id.as_str(), *status)).unzip();
        self.expect("latest_invoice_id", &id, &row.latest_invoice.latest_invoice_id.as_deref());
        self.expect("latest_invoice_status", &status, &row.latest_invoice.latest_invoice_status.as_deref());
    }

    fn state(&mut self, truth: &Truth, row: &Row) {
        let (expected, found) = (&truth.state, &row.state);
        self.expect("status", expected.status, found.status.as_str());
        self.expect("plan", &Some(truth.plan), &found.plan.as_deref());
        self.expect("stripe_price_id", &truth.price_id(), &found.stripe_price_id.as_deref());
        self.expect("seat_limit", &truth.seat_limit(), &found.seat_limit);
        self.expect("current_period_start", &time(expected.period.0), &found.current_period_start);
        self.expect("current_period_end", &time(expected.period.1), &found.current_period_end);
        self.expect("cancel_at_period_end", &expected.cancel_at_period_end, &found.cancel_at_period_end);
        self.expect("cancel_at", &expected.cancel_at.and_then(time), &found.cancel_at);
        self.expect("canceled_at", &expected.canceled_at.and_then(time), &found.canceled_at);
        self.expect("ended_at", &expected.ended_at.and_then(time), &found.ended_at);
        self.expect("trial_end", &expected.trial.and_then(|(_, end)| time(end)), &found.trial_end);
        self.expect("paused_collection", &expected.pause.is_some(), &found.paused_collection);
    }
}
