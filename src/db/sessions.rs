//! Queries over `admin_sessions`.

use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Binary};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::schema::admin_sessions as table;

/// Inserts a session that ends after `lifetime_secs`, by the database's clock.
pub async fn insert(conn: &mut Conn, id_hash: &[u8], lifetime_secs: i64) -> QueryResult<usize> {
    diesel::sql_query("INSERT INTO admin_sessions (id_hash, expires_at) VALUES ($1, now() + $2 * interval '1 second')")
        .bind::<Binary, _>(id_hash)
        .bind::<BigInt, _>(lifetime_secs)
        .execute(conn)
        .await
}

/// The first of these sessions that exists and has not expired.
pub async fn find(conn: &mut Conn, id_hashes: &[&[u8]]) -> QueryResult<Option<Vec<u8>>> {
    table::table
        .filter(table::id_hash.eq_any(id_hashes).and(table::expires_at.gt(diesel::dsl::now)))
        .select(table::id_hash)
        .first(conn)
        .await
        .optional()
}

/// Deletes a session.
pub async fn delete(conn: &mut Conn, id_hash: &[u8]) -> QueryResult<usize> {
    diesel::delete(table::table.find(id_hash)).execute(conn).await
}

/// Deletes all sessions that have expired.
pub async fn delete_expired(conn: &mut Conn) -> QueryResult<usize> {
    diesel::delete(table::table.filter(table::expires_at.le(diesel::dsl::now))).execute(conn).await
}
