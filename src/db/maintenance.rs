//! Queries of the jobs: what was never recorded, what can be replayed, and what is old enough to go.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::listing::is_first_of_failing_event;
use super::parked::{After, is_of_invoice, is_placeable};

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

/// A stored event that can be replayed.
#[derive(Clone, Debug, diesel::QueryableByName)]
pub struct Candidate {
    /// The event's id.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// Stripe's time of the event; the epoch if there is none.
    #[diesel(sql_type = Timestamptz)]
    pub created: DateTime<Utc>,
    /// Candidates with the same turn are applied one after the other.
    #[diesel(sql_type = Text)]
    pub turn: String,
}

/// What restricts the candidates.
#[derive(Clone, Debug, Default)]
pub struct Restriction {
    /// Events of this type.
    pub event_type: Option<String>,
    /// Events that came in the last so many seconds.
    pub since_secs: Option<i64>,
}

/// At most `limit` of the events that have only ever failed and whose payload is here, oldest first, behind `after`. An
/// event came when it failed for the first time.
pub async fn failed_page(
    conn: &mut Conn,
    restriction: &Restriction,
    after: &After,
    limit: i64,
) -> QueryResult<Vec<Candidate>> {
    diesel::sql_query(concat!(
        "SELECT event_id AS id, COALESCE(created, 'epoch') AS created,
                COALESCE(subscription_id, customer_id, event_id) AS turn
         FROM event_failures failure
         WHERE is_open AND (COALESCE(created, 'epoch'), event_id) > ($1, $2)
           AND ($3 IS NULL OR type = $3) AND ($4 IS NULL OR failed_at >= now() - $4 * interval '1 second')
           AND (",
        is_first_of_failing_event!(),
        ") AND EXISTS (SELECT FROM event_failures stored
                       WHERE stored.event_id = failure.event_id AND stored.payload IS NOT NULL)
         ORDER BY COALESCE(created, 'epoch'), event_id LIMIT $5"
    ))
    .bind::<Timestamptz, _>(after.0)
    .bind::<Text, _>(&after.1)
    .bind::<Nullable<Text>, _>(restriction.event_type.as_deref())
    .bind::<Nullable<BigInt>, _>(restriction.since_secs)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// At most `limit` of the parked events that look as if they could be placed, oldest first, behind `after`: those of
/// invoices, or all others.
pub async fn parked_page(
    conn: &mut Conn,
    are_invoices: bool,
    restriction: &Restriction,
    after: &After,
    limit: i64,
) -> QueryResult<Vec<Candidate>> {
    diesel::sql_query(concat!(
        "SELECT id, created, COALESCE(customer_id, subscription_id, id) AS turn
         FROM stripe_events event
         WHERE outcome = 'parked' AND (created, id) > ($1, $2) AND (",
        is_of_invoice!(),
        ") = $3
           AND ($4 IS NULL OR type = $4) AND ($5 IS NULL OR received_at >= now() - $5 * interval '1 second')
           AND ",
        // Whether a connected account is trusted to name accounts, its attempt decides.
        is_placeable!("true"),
        " ORDER BY created, id LIMIT $6"
    ))
    .bind::<Timestamptz, _>(after.0)
    .bind::<Text, _>(&after.1)
    .bind::<Bool, _>(are_invoices)
    .bind::<Nullable<Text>, _>(restriction.event_type.as_deref())
    .bind::<Nullable<BigInt>, _>(restriction.since_secs)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// How many events are parked.
pub async fn parked_count(conn: &mut Conn, restriction: &Restriction) -> QueryResult<i64> {
    #[derive(diesel::QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let count: Count = diesel::sql_query(
        "SELECT count(*) AS count FROM stripe_events
         WHERE outcome = 'parked' AND ($1 IS NULL OR type = $1)
           AND ($2 IS NULL OR received_at >= now() - $2 * interval '1 second')",
    )
    .bind::<Nullable<Text>, _>(restriction.event_type.as_deref())
    .bind::<Nullable<BigInt>, _>(restriction.since_secs)
    .get_result(conn)
    .await?;
    Ok(count.count)
}

/// These events as candidates, in the order of `ids`. One that is not stored has a turn of its own.
pub async fn candidates(conn: &mut Conn, ids: &[String]) -> QueryResult<Vec<Candidate>> {
    diesel::sql_query(
        "SELECT given.id, timestamptz 'epoch' AS created,
                COALESCE((SELECT COALESCE(subscription_id, customer_id) FROM stripe_events
                          WHERE stripe_events.id = given.id),
                         (SELECT COALESCE(subscription_id, customer_id) FROM event_failures
                          WHERE event_id = given.id ORDER BY event_failures.id DESC LIMIT 1),
                         given.id) AS turn
         FROM unnest($1) WITH ORDINALITY AS given (id, number) ORDER BY number",
    )
    .bind::<Array<Text>, _>(ids)
    .load(conn)
    .await
}

/// Those of these Stripe subscriptions of which an event is parked. One index probe for each.
pub async fn parked_subscriptions(conn: &mut Conn, stripe_subscription_ids: &[&str]) -> QueryResult<Vec<String>> {
    diesel::sql_query(
        "SELECT given AS id FROM unnest($1) AS given
         WHERE (SELECT true FROM stripe_events
                WHERE outcome = 'parked' AND subscription_id >= given AND subscription_id <= given
                ORDER BY subscription_id, created, id LIMIT 1)",
    )
    .bind::<Array<Text>, _>(stripe_subscription_ids)
    .load(conn)
    .await
    .map(ids)
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
