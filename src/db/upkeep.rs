//! Queries of the jobs: what was never recorded, what can be replayed, and what is old enough to go.

use diesel::QueryResult;
use diesel::sql_types::{Array, BigInt, Text};
use diesel_async::RunQueryDsl;

use super::Conn;

#[derive(diesel::QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    id: String,
}

fn ids(rows: Vec<Id>) -> Vec<String> {
    rows.into_iter().map(|row| row.id).collect()
}

/// Those of these events that have no idempotency row.
pub async fn unrecorded(conn: &mut Conn, event_ids: &[String]) -> QueryResult<Vec<String>> {
    diesel::sql_query(
        "SELECT id FROM unnest($1) AS given (id)
         WHERE NOT EXISTS (SELECT FROM stripe_events WHERE stripe_events.id = given.id)",
    )
    .bind::<Array<Text>, _>(event_ids)
    .load(conn)
    .await
    .map(ids)
}

/// The events that have only ever failed and whose payload is here, in the order in which they are to be applied.
pub async fn failed_ids(conn: &mut Conn) -> QueryResult<Vec<String>> {
    diesel::sql_query(
        "SELECT event_id AS id FROM event_failures
         WHERE payload IS NOT NULL
           AND NOT EXISTS (SELECT FROM stripe_events WHERE stripe_events.id = event_failures.event_id)
         GROUP BY event_id ORDER BY min(created), min(event_failures.id)",
    )
    .load(conn)
    .await
    .map(ids)
}

/// The parked events, in the order in which they are to be applied: invoices last, since they need their
/// subscription's row.
pub async fn parked_ids(conn: &mut Conn) -> QueryResult<Vec<String>> {
    diesel::sql_query(
        "SELECT id FROM stripe_events WHERE outcome = 'parked'
         ORDER BY type LIKE 'invoice.%', created, received_at, id",
    )
    .load(conn)
    .await
    .map(ids)
}

/// Whether an event about this Stripe subscription is parked.
pub async fn is_parked(conn: &mut Conn, stripe_subscription_id: &str) -> QueryResult<bool> {
    let parked: Vec<Id> =
        diesel::sql_query("SELECT id FROM stripe_events WHERE outcome = 'parked' AND subscription_id = $1 LIMIT 1")
            .bind::<Text, _>(stripe_subscription_id)
            .load(conn)
            .await?;
    Ok(!parked.is_empty())
}

/// Deletes at most `limit` failures that are older than `age_secs`; returns how many. Those of a parked event stay.
///
/// Younger failures of the same events are opened, since one of them is now the first.
pub async fn delete_failures(conn: &mut Conn, age_secs: i64, limit: i64) -> QueryResult<usize> {
    let deleted: Vec<Id> = diesel::sql_query(
        "WITH deleted AS (
             DELETE FROM event_failures WHERE id IN (
                 SELECT id FROM event_failures failure
                 WHERE failed_at < now() - $1 * interval '1 second'
                   AND NOT EXISTS (SELECT FROM stripe_events
                                   WHERE stripe_events.id = failure.event_id AND outcome = 'parked')
                 ORDER BY failed_at LIMIT $2)
             RETURNING event_id
         ), opened AS (
             UPDATE event_failures SET is_open = true
             WHERE event_id IN (SELECT event_id FROM deleted) AND failed_at >= now() - $1 * interval '1 second'
               AND NOT is_open
         )
         SELECT event_id AS id FROM deleted",
    )
    .bind::<BigInt, _>(age_secs)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await?;
    Ok(deleted.len())
}

/// Deletes at most `limit` idempotency rows that were received more than `age_secs` ago; returns how many.
///
/// Never a parked one; and none of which a failure is left, since that would look as if the event had only ever failed.
pub async fn delete_events(conn: &mut Conn, age_secs: i64, limit: i64) -> QueryResult<usize> {
    diesel::sql_query(
        "DELETE FROM stripe_events WHERE id IN (
             SELECT id FROM stripe_events event
             WHERE received_at < now() - $1 * interval '1 second' AND outcome <> 'parked'
               AND NOT EXISTS (SELECT FROM event_failures WHERE event_id = event.id)
             ORDER BY received_at, id LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind::<BigInt, _>(age_secs)
    .bind::<BigInt, _>(limit)
    .execute(conn)
    .await
}
