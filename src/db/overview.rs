//! Queries over all events for the overview: counts by hour and status, delivery lag, and what needs attention.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::listing::is_first_of_failing_event;

/// The number of events of one clock hour (UTC) with one status.
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

/// Delivery lag: arrival minus Stripe's `created`, in seconds.
#[derive(Clone, Copy, Debug, Default, QueryableByName)]
pub struct Lag {
    /// The median.
    #[diesel(sql_type = Nullable<Double>)]
    pub median_secs: Option<f64>,
    /// The 95th percentile.
    #[diesel(sql_type = Nullable<Double>)]
    pub p95_secs: Option<f64>,
}

/// The number of events in some state, and when the oldest of them arrived.
#[derive(Clone, Copy, Debug, Default, QueryableByName)]
pub struct Waiting {
    /// The number of events, at most the bound of the query.
    #[diesel(sql_type = BigInt)]
    pub events: i64,
    /// When the oldest of them arrived.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub oldest: Option<DateTime<Utc>>,
}

/// An event of which every attempt so far failed.
#[derive(Clone, Debug, QueryableByName)]
pub struct Failing {
    /// The event's id.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// The event's type.
    #[diesel(sql_type = Text, column_name = "type")]
    pub type_: String,
    /// The number of failed attempts.
    #[diesel(sql_type = BigInt)]
    pub attempts: i64,
    /// The time of the last failed attempt.
    #[diesel(sql_type = Timestamptz)]
    pub failed_at: DateTime<Utc>,
    /// The error of the last failed attempt.
    #[diesel(sql_type = Text)]
    pub error: String,
}

/// The events that arrived from `from` until before `to` (`None`: until now), by clock hour and status. An event that
/// failed first counts in the hour of its first delivery.
pub async fn by_hour(conn: &mut Conn, from: DateTime<Utc>, to: Option<DateTime<Utc>>) -> QueryResult<Vec<HourCount>> {
    diesel::sql_query(concat!(
        "SELECT date_trunc('hour', at, 'UTC') AS hour, status, count(*) AS events
         FROM (SELECT received_at AS at, outcome AS status FROM stripe_events
               WHERE received_at >= $1 AND received_at < COALESCE($2, 'infinity')
               UNION ALL
               SELECT failed_at, 'failed' FROM event_failures failure
               WHERE is_open AND failed_at >= $1 AND failed_at < COALESCE($2, 'infinity') AND ",
        is_first_of_failing_event!(),
        ") AS event
         GROUP BY 1, 2 ORDER BY 1, 2"
    ))
    .bind::<Timestamptz, _>(from)
    .bind::<Nullable<Timestamptz>, _>(to)
    .load(conn)
    .await
}

/// The number of events recorded since `since`.
pub async fn recorded(conn: &mut Conn, since: DateTime<Utc>) -> QueryResult<i64> {
    use super::schema::stripe_events as table;
    table::table.filter(table::received_at.ge(since)).count().get_result(conn).await
}

/// The delivery lag of the newest `limit` events that were recorded since `since`. An arrival before `created`, which a
/// clock behind Stripe's causes, counts as no lag.
pub async fn lag(conn: &mut Conn, since: DateTime<Utc>, limit: i64) -> QueryResult<Lag> {
    diesel::sql_query(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY lag) AS median_secs,
                percentile_cont(0.95) WITHIN GROUP (ORDER BY lag) AS p95_secs
         FROM (SELECT CASE WHEN received_at >= created THEN extract(epoch FROM received_at - created)::double precision
                           WHEN created IS NOT NULL THEN 0 END AS lag
               FROM stripe_events WHERE received_at >= $1
               ORDER BY received_at DESC, id DESC LIMIT $2) AS event",
    )
    .bind::<Timestamptz, _>(since)
    .bind::<BigInt, _>(limit)
    .get_result(conn)
    .await
}

/// The number of parked events; stops counting at `limit`.
pub async fn parked(conn: &mut Conn, limit: i64) -> QueryResult<i64> {
    let counted: Waiting = diesel::sql_query(
        "SELECT count(*) AS events, NULL::timestamptz AS oldest
         FROM (SELECT FROM stripe_events WHERE outcome = 'parked' LIMIT $1) AS parked",
    )
    .bind::<BigInt, _>(limit)
    .get_result(conn)
    .await?;
    Ok(counted.events)
}

/// The events of which every attempt so far failed; counts at most `limit` of them.
pub async fn failing(conn: &mut Conn, limit: i64) -> QueryResult<Waiting> {
    diesel::sql_query(concat!(
        "SELECT count(*) AS events, min(failed_at) AS oldest
         FROM (SELECT failed_at FROM event_failures failure WHERE is_open AND ",
        is_first_of_failing_event!(),
        " ORDER BY failed_at, event_id LIMIT $1) AS failing"
    ))
    .bind::<BigInt, _>(limit)
    .get_result(conn)
    .await
}

/// At most `limit` events of which every attempt so far failed, the last to arrive first, each with its last failure.
pub async fn list_failing(conn: &mut Conn, limit: i64) -> QueryResult<Vec<Failing>> {
    diesel::sql_query(concat!(
        "SELECT event_id AS id, last.type, attempts, last.failed_at, last.error
         FROM (SELECT event_id, failed_at FROM event_failures failure WHERE is_open AND ",
        is_first_of_failing_event!(),
        " ORDER BY failed_at DESC, event_id DESC LIMIT $1) AS failing,
              LATERAL (SELECT type, failed_at, error FROM event_failures each
                       WHERE each.event_id = failing.event_id ORDER BY each.id DESC LIMIT 1) AS last,
              LATERAL (SELECT count(*) AS attempts FROM event_failures each
                       WHERE each.event_id = failing.event_id) AS counted
         ORDER BY failing.failed_at DESC, event_id DESC"
    ))
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}
