//! Runs pending migrations beside servers that go on working.
//!
//! A statement that needs a strong lock waits for every transaction that uses the table, and every delivery waits behind
//! it. So it waits for a moment only and gives up. Once the transactions that were in the way have ended it is tried
//! again; until then deliveries go on.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::{Made, Migration, TABLE};
use crate::db::connect::Target;
use crate::db::hosts::chain;
use crate::db::installation::{self, Installation};

/// How long a statement may wait for a lock, and deliveries with it: longer than a delivery takes.
const LOCK_TIMEOUT: &str = "500ms";

/// The same where the table is vacuumed: longer than `deadlock_timeout`, after which PostgreSQL ends an autovacuum that
/// is in the way.
const LOCK_TIMEOUT_OF_VACUUM: &str = "1200ms";

/// How often it is looked whether a transaction that is in the way has ended.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a migration is tried: a backup of a large database takes long.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// How often the log says that something is waited for.
const REMINDER: Duration = Duration::from_secs(10);

/// Runs the pending migrations and returns their names. Several at once wait for each other. Nothing is changed, and no
/// right to change anything is needed, if none is pending.
///
/// # Errors
/// If the database is out of reach or not one that subledger can work on, or a migration fails.
pub async fn run(target: &Target) -> Result<Vec<String>> {
    run_those(target, super::all()).await
}

/// [`run`] for these migrations, in their order.
///
/// # Errors
/// As [`run`].
pub async fn run_those(target: &Target, migrations: &[Migration]) -> Result<Vec<String>> {
    let client = target.connect_plainly().await.context("cannot reach the database")?;
    let mut found = installation::look(&client, target, migrations).await?;
    if found.pending().is_empty() {
        return Ok(Vec::new());
    }
    found.require_migrate()?;
    hold_lock(&client, target).await?;
    // Another process may have run them meanwhile.
    found = installation::look(&client, target, migrations).await?;
    prepare(&client, target, &found).await?;
    let mut ran = Vec::new();
    for migration in found.pending() {
        run_one(&client, target, migration).await?;
        ran.push(migration.name.to_owned());
    }
    Ok(ran)
}

