//! Queries over all events: the recorded ones, and those of which every attempt so far failed.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;

/// An event without its payload.
#[derive(Clone, Debug, QueryableByName)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct Listed {
    #[diesel(sql_type = Text)]
    pub id: String,
    #[diesel(sql_type = Text, column_name = "type")]
    pub type_: String,
    /// The outcome, or `failed`.
    #[diesel(sql_type = Text)]
    pub status: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub created: Option<DateTime<Utc>>,
    /// The time of its first delivery.
    #[diesel(sql_type = Timestamptz)]
    pub received_at: DateTime<Utc>,
    #[diesel(sql_type = Nullable<Text>)]
    pub api_version: Option<String>,
    #[diesel(sql_type = Bool)]
    pub livemode: bool,
    #[diesel(sql_type = Nullable<Text>)]
    pub connect_account: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub customer_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub subscription_id: Option<String>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub account_id: Option<Uuid>,
}

/// The conditions of a list. `None` matches every event.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The event's type.
    pub event_type: Option<String>,
    /// The outcome, or `failed`.
    pub status: Option<String>,
    /// `cus_…`.
    pub customer: Option<String>,
    /// `sub_…`.
    pub subscription: Option<String>,
    /// The id of one of our accounts.
    pub account: Option<Uuid>,
}

/// The status of an event of which every attempt so far failed.
const FAILED: &str = "failed";

/// The columns of [`Listed`], from `stripe_events` and from `event_failures AS failure`.
const RECORDED_COLUMNS: &str = "id, type, outcome AS status, created, received_at, api_version, livemode, \
                                connect_account, customer_id, subscription_id, account_id";
const FAILED_COLUMNS: &str = "event_id AS id, type, 'failed' AS status, created, failed_at AS received_at, \
                              api_version, livemode, connect_account, customer_id, subscription_id, \
                              NULL::uuid AS account_id";

/// The condition that `event_failures AS failure` is the first failure of an event that is not recorded.
///
/// Scalar subqueries, since the planner would turn an anti join into a hash join over both tables; and a CASE, of which
/// the planner expects half to be true, so that it reads in the list's order and stops at the limit.
macro_rules! is_first_of_failing_event {
    () => {
        "CASE WHEN (SELECT id FROM stripe_events WHERE stripe_events.id = failure.event_id) IS NULL
               AND failure.id = (SELECT first.id FROM event_failures first WHERE first.event_id = failure.event_id
                                 ORDER BY first.failed_at, first.id LIMIT 1)
         THEN true ELSE false END"
    };
}
pub(super) use is_first_of_failing_event;

/// The event types in `stripe_events`, found by one index probe for each type.
const RECORDED_TYPES: &str = "
    WITH RECURSIVE types AS (
        (SELECT type FROM stripe_events ORDER BY type LIMIT 1)
        UNION ALL
        SELECT (SELECT event.type FROM stripe_events event WHERE event.type > types.type ORDER BY event.type LIMIT 1)
        FROM types WHERE types.type IS NOT NULL
    )
    SELECT type FROM types WHERE type IS NOT NULL";

/// A list's sort order.
const NEWEST_FIRST: &str = "ORDER BY received_at DESC, id DESC";

/// Every event once: the recorded rows that match `recorded` and the failing events that match `failed`.
fn union_of(recorded: &str, failed: &str, rest: &str) -> String {
    format!(
        "SELECT * FROM (
           (SELECT {RECORDED_COLUMNS} FROM stripe_events WHERE {recorded})
           UNION ALL
           (SELECT {FAILED_COLUMNS} FROM event_failures failure WHERE {failed} AND {first})
         ) AS listed {rest}",
        first = is_first_of_failing_event!()
    )
}

/// The event with this id.
pub async fn find(conn: &mut Conn, id: &str) -> QueryResult<Option<Listed>> {
    diesel::sql_query(union_of("id = $1", "event_id = $1", "")).bind::<Text, _>(id).get_result(conn).await.optional()
}

