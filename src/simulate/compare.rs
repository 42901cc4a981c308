//! Compares what the tables show with the truth. It reads; it writes nothing and asks the service nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;

use chrono::DateTime;
use diesel::QueryResult;
use serde_json::{Value, json};

use super::chain;
use super::model::Life;
use super::tables::{self, Change};
use super::thin::{self, Forms};
use super::truth::{self, Truth};
use crate::db::{Conn, events};
use crate::handlers::Outcome;
use crate::stripe::PricePlans;

/// What stands for the outcome of an event that is not recorded.
const LOST: &str = "lost";

/// Ids that one query asks for.
const BATCH: usize = 500;

/// A place where the tables do not show the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// The subscription's, the customer's or the event's id.
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
    pub(super) changes: usize,
    pub(super) customers: usize,
    /// Subscriptions whose state, and customers whose features, only a fetch can decide, and that were left out.
    pub(super) left_out: usize,
    /// Recorded events, by outcome.
    pub(super) outcomes: BTreeMap<String, usize>,
}

impl Comparison {
    /// Whether nothing of what was sent is there.
    pub(super) fn is_all_lost(&self) -> bool {
        self.outcomes.keys().all(|outcome| outcome == LOST)
    }

    /// How many events are parked that should have been applied.
    pub(super) fn parked(&self) -> usize {
        self.outcomes.get(Outcome::Parked.as_str()).copied().unwrap_or_default()
    }
}

/// What has to be known of the server.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    pub(super) lives: &'a [Life],
    pub(super) forms: Forms,
    /// The server's `PRICE_PLANS`.
    pub(super) plans: &'a PricePlans,
    /// Whether it can ask Stripe.
    pub(super) can_fetch: bool,
}

impl Expected<'_> {
    /// Compares all lives.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub(super) async fn compare(&self, conn: &mut Conn) -> QueryResult<Comparison> {
        let mut comparison = Comparison { subscriptions: self.lives.len(), ..Comparison::default() };
        for lives in self.lives.chunks(BATCH) {
            self.compare_rows(conn, lives, &mut comparison).await?;
        }
        self.compare_features(conn, &mut comparison).await?;
        self.compare_events(conn, &mut comparison).await?;
        Ok(comparison)
    }

    async fn compare_rows(&self, conn: &mut Conn, lives: &[Life], comparison: &mut Comparison) -> QueryResult<()> {
        let ids: Vec<_> = lives.iter().map(|life| life.subscription_id.as_str()).collect();
        let accounts: Vec<_> = lives.iter().map(|life| life.account.id).collect();
        let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let mut rows: HashMap<String, Vec<Value>> = HashMap::new();
        for row in tables::subscriptions(conn, &ids, &accounts).await? {
            rows.entry(text(&row, "stripe_subscription_id")).or_default().push(row);
        }
        let mut changes: HashMap<String, Vec<Change>> = HashMap::new();
        for change in tables::changes(conn, &ids).await? {
            comparison.changes += 1;
            changes.entry(change.stripe_subscription_id.clone()).or_default().push(change);
        }
        for life in lives {
            let Some(truth) = Truth::of(life, self.plans) else { continue };
            let found = rows.remove(&life.subscription_id).unwrap_or_default();
            let is_left_out = life.is_for_stripe_to_decide && !self.can_fetch;
            comparison.left_out += usize::from(is_left_out);
            let mut fields = Fields::new(&life.subscription_id, &mut comparison.differences);
            fields.expect("number of rows", &1.into(), &found.len().into());
            for row in &found {
                let state = (!is_left_out).then_some(&truth.state);
                for (column, expected) in truth.in_any_case.iter().chain(state.into_iter().flatten()) {
                    fields.expect(column, expected, row.get(column).unwrap_or(&json!("no such column")));
                }
                let of_that_second = self.events_of_second(life, truth.last_event_created);
                if !of_that_second.contains(&text(row, "last_event_id")) {
                    fields.expect("last_event_id", &json!(of_that_second), &row["last_event_id"]);
                }
                chain::check(row, changes.get(&life.subscription_id).map_or(&[], Vec::as_slice), &mut fields);
            }
        }
        let local = rows.remove("").unwrap_or_default();
        for account in super::accounts(lives).filter(|account| account.local_plan.is_some()) {
            let found = local.iter().filter(|row| row["account_id"] == json!(account.id)).count();
            let of = format!("account {}", account.id);
            let mut fields = Fields::new(&of, &mut comparison.differences);
            fields.expect("local rows", &usize::from(!account.is_local_row_taken).into(), &found.into());
        }
        Ok(())
    }

    /// The ids under which the life's events of one second are recorded: the row may name any of them that shows its state.
    fn events_of_second(&self, life: &Life, second: i64) -> Vec<String> {
        let of_second = life.occurrences.iter().enumerate().filter(|(_, it)| it.created == second);
        let shown = of_second.filter(|(_, it)| it.what.shows_the_subscription());
        let recorded = |(index, occurrence)| {
            let forms = self.forms.of(life, index);
            forms.into_iter().map(move |form| thin::recorded_id(occurrence, form))
        };
        shown.flat_map(recorded).collect()
    }

    async fn compare_features(&self, conn: &mut Conn, comparison: &mut Comparison) -> QueryResult<()> {
        let expected = truth::features(self.lives);
        comparison.customers = expected.len();
        let customers: Vec<_> = expected.keys().copied().collect();
        let mut found: HashMap<String, Vec<(String, String)>> = HashMap::new();
        for customers in customers.chunks(BATCH) {
            for feature in tables::features(conn, customers).await? {
                let features = found.entry(feature.stripe_customer_id).or_default();
                features.push((feature.lookup_key, feature.feature_id.unwrap_or_default()));
            }
        }
        for (customer, expected) in expected {
            if expected.is_for_stripe_to_decide && !self.can_fetch {
                comparison.left_out += 1;
                continue;
            }
            let found = found.remove(customer).unwrap_or_default();
            let mut fields = Fields::new(customer, &mut comparison.differences);
            fields.expect("features", &json!(expected.features), &json!(found));
        }
        Ok(())
    }

    /// Every event is recorded under the id that its form leads to, and every notification with its event.
    async fn compare_events(&self, conn: &mut Conn, comparison: &mut Comparison) -> QueryResult<()> {
        let mut event_ids = HashSet::new();
        let mut notifications = Vec::new();
        for life in self.lives {
            for (index, occurrence) in life.occurrences.iter().enumerate() {
                for form in self.forms.of(life, index) {
                    let event_id = thin::recorded_id(occurrence, form);
                    let notification = thin::notification_id(occurrence, form);
                    notifications.extend(notification.map(|notification| (notification, event_id.clone())));
                    event_ids.insert(event_id);
                }
            }
        }
        let event_ids: Vec<_> = event_ids.iter().map(String::as_str).collect();
        for event_ids in event_ids.chunks(BATCH) {
            let found: HashMap<_, _> = events::outcomes(conn, event_ids).await?.into_iter().collect();
            for &id in event_ids {
                let outcome = found.get(id).map_or(LOST, String::as_str);
                if !matches!(outcome, "applied" | "stale") {
                    let (of, expected) = (id.to_owned(), "applied or stale".to_owned());
                    comparison.differences.push(Difference {
                        of,
                        field: "outcome",
                        expected,
                        found: outcome.to_owned(),
                    });
                }
                *comparison.outcomes.entry(outcome.to_owned()).or_default() += 1;
            }
        }
        for notifications in notifications.chunks(BATCH) {
            let ids: Vec<_> = notifications.iter().map(|(id, _)| id.as_str()).collect();
            let found = tables::notifications(conn, &ids).await?.into_iter();
            let found: HashMap<_, _> = found.map(|found| (found.notification_id, found.event_id)).collect();
            for (id, event_id) in notifications {
                let mut fields = Fields::new(id, &mut comparison.differences);
                fields.expect("event of the notification", &json!(event_id), &json!(found.get(id)));
            }
        }
        Ok(())
    }
}

