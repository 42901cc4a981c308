//! Locks on names that may have no row yet.

use diesel::QueryResult;
use diesel::sql_types::{Array, BigInt};
use diesel_async::RunQueryDsl;
use sha2::{Digest, Sha256};

use super::Conn;
use super::cached::Cached;

/// Waits for, and holds until the transaction ends, a lock on each of `names`.
///
/// Always taken in the order of the names (accounts, customers, subscriptions), so that two transactions that share
/// names wait for each other instead of deadlocking; also where one that holds a customer comes upon further
/// subscriptions of it.
pub async fn hold(conn: &mut Conn, names: &[String]) -> QueryResult<()> {
    let mut names: Vec<&String> = names.iter().collect();
    names.sort_unstable();
    let keys: Vec<i64> = names.into_iter().map(|name| key(name)).collect();
    let lock = diesel::sql_query("SELECT pg_advisory_xact_lock(key) FROM unnest($1) AS key");
    Cached(lock.bind::<Array<BigInt>, _>(keys)).execute(conn).await.map(|_| ())
}

/// The number of the lock that a transaction holds that both records this event and locks rows for it.
pub(super) fn of_event(id: &str) -> i64 {
    key(&format!("event {id}"))
}

/// The number of the lock of the replica that pushes changes.
pub(super) fn of_push() -> i64 {
    key("push of changes")
}

/// The lock's number. Two names with the same one merely wait for each other.
fn key(name: &str) -> i64 {
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().take(8).fold(0, |key, byte| (key << 8) | i64::from(*byte))
}
