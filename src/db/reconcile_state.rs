//! How far `serve` has reconciled by itself: a lease, a cursor and the last pass's result, in one row.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Double, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;

/// How long a replica that has died keeps the others from reconciling.
const LEASE_SECS: f64 = 120.0;

/// The longest pause after a pass that failed.
const RETRY_SECS: f64 = 300.0;

/// The state as it is stored.
#[derive(Clone, Debug, Default, PartialEq, QueryableByName)]
pub struct ReconcileState {
    /// Every event that Stripe made before this time has been read.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub read_until: Option<DateTime<Utc>>,
    /// When the last pass began.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub started_at: Option<DateTime<Utc>>,
    /// When a pass last went through.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub succeeded_at: Option<DateTime<Utc>>,
    /// Events that the last pass found and no delivery had brought.
    #[diesel(sql_type = BigInt)]
    pub events_missing: i64,
    /// Those of them that failed.
    #[diesel(sql_type = BigInt)]
    pub events_failed: i64,
    /// Subscriptions whose row is not as Stripe has them, although no event explains it.
    #[diesel(sql_type = BigInt)]
    pub subscriptions_differing: i64,
    /// Why the last pass failed.
    #[diesel(sql_type = Nullable<Text>)]
    pub error: Option<String>,
}

/// What a pass came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassFigures {
    /// Events that Stripe listed.
    pub read: i64,
    /// Those that no delivery had brought.
    pub missing: i64,
    /// Those of the missing ones that failed.
    pub failed: i64,
    /// Subscriptions whose row is not as Stripe has them.
    pub differing: i64,
}

/// The state.
pub async fn find(conn: &mut Conn) -> QueryResult<Option<ReconcileState>> {
    diesel::sql_query(
        "SELECT read_until, started_at, succeeded_at, events_missing, events_failed, subscriptions_differing, error
         FROM reconcile_state",
    )
    .get_result(conn)
    .await
    .optional()
}

/// Begins a pass, unless another replica is at it or the last one began less than `every` ago (after one that failed,
/// at most five minutes). Returns the state if it did.
pub async fn begin(conn: &mut Conn, holder: Uuid, every: Duration) -> QueryResult<Option<ReconcileState>> {
    diesel::sql_query(
        "UPDATE reconcile_state
         SET holder = $1, leased_until = now() + $3 * interval '1 second', started_at = now()
         WHERE (leased_until IS NULL OR leased_until < now())
           AND (started_at IS NULL OR started_at <= now() - interval '1 second'
                * CASE WHEN error IS NULL THEN $2 ELSE least($2, $4) END)
         RETURNING read_until, started_at, succeeded_at, events_missing, events_failed, subscriptions_differing, error",
    )
    .bind::<diesel::sql_types::Uuid, _>(holder)
    .bind::<Double, _>(every.as_secs_f64())
    .bind::<Double, _>(LEASE_SECS)
    .bind::<Double, _>(RETRY_SECS)
    .get_result(conn)
    .await
    .optional()
}

/// Prolongs the lease; whether it was still held.
pub async fn renew(conn: &mut Conn, holder: Uuid) -> QueryResult<bool> {
    let renewed = diesel::sql_query(
        "UPDATE reconcile_state SET leased_until = now() + $2 * interval '1 second' WHERE holder = $1",
    )
    .bind::<diesel::sql_types::Uuid, _>(holder)
    .bind::<Double, _>(LEASE_SECS)
    .execute(conn)
    .await?;
    Ok(renewed == 1)
}

/// Moves the cursor.
pub async fn advance(conn: &mut Conn, holder: Uuid, read_until: DateTime<Utc>) -> QueryResult<usize> {
    diesel::sql_query("UPDATE reconcile_state SET read_until = $2 WHERE holder = $1")
        .bind::<diesel::sql_types::Uuid, _>(holder)
        .bind::<Timestamptz, _>(read_until)
        .execute(conn)
        .await
}

/// Ends a pass; `error` says why it failed.
pub async fn finish(conn: &mut Conn, holder: Uuid, figures: PassFigures, error: Option<&str>) -> QueryResult<usize> {
    diesel::sql_query(
        "UPDATE reconcile_state
         SET holder = NULL, leased_until = NULL, finished_at = now(),
             succeeded_at = CASE WHEN $2 IS NULL THEN now() ELSE succeeded_at END, error = $2,
             events_read = $3, events_missing = $4, events_failed = $5, subscriptions_differing = $6
         WHERE holder = $1",
    )
    .bind::<diesel::sql_types::Uuid, _>(holder)
    .bind::<Nullable<Text>, _>(error)
    .bind::<BigInt, _>(figures.read)
    .bind::<BigInt, _>(figures.missing)
    .bind::<BigInt, _>(figures.failed)
    .bind::<BigInt, _>(figures.differing)
    .execute(conn)
    .await
}
