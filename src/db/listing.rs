//! Queries over all events that ever came: those with an idempotency row, and those that have only ever failed.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;

/// An event, without its payload.
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
    /// When it first came.
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

/// Which events to list. `None` lets all through.
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
    /// An account of ours.
    pub account: Option<Uuid>,
}

/// Every event once; one that failed and was recorded later is where it first came.
///
/// `$recorded` and `$failed` go on after WHERE. What asks for other rows of the same event is a scalar subquery on
/// purpose: an anti join would be planned as one over both tables, whole.
macro_rules! select_listed {
    ($recorded:literal, $failed:literal, $rest:literal) => {
        concat!(
            "SELECT * FROM (
               (SELECT id, type, outcome AS status, created, received_at, api_version, livemode, connect_account,
                       customer_id, subscription_id, account_id
                FROM stripe_events WHERE ",
            $recorded,
            ")
               UNION ALL
               (SELECT event_id, type, 'failed', created, failed_at, api_version, livemode, connect_account,
                       customer_id, subscription_id, NULL
                FROM event_failures failure
                WHERE (SELECT id FROM stripe_events WHERE stripe_events.id = failure.event_id) IS NULL
                  AND id = (SELECT first.id FROM event_failures first WHERE first.event_id = failure.event_id
                            ORDER BY first.failed_at, first.id LIMIT 1)
                  AND ",
            $failed,
            ")) AS listed ",
            $rest
        )
    };
}

/// The event with this id.
pub async fn find(conn: &mut Conn, id: &str) -> QueryResult<Option<Listed>> {
    diesel::sql_query(select_listed!("id = $1", "event_id = $1", ""))
        .bind::<Text, _>(id)
        .get_result(conn)
        .await
        .optional()
}

/// At most `limit` events that pass `filter`, newest first, from behind `after`.
///
/// Both halves are limited before they are merged, so that each is read in the order of an index no farther than the
/// page goes.
pub async fn page(conn: &mut Conn, filter: &Filter, after: Option<&Listed>, limit: i64) -> QueryResult<Vec<Listed>> {
    diesel::sql_query(select_listed!(
        "($1 IS NULL OR type = $1) AND ($2 IS NULL OR ($2 <> 'failed' AND outcome = $2)) AND ($3 IS NULL OR customer_id = $3)
           AND ($4 IS NULL OR subscription_id = $4) AND ($5 IS NULL OR account_id = $5)
           AND ($6 IS NULL OR (received_at, id) < ($6, $7))
         ORDER BY received_at DESC, id DESC LIMIT $8",
        "($1 IS NULL OR type = $1) AND ($2 IS NULL OR $2 = 'failed') AND ($3 IS NULL OR customer_id = $3)
           AND ($4 IS NULL OR subscription_id = $4) AND $5 IS NULL
           AND ($6 IS NULL OR (failed_at, event_id) < ($6, $7))
         ORDER BY failed_at DESC, event_id DESC LIMIT $8",
        "ORDER BY received_at DESC, id DESC LIMIT $8"
    ))
    .bind::<Nullable<Text>, _>(&filter.event_type)
    .bind::<Nullable<Text>, _>(&filter.status)
    .bind::<Nullable<Text>, _>(&filter.customer)
    .bind::<Nullable<Text>, _>(&filter.subscription)
    .bind::<Nullable<SqlUuid>, _>(filter.account)
    .bind::<Nullable<Timestamptz>, _>(after.map(|after| after.received_at))
    .bind::<Nullable<Text>, _>(after.map(|after| &after.id))
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// The newest `limit` events of a subscription, by Stripe's time, newest first.
pub async fn of_subscription(conn: &mut Conn, subscription: &str, limit: i64) -> QueryResult<Vec<Listed>> {
    diesel::sql_query(select_listed!(
        "subscription_id = $1",
        "subscription_id = $1",
        "ORDER BY created DESC NULLS LAST, received_at DESC, id DESC LIMIT $2"
    ))
    .bind::<Text, _>(subscription)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// The newest `limit` events of an account, of its customers and of its subscriptions, by Stripe's time, newest first.
pub async fn of_account(
    conn: &mut Conn,
    account: Uuid,
    customers: &[String],
    subscriptions: &[&str],
    limit: i64,
) -> QueryResult<Vec<Listed>> {
    diesel::sql_query(select_listed!(
        "(account_id = $1 OR customer_id = ANY ($2) OR subscription_id = ANY ($3))",
        "(customer_id = ANY ($2) OR subscription_id = ANY ($3))",
        "ORDER BY created DESC NULLS LAST, received_at DESC, id DESC LIMIT $4"
    ))
    .bind::<SqlUuid, _>(account)
    .bind::<Array<Text>, _>(customers)
    .bind::<Array<Text>, _>(subscriptions)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}