/// Takes the lock of all that migrate this schema. The session holds it, so it ends with the connection, also when this
/// process is killed.
async fn hold_lock(client: &Client, target: &Target) -> Result<()> {
    // Not waited for in the server: `CREATE INDEX CONCURRENTLY` waits for every session that runs a statement.
    let query = "SELECT pg_try_advisory_lock(hashtextextended('subledger migrates ' || $1::text, 0))";
    let schema = target.schema();
    let mut reminder = Reminder::new();
    while !client.query_one(query, &[&schema.as_str()]).await?.get::<_, bool>(0) {
        if reminder.is_due() {
            log::info!("waiting for another process that runs the migrations of the schema {schema}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Makes the schema and the table of the migrations that ran.
async fn prepare(client: &Client, target: &Target, found: &Installation<'_>) -> Result<()> {
    let schema = target.schema();
    if !found.has_schema() {
        client.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {schema}")).await?;
    }
    // As diesel makes it.
    let table = schema.qualify(TABLE);
    client
        .batch_execute(&format!(
            "SET client_min_messages = warning;
             CREATE TABLE IF NOT EXISTS {table} (
                 version VARCHAR(50) PRIMARY KEY NOT NULL,
                 run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
             )"
        ))
        .await?;
    Ok(())
}

/// Runs a migration, again for as long as locks are in its way.
async fn run_one(client: &Client, target: &Target, migration: &Migration) -> Result<()> {
    let name = migration.name;
    let started = Instant::now();
    let mut reminder = Reminder::new();
    let mut lock_timeout = LOCK_TIMEOUT;
    loop {
        let result = if migration.is_transactional {
            in_transaction(client, target, migration, lock_timeout).await
        } else {
            without_transaction(client, target, migration).await
        };
        let Err(error) = result else { return Ok(()) };
        // Fails where the connection is gone, which is what `error` says then.
        client.batch_execute("ROLLBACK").await.ok();
        if !is_in_the_way(&error) {
            return Err(anyhow!(chain(&error))).with_context(|| format!("the migration {name} failed"));
        }
        let first = Users::of(client, target).await?;
        lock_timeout = if first.is_vacuumed { LOCK_TIMEOUT_OF_VACUUM } else { LOCK_TIMEOUT };
        tokio::time::sleep(PAUSE).await;
        while let Some(process) = first.remaining(&Users::of(client, target).await?) {
            let problem = format!("the server's process {process} has a transaction that uses a table");
            if started.elapsed() > PATIENCE {
                bail!("the migration {name} cannot run: {problem}");
            }
            if reminder.is_due() {
                log::info!("the migration {name} waits: {problem}");
            }
            tokio::time::sleep(PAUSE).await;
        }
        if started.elapsed() > PATIENCE {
            bail!("the migration {name} cannot lock its tables");
        }
    }
}

async fn in_transaction(
    client: &Client,
    target: &Target,
    migration: &Migration,
    lock_timeout: &str,
) -> Result<(), Error> {
    client.batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = '{lock_timeout}'")).await?;
    client.batch_execute(migration.up).await?;
    record(client, target, migration).await?;
    client.batch_execute("COMMIT").await
}

/// Each of these statements commits by itself, so all of it may be repeated after a crash at any point.
async fn without_transaction(client: &Client, target: &Target, migration: &Migration) -> Result<(), Error> {
    for made in migration.makes() {
        if let Made::Index { name, .. } = made {
            drop_if_invalid(client, target, name).await?;
        }
    }
    client.batch_execute(migration.up).await?;
    record(client, target, migration).await
}

/// Drops the index if a `CREATE INDEX CONCURRENTLY` was interrupted: it is kept up to date, but never read.
async fn drop_if_invalid(client: &Client, target: &Target, name: &str) -> Result<(), Error> {
    let index = target.schema().qualify(name);
    let query = "SELECT FROM pg_index WHERE indexrelid = to_regclass($1) AND NOT indisvalid";
    if !client.query(query, &[&index]).await?.is_empty() {
        log::info!("the index {index} was not built to its end; it is dropped and built again");
        client.batch_execute(&format!("DROP INDEX CONCURRENTLY {index}")).await?;
    }
    Ok(())
}

async fn record(client: &Client, target: &Target, migration: &Migration) -> Result<(), Error> {
    let insert = format!("INSERT INTO {} (version) VALUES ($1)", target.schema().qualify(TABLE));
    client.execute(&insert, &[&migration.version]).await.map(|_| ())
}

/// Whether somebody else's lock was in the way, so that the same attempt may succeed later.
fn is_in_the_way(error: &Error) -> bool {
    [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE]
        .iter()
        .any(|state| error.code() == Some(state))
}

/// The transactions that use tables of the schema at one moment.
struct Users {
    /// The process of the server, and its transaction.
    transactions: HashSet<(i32, String)>,
    is_vacuumed: bool,
}

impl Users {
    /// Every role can see these locks; when a transaction began it can see of its own sessions only.
    async fn of(client: &Client, target: &Target) -> Result<Self> {
        let rows = client
            .query(
                "SELECT pid, virtualtransaction, bool_or(mode = 'ShareUpdateExclusiveLock')
                 FROM pg_locks JOIN pg_class ON pg_class.oid = relation
                 WHERE granted AND pid <> pg_backend_pid() AND relkind IN ('r', 'v')
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1)
                 GROUP BY 1, 2",
                &[&target.schema().as_str()],
            )
            .await?;
        let (vacuums, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.get(2));
        let transactions = others.iter().map(|row| (row.get(0), row.get(1))).collect();
        Ok(Self { transactions, is_vacuumed: !vacuums.is_empty() })
    }

    /// The process of a transaction that is still there.
    fn remaining(&self, now: &Self) -> Option<i32> {
        self.transactions.intersection(&now.transactions).next().map(|(process, _)| *process)
    }
}

/// When the log is to be told again that something takes long; not within the first moment.
struct Reminder(Instant);

impl Reminder {
    fn new() -> Self {
        Self(Instant::now() + Duration::from_secs(1))
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.0;
        if is_due {
            self.0 = now + REMINDER;
        }
        is_due
    }
}
