//! Queries over `event_failures`.
//!
//! `is_open` marks the first failure of each event that is not recorded, so that indexes hold the failing events alone.
//! A failure that is not open stays so; an open one may be out of date until [`close`] or [`sweep`] comes by, so readers
//! check it.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::listing::is_first_of_failing_event;
use super::raw_json::RawJson;
use super::schema::event_failures as table;
use crate::stripe::Event;

/// One failed attempt.
#[derive(Clone, Debug, Queryable)]
pub struct Failure {
    /// When it failed.
    pub failed_at: DateTime<Utc>,
    /// Why, for the admin: the whole chain of causes.
    pub error: String,
}

/// Records a failed attempt at `event`, under the id of what was delivered. It is open if it is the first one and the
/// event is not recorded.
pub async fn insert(conn: &mut Conn, event: &Event, error: &str) -> QueryResult<usize> {
    let is_open_now = sql::<Bool>("NOT EXISTS (SELECT FROM event_failures WHERE event_id = ")
        .bind::<Text, _>(event.delivered_id())
        .sql(") AND NOT EXISTS (SELECT FROM stripe_events WHERE id = ")
        .bind::<Text, _>(event.delivered_id())
        .sql(")");
    diesel::insert_into(table::table)
        .values((
            table::event_id.eq(event.delivered_id()),
            table::type_.eq(&event.event_type),
            table::error.eq(error),
            table::api_version.eq(&event.api_version),
            table::livemode.eq(event.livemode),
            table::connect_account.eq(&event.connect_account),
            table::created.eq(event.created),
            table::customer_id.eq(&event.customer_id),
            table::subscription_id.eq(&event.subscription_id),
            table::payload.eq(RawJson(&event.payload)),
            table::is_open.eq(is_open_now),
        ))
        .execute(conn)
        .await
}

/// The failed attempts at an event, newest first.
pub async fn of_event(conn: &mut Conn, event_id: &str) -> QueryResult<Vec<Failure>> {
    table::table
        .filter(table::event_id.eq(event_id))
        .order(table::id.desc())
        .select((table::failed_at, table::error))
        .load(conn)
        .await
}

/// The failed attempts at several events, newest first, each with its event's id.
pub async fn of_events(conn: &mut Conn, event_ids: &[&str]) -> QueryResult<Vec<(String, Failure)>> {
    table::table
        .filter(table::event_id.eq_any(event_ids))
        .order(table::id.desc())
        .select((table::event_id, (table::failed_at, table::error)))
        .load(conn)
        .await
}

/// The payload of the newest failed attempt at an event, as JSON text.
pub async fn payload(conn: &mut Conn, event_id: &str) -> QueryResult<Option<String>> {
    table::table
        .filter(table::event_id.eq(event_id).and(table::payload.is_not_null()))
        .order(table::id.desc())
        .select(sql::<Text>("payload::text"))
        .first(conn)
        .await
        .optional()
}

/// Closes the failures of events that have just been recorded.
pub async fn close(conn: &mut Conn, event_ids: &[&str]) -> QueryResult<usize> {
    let failures = table::table.filter(table::event_id.eq_any(event_ids)).filter(table::is_open);
    diesel::update(failures).set(table::is_open.eq(false)).execute(conn).await
}

/// Where a sweep stands: the time and the event of the last open failure that it read.
pub type SweepPosition = (DateTime<Utc>, String);

/// One step of a sweep.
#[derive(Clone, Debug, QueryableByName)]
pub struct Swept {
    /// The number of open failures that it read.
    #[diesel(sql_type = BigInt)]
    pub read: i64,
    /// The number of those that it closed.
    #[diesel(sql_type = BigInt)]
    pub closed: i64,
    /// The time of the last one that it read.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub last_failed_at: Option<DateTime<Utc>>,
    /// The event of the last one that it read.
    #[diesel(sql_type = Nullable<Text>)]
    pub last_event_id: Option<String>,
}

/// Reads the next `limit` open failures, oldest first, and closes those that are out of date: their event is recorded,
/// or an earlier failure of it is there. Skips rows that another session has locked.
pub async fn sweep(conn: &mut Conn, after: Option<&SweepPosition>, limit: i64) -> QueryResult<Swept> {
    diesel::sql_query(concat!(
        "WITH batch AS (
             SELECT id, failed_at, event_id, NOT (",
        is_first_of_failing_event!(),
        ") IS TRUE AS is_outdated
             FROM event_failures failure
             WHERE is_open AND ($1 IS NULL OR (failed_at, event_id) > ($1, $2))
             ORDER BY failed_at, event_id LIMIT $3 FOR UPDATE SKIP LOCKED
         ), closed AS (
             UPDATE event_failures SET is_open = false FROM batch
             WHERE event_failures.id = batch.id AND is_outdated RETURNING 1
         )
         SELECT (SELECT count(*) FROM batch) AS read, (SELECT count(*) FROM closed) AS closed,
                last.failed_at AS last_failed_at, last.event_id AS last_event_id
         FROM (SELECT) AS one
              LEFT JOIN (SELECT failed_at, event_id FROM batch ORDER BY failed_at DESC, event_id DESC LIMIT 1) AS last
              ON true"
    ))
    .bind::<Nullable<Timestamptz>, _>(after.map(|(failed_at, _)| *failed_at))
    .bind::<Text, _>(after.map_or("", |(_, event_id)| event_id))
    .bind::<BigInt, _>(limit)
    .get_result(conn)
    .await
}
