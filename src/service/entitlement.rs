//! What an account is entitled to, and because of what. Pure.

use chrono::{DateTime, Utc};

use crate::db::subscriptions::Row;

/// Whether an account may use what it pays for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entitlement {
    /// Whether it may.
    pub entitled: bool,
    /// Why, or why not, in words for the admin.
    pub reason: String,
    /// The plan, where entitled.
    pub plan: Option<String>,
    /// The number of seats, where entitled and limited.
    pub seat_limit: Option<i32>,
    /// The end of what is certain: of the period, of the trial, or a cancellation that comes before.
    pub until: Option<DateTime<Utc>>,
    /// The event that brought the subscription into this state; absent for one that the application gave.
    pub since_event: Option<String>,
}

impl Entitlement {
    /// Judges an account by its subscriptions. Of several that entitle, the one whose status comes first in
    /// `entitled_statuses` counts, then the one that lasts longest.
    pub fn of(subscriptions: &[Row], entitled_statuses: &[String]) -> Self {
        let rank = |row: &Row| entitled_statuses.iter().position(|status| *status == row.state.status);
        let best = subscriptions
            .iter()
            .filter_map(|row| rank(row).map(|rank| (row, rank)))
            .min_by_key(|(row, rank)| (*rank, std::cmp::Reverse(until(row))))
            .map(|(row, _)| row);
        if let Some(row) = best {
            return Self {
                entitled: true,
                reason: format!("{} is {}", name(row), row.state.status),
                plan: row.state.plan.clone(),
                seat_limit: row.state.seat_limit,
                until: until(row),
                since_event: row.as_of.last_event_id.clone(),
            };
        }
        let newest = subscriptions.iter().max_by_key(|row| (row.as_of.last_event_created, row.created_at));
        Self {
            entitled: false,
            reason: newest.map_or_else(
                || "the account has no subscription".to_owned(),
                |row| format!("{} is {}", name(row), row.state.status),
            ),
            plan: None,
            seat_limit: None,
            until: None,
            since_event: newest.and_then(|row| row.as_of.last_event_id.clone()),
        }
    }
}

fn name(row: &Row) -> String {
    row.stripe_subscription_id
        .as_ref()
        .map_or_else(|| "a local subscription".to_owned(), |id| format!("subscription {id}"))
}

fn until(row: &Row) -> Option<DateTime<Utc>> {
    let end = row.state.current_period_end.or(row.state.trial_end);
    [row.state.cancel_at, end].into_iter().flatten().min()
}
