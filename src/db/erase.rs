//! Queries that replace what is stored of one customer.

use diesel::QueryResult;
use diesel::prelude::QueryableByName;
use diesel::sql_types::{Array, BigInt, Text};
use diesel_async::RunQueryDsl;

use super::Conn;

/// A stored payload, by the key of its row.
#[derive(Debug, QueryableByName)]
pub struct StoredEvent {
    /// The event's id.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// JSON text.
    #[diesel(sql_type = Text)]
    pub payload: String,
}

/// The stored payload of a failed attempt.
#[derive(Debug, QueryableByName)]
pub struct StoredFailure {
    /// The row's id.
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    /// JSON text.
    #[diesel(sql_type = Text)]
    pub payload: String,
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    id: String,
}

#[derive(QueryableByName)]
struct RowId {
    #[diesel(sql_type = BigInt)]
    id: i64,
}

/// The customer's subscriptions, by Stripe's ids: those that have a row, and those that only events name.
pub async fn subscription_ids(conn: &mut Conn, customer_id: &str) -> QueryResult<Vec<String>> {
    let ids: Vec<Id> = diesel::sql_query(
        "SELECT stripe_subscription_id AS id FROM subscriptions
         WHERE stripe_customer_id = $1 AND stripe_subscription_id IS NOT NULL
         UNION SELECT subscription_id FROM stripe_events WHERE customer_id = $1 AND subscription_id IS NOT NULL
         UNION SELECT subscription_id FROM event_failures WHERE customer_id = $1 AND subscription_id IS NOT NULL",
    )
    .bind::<Text, _>(customer_id)
    .load(conn)
    .await?;
    Ok(ids.into_iter().map(|row| row.id).collect())
}

/// The events of the customer or its subscriptions.
pub async fn event_ids(conn: &mut Conn, customer_id: &str, subscription_ids: &[String]) -> QueryResult<Vec<String>> {
    // Two look-ups, each by an index of its own.
    let ids: Vec<Id> = diesel::sql_query(
        "SELECT id FROM stripe_events WHERE customer_id = $1
         UNION SELECT id FROM stripe_events WHERE subscription_id = ANY ($2)
         ORDER BY id",
    )
    .bind::<Text, _>(customer_id)
    .bind::<Array<Text>, _>(subscription_ids)
    .load(conn)
    .await?;
    Ok(ids.into_iter().map(|row| row.id).collect())
}

/// The payloads of events, locked until the transaction ends.
pub async fn events(conn: &mut Conn, ids: &[String]) -> QueryResult<Vec<StoredEvent>> {
    diesel::sql_query(
        "SELECT id, payload::text AS payload FROM stripe_events WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE",
    )
    .bind::<Array<Text>, _>(ids)
    .load(conn)
    .await
}

/// Replaces the payloads of events.
pub async fn set_event_payloads(conn: &mut Conn, ids: &[String], payloads: &[String]) -> QueryResult<usize> {
    diesel::sql_query(
        "UPDATE stripe_events SET payload = new.payload::jsonb FROM unnest($1, $2) AS new (id, payload)
         WHERE stripe_events.id = new.id",
    )
    .bind::<Array<Text>, _>(ids)
    .bind::<Array<Text>, _>(payloads)
    .execute(conn)
    .await
}

/// The failed attempts at events of the customer or its subscriptions that kept a payload.
pub async fn failure_ids(conn: &mut Conn, customer_id: &str, subscription_ids: &[String]) -> QueryResult<Vec<i64>> {
    let ids: Vec<RowId> = diesel::sql_query(
        "SELECT id FROM event_failures WHERE customer_id = $1 AND payload IS NOT NULL
         UNION SELECT id FROM event_failures WHERE subscription_id = ANY ($2) AND payload IS NOT NULL
         ORDER BY id",
    )
    .bind::<Text, _>(customer_id)
    .bind::<Array<Text>, _>(subscription_ids)
    .load(conn)
    .await?;
    Ok(ids.into_iter().map(|row| row.id).collect())
}

/// The payloads of failed attempts.
pub async fn failures(conn: &mut Conn, ids: &[i64]) -> QueryResult<Vec<StoredFailure>> {
    diesel::sql_query("SELECT id, payload::text AS payload FROM event_failures WHERE id = ANY ($1) ORDER BY id")
        .bind::<Array<BigInt>, _>(ids)
        .load(conn)
        .await
}

/// Replaces the payloads of failed attempts.
pub async fn set_failure_payloads(conn: &mut Conn, ids: &[i64], payloads: &[String]) -> QueryResult<usize> {
    diesel::sql_query(
        "UPDATE event_failures SET payload = new.payload::jsonb FROM unnest($1, $2) AS new (id, payload)
         WHERE event_failures.id = new.id",
    )
    .bind::<Array<BigInt>, _>(ids)
    .bind::<Array<Text>, _>(payloads)
    .execute(conn)
    .await
}

/// Removes the links to invoice pages from the subscriptions' recorded changes; returns how many changes had one.
pub async fn clear_invoice_urls_of_changes(conn: &mut Conn, subscription_ids: &[String]) -> QueryResult<usize> {
    // `||` of SQL's null is null: a first row's `before` stays absent.
    diesel::sql_query(
        "UPDATE subscription_changes
         SET before = before || '{\"latest_invoice_url\": null}', after = after || '{\"latest_invoice_url\": null}'
         WHERE stripe_subscription_id = ANY ($1)
           AND (before ->> 'latest_invoice_url' IS NOT NULL OR after ->> 'latest_invoice_url' IS NOT NULL)",
    )
    .bind::<Array<Text>, _>(subscription_ids)
    .execute(conn)
    .await
}
