//! Queries over the state of the push: which changes have yet to be posted to `CHANGES_URL`.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::changes::Change;
use super::locks;

/// An account with changes to push.
#[derive(Clone, Debug, QueryableByName)]
pub struct Queue {
    /// The account.
    #[diesel(sql_type = SqlUuid)]
    pub account_id: Uuid,
    /// Its changes from this id on are yet to be pushed.
    #[diesel(sql_type = BigInt)]
    pub next_change_id: i64,
    /// Failed attempts at the next change so far.
    #[diesel(sql_type = Integer)]
    pub attempts: i32,
    /// When it is tried next.
    #[diesel(sql_type = Timestamptz)]
    pub next_attempt_at: DateTime<Utc>,
    /// Why the last attempt failed.
    #[diesel(sql_type = Nullable<Text>)]
    pub last_error: Option<String>,
}

/// What is yet to be pushed.
#[derive(Clone, Copy, Debug, Default, QueryableByName)]
pub struct Pending {
    /// The number of changes.
    #[diesel(sql_type = BigInt)]
    pub changes: i64,
    /// The number of accounts whose last attempt failed.
    #[diesel(sql_type = BigInt)]
    pub failing_accounts: i64,
}

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    is_so: bool,
}

/// Takes the lock that one replica at a time holds while it pushes, until the transaction ends; false if another
/// replica holds it.
pub async fn try_hold(conn: &mut Conn) -> QueryResult<bool> {
    locks::try_hold(conn, locks::PUSH).await
}

/// Lets the transaction that holds the lock stay open without a statement.
pub async fn allow_idling(conn: &mut Conn) -> QueryResult<usize> {
    diesel::sql_query("SET LOCAL idle_in_transaction_session_timeout = 0").execute(conn).await
}

/// Locks the position until the transaction ends. Queues are made and deleted only under this lock.
pub async fn lock_position(conn: &mut Conn) -> QueryResult<usize> {
    diesel::sql_query("SELECT FROM change_push FOR UPDATE").execute(conn).await
}

/// Whether there are settled changes behind the position. Asked without a lock, so that idle polling writes nothing.
pub async fn has_news(conn: &mut Conn) -> QueryResult<bool> {
    let answer: Answer = diesel::sql_query(
        "SELECT EXISTS (SELECT FROM committed_changes WHERE id > (SELECT position FROM change_push)) AS is_so",
    )
    .get_result(conn)
    .await?;
    Ok(answer.is_so)
}

/// Moves the position over at most `limit` settled changes and queues their accounts; returns whether it moved.
pub async fn advance(conn: &mut Conn, limit: i64) -> QueryResult<bool> {
    let moved = diesel::sql_query(
        "WITH batch AS (
             SELECT id, account_id FROM committed_changes
             WHERE id > (SELECT position FROM change_push) ORDER BY id LIMIT $1
         ), queued AS (
             INSERT INTO change_push_accounts (account_id, next_change_id)
             SELECT account_id, min(id) FROM batch GROUP BY account_id
             ON CONFLICT (account_id) DO NOTHING
         )
         UPDATE change_push SET position = last FROM (SELECT max(id) AS last FROM batch) AS batch
         WHERE last IS NOT NULL",
    )
    .bind::<BigInt, _>(limit)
    .execute(conn)
    .await?;
    Ok(moved > 0)
}