/// At most `limit` events that match `filter`, newest first, starting after `after`.
///
/// Reads at most `limit` index entries of each of the statement's parts, or, with a customer, subscription or account,
/// the events of that one; never the whole table, whatever the filter.
pub async fn page(conn: &mut Conn, filter: &Filter, after: Option<&Listed>, limit: i64) -> QueryResult<Vec<Listed>> {
    diesel::sql_query(page_sql(filter))
        .bind::<Nullable<Text>, _>(&filter.event_type)
        .bind::<Nullable<Text>, _>(&filter.status)
        .bind::<Nullable<Text>, _>(&filter.customer)
        .bind::<Nullable<Text>, _>(&filter.subscription)
        .bind::<Nullable<SqlUuid>, _>(filter.account)
        .bind::<Nullable<Timestamptz>, _>(after.map(|after| after.received_at))
        .bind::<Text, _>(after.map_or("", |after| after.id.as_str()))
        .bind::<BigInt, _>(limit)
        .load(conn)
        .await
}

/// The statement of [`page`]: `$1` type, `$2` status, `$3` customer, `$4` subscription, `$5` account, `$6` and `$7`
/// the time and id to start after, `$8` limit.
fn page_sql(filter: &Filter) -> String {
    let has_key = filter.customer.is_some() || filter.subscription.is_some() || filter.account.is_some();
    let mut halves = Vec::new();
    if filter.status.as_deref() != Some(FAILED) {
        halves.push(match (has_key, &filter.event_type, &filter.status) {
            (true, ..) => recorded_of_key(filter),
            (false, None, None) => recorded_newest(),
            (false, ..) => recorded_of_kinds(filter),
        });
    }
    // A failing event has no account yet.
    if filter.status.as_deref().is_none_or(|status| status == FAILED) && filter.account.is_none() {
        halves.push(if has_key { failing_of_key(filter) } else { failing_newest(filter) });
    }
    // A status of failing events with an account of recorded ones matches nothing.
    if halves.is_empty() {
        halves.push(format!("SELECT {RECORDED_COLUMNS} FROM stripe_events WHERE false"));
    }
    format!("SELECT * FROM (({})) AS listed {NEWEST_FIRST} LIMIT $8", halves.join(") UNION ALL ("))
}

fn recorded_newest() -> String {
    format!(
        "SELECT {RECORDED_COLUMNS} FROM stripe_events WHERE ($6 IS NULL OR (received_at, id) < ($6, $7))
         {NEWEST_FIRST} LIMIT $8"
    )
}

/// Reads every event of one customer, subscription or account. `OFFSET 0` keeps the planner from walking the whole
/// table in the list's order if it expects many matches.
fn recorded_of_key(filter: &Filter) -> String {
    let mut conditions = key_conditions(filter);
    push_if(&mut conditions, filter.account.is_some(), " AND account_id = $5");
    push_if(&mut conditions, filter.status.is_some(), " AND outcome = $2");
    format!(
        "SELECT * FROM (SELECT {RECORDED_COLUMNS} FROM stripe_events WHERE {conditions} OFFSET 0) AS of_key
         WHERE ($6 IS NULL OR (received_at, id) < ($6, $7)) {NEWEST_FIRST} LIMIT $8"
    )
}

/// Reads the newest events of each pair of a type and an outcome, and merges them.
///
/// The comparison of the type by ANY makes the type a part of the order, which no other index than that on (type,
/// outcome, received_at, id) has. With an equality the planner may walk the whole table by time, if it takes type and
/// outcome for independent.
fn recorded_of_kinds(filter: &Filter) -> String {
    let types = if filter.event_type.is_some() { "SELECT $1 AS type" } else { RECORDED_TYPES };
    let outcomes =
        if filter.status.is_some() { "VALUES ($2)" } else { "VALUES ('applied'), ('stale'), ('ignored'), ('parked')" };
    format!(
        "SELECT {RECORDED_COLUMNS} FROM stripe_events WHERE id = ANY (ARRAY(
             SELECT newest.id
             FROM ({types}) AS types, ({outcomes}) AS outcomes (outcome),
                  LATERAL (SELECT id, received_at FROM stripe_events event
                           WHERE event.type = ANY (ARRAY[types.type]) AND event.outcome = outcomes.outcome
                             AND (event.received_at, event.id) < (COALESCE($6, 'infinity'), $7)
                           ORDER BY event.type DESC, event.received_at DESC, event.id DESC LIMIT $8) AS newest
             ORDER BY newest.received_at DESC, newest.id DESC LIMIT $8))"
    )
}

