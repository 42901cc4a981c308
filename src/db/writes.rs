//! Whether the database takes writes.

use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::sql_types::Bool;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};

use super::Conn;

/// Whether this session can only read: the database is a standby, or was made read-only.
pub async fn is_read_only(conn: &mut Conn) -> QueryResult<bool> {
    diesel::select(sql::<Bool>("current_setting('transaction_read_only')::bool")).get_result(conn).await
}

/// Ends the session. One that began while the database was read-only stays so when the database no longer is.
///
/// # Errors
/// Always where the session has ended, as it should.
pub async fn end_session(conn: &mut Conn) -> QueryResult<()> {
    // That is answered by an error of the server's; the next one shows that the connection is closed.
    conn.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").await.ok();
    conn.batch_execute("SELECT 1").await
}

/// Inserts an event that takes more room than any page has left. To be rolled back.
pub async fn try_insert(conn: &mut Conn) -> QueryResult<usize> {
    diesel::sql_query(
        "INSERT INTO stripe_events (id, type, outcome, livemode, payload)
         SELECT 'probe', 'probe', 'ignored', false, jsonb_agg(md5(random()::text)) FROM generate_series(1, 1000)",
    )
    .execute(conn)
    .await
}
