//! Queries over all events for the overview: how many came, what became of them, and how late they were.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::listing::Listed;

/// How many events of one clock hour (UTC) came to the same.
#[derive(Clone, Debug, QueryableByName)]
pub struct HourCount {
    /// The hour's start.
    #[diesel(sql_type = Timestamptz)]
    pub hour: DateTime<Utc>,
    /// The outcome, or `failed`.
    #[diesel(sql_type = Text)]
    pub status: String,
    /// The number of events.
    #[diesel(sql_type = BigInt)]
    pub events: i64,
}

/// What came in since some time.
#[derive(Clone, Copy, Debug, Default, QueryableByName)]
pub struct Arrivals {
    /// Events that came at all.
    #[diesel(sql_type = BigInt)]
    pub events: i64,
    /// Arrival minus Stripe's `created`, in seconds, of the event in the middle.
    #[diesel(sql_type = Nullable<Double>)]
    pub median_lag_secs: Option<f64>,
    /// The same, of the event that 95 of 100 were faster than.
    #[diesel(sql_type = Nullable<Double>)]
    pub p95_lag_secs: Option<f64>,
}

/// How many events are in some state, and since when the oldest of them is.
#[derive(Clone, Copy, Debug, Default, QueryableByName)]
pub struct Waiting {
    /// The number of events.
    #[diesel(sql_type = BigInt)]
    pub events: i64,
    /// When the oldest of them came.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub oldest: Option<DateTime<Utc>>,
}

/// An event that has only ever failed.
#[derive(Clone, Debug, QueryableByName)]
pub struct Failing {
    /// The event's id.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// The event's type.
    #[diesel(sql_type = Text, column_name = "type")]
    pub type_: String,
    /// How often it failed.
    #[diesel(sql_type = BigInt)]
    pub attempts: i64,
    /// When it failed last.
    #[diesel(sql_type = Timestamptz)]
    pub failed_at: DateTime<Utc>,
    /// Why it failed last.
    #[diesel(sql_type = Text)]
    pub error: String,
}

/// The events that came since `since`, by clock hour and by what became of them. One that failed first counts in the
/// hour in which it first came.
pub async fn by_hour(conn: &mut Conn, since: DateTime<Utc>) -> QueryResult<Vec<HourCount>> {
    diesel::sql_query(
        "SELECT date_trunc('hour', at, 'UTC') AS hour, status, count(*) AS events
         FROM (SELECT received_at AS at, outcome AS status FROM stripe_events WHERE received_at >= $1
               UNION ALL
               SELECT min(failed_at), 'failed' FROM event_failures failure
               WHERE NOT EXISTS (SELECT FROM stripe_events WHERE stripe_events.id = failure.event_id)
               GROUP BY event_id
              ) AS event
         WHERE at >= $1
         GROUP BY 1, 2 ORDER BY 1, 2",
    )
    .bind::<Timestamptz, _>(since)
    .load(conn)
    .await
}

/// How many events were recorded since `since`, and how late they came. A clock that is behind Stripe's makes no
/// event early: that counts as no lag.
pub async fn arrivals(conn: &mut Conn, since: DateTime<Utc>) -> QueryResult<Arrivals> {
    diesel::sql_query(
        "SELECT count(*) AS events,
                percentile_cont(0.5) WITHIN GROUP (ORDER BY lag) AS median_lag_secs,
                percentile_cont(0.95) WITHIN GROUP (ORDER BY lag) AS p95_lag_secs
         FROM (SELECT CASE WHEN received_at >= created THEN extract(epoch FROM received_at - created)::double precision
                           WHEN created IS NOT NULL THEN 0 END AS lag
               FROM stripe_events WHERE received_at >= $1) AS event",
    )
    .bind::<Timestamptz, _>(since)
    .get_result(conn)
    .await
}

/// The parked events.
pub async fn parked(conn: &mut Conn) -> QueryResult<Waiting> {
    diesel::sql_query(
        "SELECT count(*) AS events, min(received_at) AS oldest FROM stripe_events WHERE outcome = 'parked'",
    )
    .get_result(conn)
    .await
}

/// The events that have only ever failed.
pub async fn failing(conn: &mut Conn) -> QueryResult<Waiting> {
    diesel::sql_query(
        "SELECT count(DISTINCT event_id) AS events, min(failed_at) AS oldest FROM event_failures failure
         WHERE NOT EXISTS (SELECT FROM stripe_events WHERE stripe_events.id = failure.event_id)",
    )
    .get_result(conn)
    .await
}

/// At most `limit` events that have only ever failed, the last to fail first.
pub async fn list_failing(conn: &mut Conn, limit: i64) -> QueryResult<Vec<Failing>> {
    diesel::sql_query(
        "SELECT newest.event_id AS id, newest.type, attempts, newest.failed_at, newest.error
         FROM (SELECT max(id) AS id, count(*) AS attempts FROM event_failures failure
               WHERE NOT EXISTS (SELECT FROM stripe_events WHERE stripe_events.id = failure.event_id)
               GROUP BY event_id ORDER BY 1 DESC LIMIT $1) AS event
         JOIN event_failures newest ON newest.id = event.id
         ORDER BY newest.id DESC",
    )
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// The parked events that have waited longest, at most `limit`.
pub async fn list_parked(conn: &mut Conn, limit: i64) -> QueryResult<Vec<Listed>> {
    diesel::sql_query(
        "SELECT id, type, outcome AS status, created, received_at, api_version, livemode, connect_account,
                customer_id, subscription_id, account_id
         FROM stripe_events WHERE outcome = 'parked' ORDER BY received_at, id LIMIT $1",
    )
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}
