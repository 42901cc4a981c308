//! How far `serve` has reconciled each connected account by itself.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::Conn;

/// A connected account of which an event is stored.
#[derive(Clone, Debug, PartialEq, QueryableByName)]
pub struct ReconcileAccount {
    /// `acct_…`.
    #[diesel(sql_type = Text)]
    pub connect_account: String,
    /// Every event that Stripe made before this time has been read.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub read_until: Option<DateTime<Utc>>,
    /// Why Stripe refused the last attempt.
    #[diesel(sql_type = Nullable<Text>)]
    pub error: Option<String>,
}

/// At most `limit` connected accounts of which an event is stored, first those that were not attempted for the longest
/// time.
pub async fn next(conn: &mut Conn, limit: i64) -> QueryResult<Vec<ReconcileAccount>> {
    // One look-up in the index for each account, however many events each has.
    diesel::sql_query(
        "WITH RECURSIVE account AS (
             SELECT min(connect_account) AS id FROM stripe_events WHERE connect_account IS NOT NULL
             UNION ALL
             SELECT (SELECT min(connect_account) FROM stripe_events WHERE connect_account > account.id)
             FROM account WHERE account.id IS NOT NULL
         )
         SELECT account.id AS connect_account, state.read_until, state.error
         FROM account LEFT JOIN reconcile_accounts state ON state.connect_account = account.id
         WHERE account.id IS NOT NULL
         ORDER BY state.attempted_at NULLS FIRST, account.id
         LIMIT $1",
    )
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// Records an attempt: the time up to which events were read, which never moves back, or why Stripe refused.
pub async fn record(
    conn: &mut Conn,
    connect_account: &str,
    read_until: Option<DateTime<Utc>>,
    error: Option<&str>,
) -> QueryResult<usize> {
    diesel::sql_query(
        "INSERT INTO reconcile_accounts AS state (connect_account, read_until, attempted_at, error)
         VALUES ($1, $2, now(), $3)
         ON CONFLICT (connect_account) DO UPDATE
         SET read_until = greatest(state.read_until, excluded.read_until), attempted_at = excluded.attempted_at,
             error = excluded.error",
    )
    .bind::<Text, _>(connect_account)
    .bind::<Nullable<Timestamptz>, _>(read_until)
    .bind::<Nullable<Text>, _>(error)
    .execute(conn)
    .await
}
