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

/// Records a failed attempt at `event`, under the id of what was delivered.
pub async fn insert(conn: &mut Conn, event: &Event, error: &str) -> QueryResult<usize> {
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
