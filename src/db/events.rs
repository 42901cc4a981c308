//! Queries over `stripe_events`, the idempotency rows.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;
use super::raw_json::RawJson;
use super::schema::stripe_events as table;
use crate::stripe::Event;

/// The constraint whose violation by [`insert`] means that an event is recorded already.
pub const PRIMARY_KEY: &str = "stripe_events_pkey";

/// An idempotency row.
#[derive(Clone, Copy, Debug)]
pub struct NewEvent<'a> {
    /// The event.
    pub event: &'a Event,
    /// The column `outcome`.
    pub outcome: &'a str,
    /// The account that the event concerns.
    pub account_id: Option<Uuid>,
    /// When the event first came, if it failed before; an event keeps its place in lists.
    pub failed_since: Option<DateTime<Utc>>,
}

/// Records events; a unique violation of [`PRIMARY_KEY`] means that one of them is recorded already.
///
/// Waits for a transaction that is recording one of the same events until that one commits or rolls back. Give the events
/// in the order of their ids, so that two such statements cannot deadlock.
pub async fn insert(conn: &Conn, rows: &[NewEvent<'_>]) -> QueryResult<usize> {
    fn column<'a, T>(rows: &[NewEvent<'a>], value: impl Fn(&NewEvent<'a>) -> T) -> Vec<T> {
        rows.iter().map(value).collect()
    }
    let statement = diesel::sql_query(
        "INSERT INTO stripe_events (id, type, outcome, api_version, livemode, connect_account, created, received_at,
                                    customer_id, subscription_id, account_id, payload, object_id)
         SELECT id, type, outcome, api_version, livemode, connect_account, created, COALESCE(failed_since, now()),
                customer_id, subscription_id, account_id, payload, object_id
         FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
             AS event (id, type, outcome, api_version, livemode, connect_account, created, failed_since,
                       customer_id, subscription_id, account_id, payload, object_id)",
    )
    .bind::<Array<Text>, _>(column(rows, |row| row.event.id.as_str()))
    .bind::<Array<Text>, _>(column(rows, |row| row.event.event_type.as_str()))
    .bind::<Array<Text>, _>(column(rows, |row| row.outcome))
    .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.event.api_version.as_deref()))
    .bind::<Array<Bool>, _>(column(rows, |row| row.event.livemode))
    .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.event.connect_account.as_deref()))
    .bind::<Array<Nullable<Timestamptz>>, _>(column(rows, |row| row.event.created))
    .bind::<Array<Nullable<Timestamptz>>, _>(column(rows, |row| row.failed_since))
    .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.event.customer_id.as_deref()))
    .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.event.subscription_id.as_deref()))
    .bind::<Array<Nullable<SqlUuid>>, _>(column(rows, |row| row.account_id))
    .bind::<Array<Jsonb>, _>(column(rows, |row| RawJson(&row.event.payload)))
    .bind::<Array<Nullable<Text>>, _>(column(rows, |row| row.event.indexed_object_id()));
    Cached(statement).execute(&mut &*conn).await
}

/// Replaces the outcome `former` of an event that is applied again. The number of rows is 1, or the outcome is another.
pub async fn replace_outcome(
    conn: &Conn,
    event: &Event,
    former: &str,
    outcome: &str,
    account_id: Option<Uuid>,
) -> QueryResult<usize> {
    let row = table::table.filter(table::id.eq(&event.id).and(table::outcome.eq(former)));
    let outcome = (table::outcome.eq(outcome), table::account_id.eq(account_id));
    if event.notification.is_none() {
        return Cached(diesel::update(row).set(outcome)).execute(&mut &*conn).await;
    }
    // The object of a thin event may have been fetched since it was recorded.
    let object = (
        table::customer_id.eq(event.customer_id.as_deref()),
        table::subscription_id.eq(event.subscription_id.as_deref()),
        table::object_id.eq(event.indexed_object_id()),
        table::payload.eq(RawJson(&event.payload).into_sql::<Jsonb>()),
    );
    Cached(diesel::update(row).set((outcome, object))).execute(&mut &*conn).await
}

/// Whether an event is recorded.
pub async fn exists(conn: &mut Conn, id: &str) -> QueryResult<bool> {
    diesel::select(diesel::dsl::exists(table::table.find(id))).get_result(conn).await
}

/// What became of an event, and its payload as JSON text.
pub async fn find(conn: &mut Conn, id: &str) -> QueryResult<Option<(String, String)>> {
    table::table.find(id).select((table::outcome, sql::<Text>("payload::text"))).first(conn).await.optional()
}

/// When the newest event came; `None` where none ever has.
pub async fn last_received_at(conn: &mut Conn) -> QueryResult<Option<DateTime<Utc>>> {
    table::table.select(diesel::dsl::max(table::received_at)).first(conn).await
}

/// The payloads of the events of one second that concern one subscription, as JSON text.
///
/// The types are told apart by the caller: a condition on the type would let the planner read the index on types.
pub async fn of_one_second(conn: &mut Conn, subscription_id: &str, created: DateTime<Utc>) -> QueryResult<Vec<String>> {
    table::table
        .filter(table::subscription_id.eq(subscription_id).and(table::created.eq(created)))
        .order(table::id)
        .select(sql::<Text>("payload::text"))
        .load(conn)
        .await
}

/// The outcomes of those of these events that are recorded, by id.
pub async fn outcomes(conn: &mut Conn, ids: &[&str]) -> QueryResult<Vec<(String, String)>> {
    table::table.filter(table::id.eq_any(ids)).select((table::id, table::outcome)).load(conn).await
}
