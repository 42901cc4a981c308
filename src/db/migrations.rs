//! The embedded migrations: running them, and whether any is pending.

use anyhow::{Context, Result, anyhow};
use diesel::QueryResult;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::sql_types::{BigInt, Bool, Nullable, Text};
use diesel_async::async_connection_wrapper::AsyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::Conn;
use super::connect::Target;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Any number that no other user of advisory locks on this database uses: "subledg" in ASCII.
const LOCK: i64 = 0x73_75_62_6c_65_64_67;

/// Runs the pending migrations and returns their names. Several at once wait for each other.
///
/// # Errors
/// Where the database is out of reach or a migration fails.
pub async fn run(target: &Target) -> Result<Vec<String>> {
    let mut conn = target.connect_unbounded().await.context("cannot reach the database")?;
    // Held by the session; it ends with the connection, also when this process is killed.
    diesel::sql_query("SELECT pg_advisory_lock($1)").bind::<BigInt, _>(LOCK).execute(&mut conn).await?;
    // diesel's harness is synchronous; it must not block a worker of the runtime.
    tokio::task::spawn_blocking(move || {
        let mut conn = AsyncConnectionWrapper::<AsyncPgConnection>::from(conn);
        let versions = conn.run_pending_migrations(MIGRATIONS).map_err(|error| anyhow!(error))?;
        Ok(versions.iter().map(ToString::to_string).collect())
    })
    .await?
}

/// Whether a migration of this program has not run on this database.
pub async fn is_pending(conn: &mut Conn) -> QueryResult<bool> {
    #[derive(diesel::QueryableByName)]
    struct Table {
        #[diesel(sql_type = Nullable<Text>)]
        name: Option<String>,
    }
    #[derive(diesel::QueryableByName)]
    struct Applied {
        #[diesel(sql_type = Bool)]
        all: bool,
    }
    let table: Table =
        diesel::sql_query("SELECT to_regclass('__diesel_schema_migrations')::text AS name").get_result(conn).await?;
    if table.name.is_none() {
        return Ok(true);
    }
    let applied: Applied =
        diesel::sql_query("SELECT $1 <@ array_agg(version::text) IS TRUE AS all FROM __diesel_schema_migrations")
            .bind::<diesel::sql_types::Array<Text>, _>(versions()?)
            .get_result(conn)
            .await?;
    Ok(!applied.all)
}

fn versions() -> QueryResult<Vec<String>> {
    let migrations: Vec<Box<dyn Migration<Pg>>> =
        MIGRATIONS.migrations().map_err(diesel::result::Error::QueryBuilderError)?;
    Ok(migrations.iter().map(|migration| migration.name().version().to_string()).collect())
}
