//! Overdue subscriptions: Stripe's, neither final nor paused, whose period or trial ended some time ago. Their next event
//! should have arrived since.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::QueryableByName;
use diesel::sql_types::{BigInt, Double, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;

/// A subscription that is overdue.
#[derive(Clone, Debug, QueryableByName)]
pub struct Overdue {
    /// `sub_…`.
    #[diesel(sql_type = Text)]
    pub stripe_subscription_id: String,
    /// The account that its row belongs to.
    #[diesel(sql_type = SqlUuid)]
    pub account_id: Uuid,
    /// When its period or trial ended.
    #[diesel(sql_type = Timestamptz)]
    pub ended: DateTime<Utc>,
    /// `acct_…` of the connected account that it belongs to.
    #[diesel(sql_type = Nullable<Text>)]
    pub connect_account: Option<String>,
}

/// How many are overdue, and since when the first of them is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, QueryableByName)]
pub struct OverdueCount {
    /// The number of subscriptions.
    #[diesel(sql_type = BigInt)]
    pub subscriptions: i64,
    /// The earliest end of a period or trial.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub oldest: Option<DateTime<Utc>>,
}

/// The condition, with the seconds as `$1`.
macro_rules! is_overdue {
    () => {
        "stripe_subscription_id IS NOT NULL AND status NOT IN ('canceled', 'incomplete_expired', 'paused')
         AND coalesce(current_period_end, trial_end) < now() - $1 * interval '1 second'"
    };
}

/// Counts the subscriptions whose period or trial ended longer ago than `after`.
pub async fn count(conn: &mut Conn, after: Duration) -> QueryResult<OverdueCount> {
    diesel::sql_query(concat!(
        "SELECT count(*) AS subscriptions, min(coalesce(current_period_end, trial_end)) AS oldest
         FROM subscriptions WHERE ",
        is_overdue!()
    ))
    .bind::<Double, _>(after.as_secs_f64())
    .get_result(conn)
    .await
}

/// At most `limit` overdue subscriptions, chosen at random, so that none is passed over for ever.
pub async fn some(conn: &mut Conn, after: Duration, limit: i64) -> QueryResult<Vec<Overdue>> {
    diesel::sql_query(concat!(
        "SELECT overdue.stripe_subscription_id, overdue.account_id, ended,
                coalesce(to_jsonb(overdue) ->> 'connect_account', event.connect_account) AS connect_account
         FROM (SELECT *, coalesce(current_period_end, trial_end) AS ended FROM subscriptions WHERE ",
        is_overdue!(),
        " ORDER BY random() LIMIT $2) AS overdue
         LEFT JOIN stripe_events event ON event.id = overdue.last_event_id
         ORDER BY ended, overdue.stripe_subscription_id"
    ))
    .bind::<Double, _>(after.as_secs_f64())
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// At most `limit` overdue subscriptions, the longest overdue first.
pub async fn first(conn: &mut Conn, after: Duration, limit: i64) -> QueryResult<Vec<Overdue>> {
    diesel::sql_query(concat!(
        "SELECT stripe_subscription_id, account_id, coalesce(current_period_end, trial_end) AS ended,
                to_jsonb(subscriptions) ->> 'connect_account' AS connect_account
         FROM subscriptions WHERE ",
        is_overdue!(),
        " ORDER BY ended, stripe_subscription_id LIMIT $2"
    ))
    .bind::<Double, _>(after.as_secs_f64())
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}
