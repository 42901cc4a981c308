//! Queries that fill the columns of rows that a server of an earlier version wrote.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;

use super::Conn;
use super::parked::is_of_invoice;
use super::schema::subscriptions as table;

/// A row of a Stripe subscription whose newer columns are not of the event that it shows.
#[derive(Debug, QueryableByName)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct Outdated {
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    pub stripe_subscription_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub plan: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub last_event_id: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub latest_invoice_event_created: Option<DateTime<Utc>>,
    /// The account's.
    #[diesel(sql_type = Nullable<Text>)]
    pub local_plan: Option<String>,
    /// The stored event that the row shows.
    #[diesel(sql_type = Nullable<Text>)]
    pub payload: Option<String>,
    /// The stored event that the row's latest invoice shows.
    #[diesel(sql_type = Nullable<Text>)]
    pub invoice_payload: Option<String>,
}

/// The columns that are filled.
#[derive(AsChangeset, Debug, Default)]
#[diesel(table_name = table)]
#[diesel(treat_none_as_null = true)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct Filled {
    pub plan_source: Option<String>,
    pub stripe_created: Option<DateTime<Utc>>,
    pub cancellation_reason: Option<String>,
    pub cancellation_feedback: Option<String>,
    pub metadata: Value,
    pub items: Value,
    pub items_complete: bool,
    pub livemode: Option<bool>,
    pub connect_account: Option<String>,
    pub projected_event_id: Option<String>,
}

/// The columns of an invoice that are filled.
#[derive(AsChangeset, Debug)]
#[diesel(table_name = table)]
#[diesel(treat_none_as_null = true)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct FilledInvoice {
    pub latest_invoice_created: Option<DateTime<Utc>>,
    pub latest_invoice_url: Option<String>,
    pub next_payment_attempt: Option<DateTime<Utc>>,
}

/// The next outdated rows by id, locked until the transaction ends. Rows that somebody else holds are left out.
pub async fn lock_outdated(conn: &mut Conn, after: Uuid, limit: i64) -> QueryResult<Vec<Outdated>> {
    diesel::sql_query(concat!(
        "SELECT s.id, s.stripe_subscription_id, s.plan, s.last_event_id, s.latest_invoice_event_created, a.local_plan,
                (SELECT payload::text FROM stripe_events WHERE id = s.last_event_id) AS payload,
                (SELECT payload::text FROM stripe_events
                 WHERE subscription_id = s.stripe_subscription_id AND created = s.latest_invoice_event_created
                   AND ",
        is_of_invoice!(),
        " AND payload #>> '{data,object,id}' = s.latest_invoice_id
                 ORDER BY id DESC LIMIT 1) AS invoice_payload
         FROM subscriptions s
         JOIN accounts a ON a.id = s.account_id
         WHERE s.id > $1 AND s.stripe_subscription_id IS NOT NULL
           AND s.last_event_id IS DISTINCT FROM s.projected_event_id
         ORDER BY s.id
         LIMIT $2
         FOR NO KEY UPDATE OF s SKIP LOCKED",
    ))
    .bind::<SqlUuid, _>(after)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// Writes the columns of a row.
pub async fn fill(conn: &mut Conn, id: Uuid, filled: &Filled) -> QueryResult<usize> {
    diesel::update(table::table.find(id)).set(filled).execute(conn).await
}

/// Writes the columns of a row's latest invoice.
pub async fn fill_invoice(conn: &mut Conn, id: Uuid, filled: &FilledInvoice) -> QueryResult<usize> {
    diesel::update(table::table.find(id)).set(filled).execute(conn).await
}
