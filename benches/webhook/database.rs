//! The private PostgreSQL, a process of its own, and what is asked of it.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use subledger::db::connect::Target;
use subledger::db::migrations;
use subledger::postgres::PrivatePostgres;
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls};

/// What must be on, or the figures would be of something that nobody runs.
const DURABILITY: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

const FILL: &str = "
    INSERT INTO accounts (id, name, stripe_customer_id)
        SELECT md5(n::text)::uuid, 'Account ' || n, 'cus_' || lpad(n::text, 14, '0') FROM generate_series(1, $COUNT) n;
    INSERT INTO subscriptions (account_id, plan, status, stripe_subscription_id, stripe_customer_id, stripe_price_id,
            seat_limit, current_period_start, current_period_end, last_event_id, last_event_type, last_event_created)
        SELECT id, 'team', 'active', 'sub_' || lpad(substr(stripe_customer_id, 5), 24, '0'), stripe_customer_id,
            'price_Bench', 8, '2026-11-01Z', '2026-12-01Z', 'evt_Bench', 'customer.subscription.created', '2026-11-01Z'
        FROM accounts;
    VACUUM ANALYZE";

/// Tables that hold the same and have no index but a primary key.
const PLAIN_TABLES: &str = "
    CREATE TABLE plain_stripe_events
        (LIKE stripe_events INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION, PRIMARY KEY (id));
    CREATE TABLE plain_subscriptions (LIKE subscriptions INCLUDING DEFAULTS, PRIMARY KEY (stripe_subscription_id));
    INSERT INTO plain_subscriptions SELECT * FROM subscriptions;
    VACUUM ANALYZE plain_subscriptions";

/// PostgreSQL, and a connection to it.
pub struct Database {
    dir: PathBuf,
    postgres: PrivatePostgres,
    client: Client,
    runtime: Runtime,
    /// What was received before is not looked at.
    mark: String,
}

impl Database {
    /// A new one beneath `dir`, migrated and empty, or the one that is there.
    pub fn start(dir: &Path) -> Result<Self> {
        let postgres = PrivatePostgres::start(dir)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(migrations::run(&Target::parse(&postgres.url())?))?;
        let (client, connection) = runtime.block_on(tokio_postgres::connect(&postgres.url(), NoTls))?;
        runtime.spawn(connection);
        let mut database = Self { dir: dir.to_owned(), postgres, client, runtime, mark: String::new() };
        database.mark_now()?;
        Ok(database)
    }

    /// The same one, stopped and started again.
    pub fn restarted(self) -> Result<Self> {
        let dir = self.dir.clone();
        self.stop()?;
        Self::start(&dir)
    }

    pub fn url(&self) -> String {
        self.postgres.url()
    }

    pub fn stop(self) -> Result<()> {
        drop(self.client);
        self.postgres.stop()
    }

    /// Makes subscriptions, each of an account and a customer of its own.
    pub fn fill(&mut self, subscriptions: u64) -> Result<()> {
        self.execute_each(&FILL.replace("$COUNT", &subscriptions.to_string()))
    }

    /// Makes `plain_stripe_events` and `plain_subscriptions` after the filled tables.
    pub fn make_plain_tables(&mut self) -> Result<()> {
        self.execute_each(PLAIN_TABLES)
    }

    /// Forgets all events, so that each measurement begins alike.
    pub fn clear(&mut self) -> Result<()> {
        self.execute_each(
            "TRUNCATE stripe_events, plain_stripe_events; VACUUM subscriptions; VACUUM plain_subscriptions; CHECKPOINT",
        )
    }

    /// Looks only at what is received from now on.
    pub fn mark_now(&mut self) -> Result<()> {
        self.mark = self.text("SELECT clock_timestamp()::text")?;
        Ok(())
    }

    /// How many events are recorded, all of them with one of these outcomes.
    pub fn events(&mut self, outcomes: &[&str]) -> Result<u64> {
        let mark = self.mark.clone();
        let count = "SELECT count(*) FROM stripe_events WHERE received_at >= $1::text::timestamptz";
        let with_outcome = self.count(&format!("{count} AND outcome = ANY ($2)"), &[&mark, &outcomes])?;
        ensure!(with_outcome == self.count(count, &[&mark])?, "not all events have the outcome {outcomes:?}");
        Ok(with_outcome)
    }

    /// How many events are in the table with a primary key alone.
    pub fn plain_events(&mut self) -> Result<u64> {
        self.count("SELECT count(*) FROM plain_stripe_events", &[])
    }

    /// How many subscriptions show the newest of their recorded events.
    pub fn newest_shown(&mut self) -> Result<u64> {
        let mark = self.mark.clone();
        self.count(
            "SELECT count(*) FROM subscriptions JOIN (SELECT DISTINCT ON (subscription_id) id FROM stripe_events
                 WHERE received_at >= $1::text::timestamptz
                 ORDER BY subscription_id, created DESC) newest ON newest.id = subscriptions.last_event_id",
            &[&mark],
        )
    }

    /// How many transactions were ended by a deadlock so far. Waits until everybody else has gone: what a session has
    /// seen is counted at its end, at the latest.
    pub fn deadlocks(&mut self) -> Result<u64> {
        let others = "SELECT count(*) FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.count(others, &[])? > 0 {
            ensure!(Instant::now() < deadline, "somebody else is still connected");
            thread::sleep(Duration::from_millis(20));
        }
        self.count("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()", &[])
    }

    /// The version, and that nothing is made faster at the price of durability.
    pub fn settings(&mut self) -> Result<String> {
        for setting in DURABILITY {
            ensure!(self.text(&format!("SHOW {setting}"))? == "on", "{setting} is off");
        }
        let version = self.text("SELECT split_part(current_setting('server_version'), ' ', 1)")?;
        Ok(format!("PostgreSQL {version} ({} on)", DURABILITY.join(", ")))
    }

    /// Where the server's programs are.
    pub fn program_dir(&mut self) -> Result<PathBuf> {
        Ok(self.text("SELECT setting FROM pg_config WHERE name = 'BINDIR'")?.into())
    }

    /// Statements that are one transaction, unless they say otherwise.
    pub fn execute(&mut self, statements: &str) -> Result<()> {
        self.runtime.block_on(self.client.batch_execute(statements)).with_context(|| statements.to_owned())
    }

    /// Statements that are each a transaction, since some of them want to be alone.
    pub fn execute_each(&mut self, statements: &str) -> Result<()> {
        statements.split(';').try_for_each(|statement| self.execute(statement))
    }

    /// The one text that a query answers.
    pub fn text(&mut self, query: &str) -> Result<String> {
        Ok(self.runtime.block_on(self.client.query_one(query, &[]))?.try_get(0)?)
    }

    fn count(&mut self, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        let count: i64 = self.runtime.block_on(self.client.query_one(query, parameters))?.try_get(0)?;
        Ok(u64::try_from(count)?)
    }
}