/// Notes what differs of one thing.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    of: &'a str,
    differences: &'a mut Vec<Difference>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(of: &'a str, differences: &'a mut Vec<Difference>) -> Self {
        Self { of, differences }
    }

    /// A difference unless both are the same.
    pub(super) fn expect(&mut self, field: &'static str, expected: &Value, found: &Value) {
        if !same(expected, found) {
            let (expected, found) = (expected.to_string(), found.to_string());
            self.differences.push(Difference { of: self.of.to_owned(), field, expected, found });
        }
    }

    /// A difference unless the list is empty.
    pub(super) fn expect_none(&mut self, field: &'static str, found: &[&str]) {
        self.expect(field, &json!([]), &json!(found));
    }
}

/// Whether two values are the same. Times are, if they are the same moment, however they are written.
pub(super) fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::String(one), Value::String(other)) => {
            let time = |text| DateTime::parse_from_rfc3339(text).ok();
            one == other || time(one).is_some_and(|one| Some(one) == time(other))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| same(value, other)))
        }
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_same_if_they_mean_the_same() {
        let items = json!([{"end": "2025-01-01T00:00:00Z", "quantity": 3, "plan": null}]);
        assert!(same(&items, &json!([{"quantity": 3, "plan": null, "end": "2025-01-01T01:00:00+01:00"}])));
        for other in [
            json!([]),
            json!([{"end": "2025-01-01T00:00:01Z", "quantity": 3, "plan": null}]),
            json!([{"end": "2025-01-01T00:00:00Z", "quantity": 4, "plan": null}]),
            json!([{"end": "2025-01-01T00:00:00Z", "quantity": 3}]),
            json!([{"end": "2025-01-01T00:00:00Z", "quantity": 3, "plan": null, "more": 1}]),
        ] {
            assert!(!same(&items, &other) && !same(&other, &items), "{other}");
        }
    }
}