/// The parked events that have waited longest, at most `limit`, the longest wait first.
pub async fn longest_parked(conn: &mut Conn, limit: i64) -> QueryResult<Vec<Listed>> {
    diesel::sql_query(format!(
        "SELECT {RECORDED_COLUMNS} FROM stripe_events WHERE id = ANY (ARRAY(
             SELECT oldest.id
             FROM ({RECORDED_TYPES}) AS types,
                  LATERAL (SELECT id, received_at FROM stripe_events event
                           WHERE event.type = ANY (ARRAY[types.type]) AND event.outcome = 'parked'
                           ORDER BY event.type, event.received_at, event.id LIMIT $1) AS oldest
             ORDER BY oldest.received_at, oldest.id LIMIT $1))
         ORDER BY received_at, id"
    ))
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

fn failing_of_key(filter: &Filter) -> String {
    let conditions = key_conditions(filter);
    format!(
        "SELECT {FAILED_COLUMNS} FROM (SELECT * FROM event_failures WHERE {conditions} AND is_open OFFSET 0) AS failure
         WHERE ($6 IS NULL OR (failed_at, event_id) < ($6, $7)) AND {first} {NEWEST_FIRST} LIMIT $8",
        first = is_first_of_failing_event!()
    )
}

/// Walks the index of open failures, by type if there is one. See [`recorded_of_kinds`] about the comparison by ANY.
fn failing_newest(filter: &Filter) -> String {
    let (of_type, order) = match filter.event_type {
        Some(_) => ("type = ANY (ARRAY[$1])", "type DESC, failed_at DESC, event_id DESC"),
        None => ("true", "failed_at DESC, event_id DESC"),
    };
    format!(
        "SELECT {FAILED_COLUMNS} FROM event_failures failure
         WHERE is_open AND {of_type} AND ($6 IS NULL OR (failed_at, event_id) < ($6, $7)) AND {first}
         ORDER BY {order} LIMIT $8",
        first = is_first_of_failing_event!()
    )
}

/// The conditions on columns that both tables have.
fn key_conditions(filter: &Filter) -> String {
    let mut conditions = "true".to_owned();
    push_if(&mut conditions, filter.customer.is_some(), " AND customer_id = $3");
    push_if(&mut conditions, filter.subscription.is_some(), " AND subscription_id = $4");
    push_if(&mut conditions, filter.event_type.is_some(), " AND type = $1");
    conditions
}

fn push_if(sql: &mut String, condition: bool, text: &str) {
    if condition {
        sql.push_str(text);
    }
}

/// The newest `limit` events of a subscription by Stripe's time, newest first.
pub async fn of_subscription(conn: &mut Conn, subscription: &str, limit: i64) -> QueryResult<Vec<Listed>> {
    let newest_first = "ORDER BY created DESC NULLS LAST, received_at DESC, id DESC LIMIT $2";
    diesel::sql_query(union_of("subscription_id = $1", "subscription_id = $1 AND is_open", newest_first))
        .bind::<Text, _>(subscription)
        .bind::<BigInt, _>(limit)
        .load(conn)
        .await
}

/// The newest `limit` events of an account, its customers and its subscriptions by Stripe's time, newest first.
pub async fn of_account(
    conn: &mut Conn,
    account: Uuid,
    customers: &[String],
    subscriptions: &[&str],
    limit: i64,
) -> QueryResult<Vec<Listed>> {
    let newest_first = "ORDER BY created DESC NULLS LAST, received_at DESC, id DESC LIMIT $4";
    diesel::sql_query(union_of(
        "(account_id = $1 OR customer_id = ANY ($2) OR subscription_id = ANY ($3))",
        "(customer_id = ANY ($2) OR subscription_id = ANY ($3)) AND is_open",
        newest_first,
    ))
    .bind::<SqlUuid, _>(account)
    .bind::<Array<Text>, _>(customers)
    .bind::<Array<Text>, _>(subscriptions)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}
