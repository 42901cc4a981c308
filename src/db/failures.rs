//! Queries over `event_failures`.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::Conn;
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

/// Records a failed attempt at `event`.
pub async fn insert(conn: &mut Conn, event: &Event, error: &str) -> QueryResult<usize> {
    diesel::insert_into(table::table)
        .values((
            table::event_id.eq(&event.id),
            table::type_.eq(&event.event_type),
            table::error.eq(error),
            table::payload.eq(RawJson(&event.payload)),
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

/// What the newest failed attempt at an event was given: when the first attempt came, and the payload.
pub async fn newest_payload(conn: &mut Conn, event_id: &str) -> QueryResult<Option<(DateTime<Utc>, String)>> {
    let first = diesel::alias!(table as first);
    let first_attempt = first
        .filter(first.field(table::event_id).eq(event_id))
        .order(first.field(table::id).asc())
        .select(first.field(table::failed_at))
        .limit(1)
        .single_value()
        .assume_not_null();
    table::table
        .filter(table::event_id.eq(event_id).and(table::payload.is_not_null()))
        .order(table::id.desc())
        .select((first_attempt, sql::<Text>("event_failures.payload::text")))
        .first(conn)
        .await
        .optional()
}
