//! Advisory locks, for work that one replica does at a time.
//!
//! PostgreSQL keeps one set of advisory locks for each database. Installations in several schemas of one database mix
//! their schema into the number of a lock, so that none waits for another's.

use diesel::QueryResult;
use diesel::sql_types::{Bool, Text};
use diesel_async::RunQueryDsl;

use super::Conn;

/// The lock of the replica that pushes changes.
pub const PUSH: &str = "push of changes";

/// Takes the lock `name` of this schema until the transaction ends; `false` if another session holds it.
///
/// # Errors
/// If the database does not answer.
pub async fn try_hold(conn: &mut Conn, name: &str) -> QueryResult<bool> {
    #[derive(diesel::QueryableByName)]
    struct Held {
        #[diesel(sql_type = Bool)]
        held: bool,
    }
    let query = "SELECT pg_try_advisory_xact_lock(hashtextextended(current_schema()::text || ' ' || $1, 0)) AS held";
    let held: Held = diesel::sql_query(query).bind::<Text, _>(name).get_result(conn).await?;
    Ok(held.held)
}