/// At most `limit` accounts that are due, the longest waiting first, without those in `except`: such as failed last
/// time, or the others.
pub async fn due(conn: &mut Conn, has_failed: bool, except: &[Uuid], limit: i64) -> QueryResult<Vec<Queue>> {
    diesel::sql_query(
        "SELECT account_id, next_change_id, attempts, next_attempt_at, last_error FROM change_push_accounts
         WHERE next_attempt_at <= now() AND (attempts > 0) = $1 AND account_id <> ALL ($2)
         ORDER BY next_attempt_at LIMIT $3",
    )
    .bind::<Bool, _>(has_failed)
    .bind::<Array<SqlUuid>, _>(except)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// At most `limit` changes of the queue, in their order.
pub async fn next_changes(conn: &mut Conn, queue: &Queue, limit: i64) -> QueryResult<Vec<Change>> {
    diesel::sql_query(
        "SELECT id, subscription_id, account_id, stripe_subscription_id, event_id, kinds, before, after, changed_at
         FROM subscription_changes
         WHERE account_id = $1 AND id BETWEEN $2 AND (SELECT position FROM change_push) ORDER BY id LIMIT $3",
    )
    .bind::<SqlUuid, _>(queue.account_id)
    .bind::<BigInt, _>(queue.next_change_id)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// Whether an earlier change of the same subscription waits in another account's queue: the subscription has moved.
pub async fn waits_elsewhere(conn: &mut Conn, change: &Change) -> QueryResult<bool> {
    let answer: Answer = diesel::sql_query(
        "SELECT EXISTS (SELECT FROM subscription_changes earlier
                        JOIN change_push_accounts queue USING (account_id)
                        WHERE earlier.subscription_id = $1 AND earlier.id < $2 AND earlier.account_id <> $3
                          AND earlier.id >= queue.next_change_id) AS is_so",
    )
    .bind::<SqlUuid, _>(change.subscription_id)
    .bind::<BigInt, _>(change.id)
    .bind::<SqlUuid, _>(change.account_id)
    .get_result(conn)
    .await?;
    Ok(answer.is_so)
}

/// Puts the next attempt off, without counting one. Returns 0 if the queue is not as it was read.
pub async fn postpone(conn: &mut Conn, queue: &Queue, secs: i32) -> QueryResult<usize> {
    diesel::sql_query(
        "UPDATE change_push_accounts SET next_attempt_at = now() + $3 * interval '1 second'
         WHERE account_id = $1 AND next_change_id = $2",
    )
    .bind::<SqlUuid, _>(queue.account_id)
    .bind::<BigInt, _>(queue.next_change_id)
    .bind::<Integer, _>(secs)
    .execute(conn)
    .await
}

/// Records that the queue's changes up to `id` were delivered. Returns 0 if the queue is not as it was read.
pub async fn delivered(conn: &mut Conn, queue: &Queue, id: i64) -> QueryResult<usize> {
    diesel::sql_query(
        "UPDATE change_push_accounts
         SET next_change_id = $3 + 1, attempts = 0, last_error = NULL, next_attempt_at = now()
         WHERE account_id = $1 AND next_change_id = $2",
    )
    .bind::<SqlUuid, _>(queue.account_id)
    .bind::<BigInt, _>(queue.next_change_id)
    .bind::<BigInt, _>(id)
    .execute(conn)
    .await
}

/// Records a failed attempt; the next one is after `pause_secs`.
pub async fn failed(conn: &mut Conn, queue: &Queue, pause_secs: i32, error: &str) -> QueryResult<usize> {
    diesel::sql_query(
        "UPDATE change_push_accounts
         SET attempts = attempts + 1, last_error = $4, next_attempt_at = now() + $3 * interval '1 second'
         WHERE account_id = $1 AND next_change_id = $2",
    )
    .bind::<SqlUuid, _>(queue.account_id)
    .bind::<BigInt, _>(queue.next_change_id)
    .bind::<Integer, _>(pause_secs)
    .bind::<Text, _>(error)
    .execute(conn)
    .await
}

/// Deletes the account's queue if nothing is left in it. To be called under the lock of the position.
pub async fn delete_if_empty(conn: &mut Conn, account: Uuid) -> QueryResult<usize> {
    diesel::sql_query(
        "DELETE FROM change_push_accounts queue WHERE account_id = $1
           AND NOT EXISTS (SELECT FROM subscription_changes change
                           WHERE change.account_id = queue.account_id AND id >= next_change_id
                             AND id <= (SELECT position FROM change_push))",
    )
    .bind::<SqlUuid, _>(account)
    .execute(conn)
    .await
}

/// What is yet to be pushed.
pub async fn pending(conn: &mut Conn) -> QueryResult<Pending> {
    diesel::sql_query(
        "SELECT (SELECT count(*) FROM subscription_changes WHERE id > position)
                + (SELECT count(*) FROM change_push_accounts queue
                   JOIN subscription_changes change USING (account_id)
                   WHERE change.id BETWEEN next_change_id AND position) AS changes,
                (SELECT count(*) FROM change_push_accounts WHERE attempts > 0) AS failing_accounts
         FROM change_push",
    )
    .get_result(conn)
    .await
}

/// At most `limit` queues whose last attempt failed, the longest failing first.
pub async fn failing(conn: &mut Conn, limit: i64) -> QueryResult<Vec<Queue>> {
    diesel::sql_query(
        "SELECT account_id, next_change_id, attempts, next_attempt_at, last_error FROM change_push_accounts
         WHERE attempts > 0 ORDER BY attempts DESC, next_attempt_at LIMIT $1",
    )
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// Lets every queue start over now, with the first pause.
pub async fn retry_now(conn: &mut Conn) -> QueryResult<usize> {
    diesel::sql_query("UPDATE change_push_accounts SET attempts = 0, next_attempt_at = now()").execute(conn).await
}

/// Sets the position back, so that changes from `id` on are pushed again. To be called under the lock of the position.
/// Queues that have not come as far as `id` stay.
pub async fn rewind(conn: &mut Conn, id: i64) -> QueryResult<usize> {
    diesel::sql_query(
        "WITH rewound AS (DELETE FROM change_push_accounts WHERE next_change_id >= $1)
         UPDATE change_push SET position = least(position, $1 - 1)",
    )
    .bind::<BigInt, _>(id)
    .execute(conn)
    .await
}
