//! What this benchmark asks of its private PostgreSQL.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::support::database;

/// What must be on, or the figures would be of something that nobody runs.
const DURABILITY: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

/// Tables that hold the same and have no index but a primary key.
const PLAIN_TABLES: &str = "
    CREATE TABLE plain_stripe_events
        (LIKE stripe_events INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION, PRIMARY KEY (id));
    CREATE TABLE plain_subscriptions (LIKE subscriptions INCLUDING DEFAULTS, PRIMARY KEY (stripe_subscription_id))";

/// Forgets all events.
const FORGET_EVENTS: &str = "TRUNCATE stripe_events, event_notifications, subscription_changes, plain_stripe_events";

pub struct Database {
    pub base: database::Database,
    /// Autovacuum is off, and nothing else analyses or vacuums.
    is_never_analysed: bool,
    /// What was received before is not looked at.
    mark: String,
}

impl Deref for Database {
    type Target = database::Database;

    fn deref(&self) -> &Self::Target {
        &self.base
    }
}

impl DerefMut for Database {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.base
    }
}

impl Database {
    /// A new one beneath `dir`, migrated and empty, or the one that is there.
    pub fn start(dir: &Path) -> Result<Self> {
        database::Database::start(dir)?.try_into()
    }

    pub fn stop(self) -> Result<()> {
        self.base.stop()
    }

    /// Makes `plain_stripe_events` and `plain_subscriptions`, which are empty.
    pub fn make_plain_tables(&mut self) -> Result<()> {
        self.execute_each(PLAIN_TABLES)
    }

    /// Makes subscriptions, in both kinds of tables.
    pub fn fill(&mut self, count: u64) -> Result<()> {
        if self.is_never_analysed {
            self.fill_unanalysed_subscriptions(count)?;
        } else {
            self.fill_subscriptions(count)?;
        }
        self.execute("INSERT INTO plain_subscriptions SELECT * FROM subscriptions")?;
        if self.is_never_analysed { Ok(()) } else { self.execute("VACUUM ANALYZE plain_subscriptions") }
    }

    /// Leaves the planner without statistics from now on.
    pub fn never_analyse(&mut self) -> Result<()> {
        self.is_never_analysed = true;
        self.execute_each("ALTER SYSTEM SET autovacuum = off; SELECT pg_reload_conf()")
    }

    /// Forgets accounts and subscriptions too.
    pub fn empty(&mut self) -> Result<()> {
        self.execute_each(&format!("{FORGET_EVENTS}; TRUNCATE accounts, plain_subscriptions CASCADE"))
    }

    /// Forgets all events, so that each measurement begins alike.
    pub fn clear(&mut self) -> Result<()> {
        self.execute(FORGET_EVENTS)?;
        if !self.is_never_analysed {
            self.execute_each("VACUUM subscriptions; VACUUM plain_subscriptions")?;
        }
        self.execute("CHECKPOINT")
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
}

impl TryFrom<database::Database> for Database {
    type Error = anyhow::Error;

    fn try_from(base: database::Database) -> Result<Self> {
        let mut database = Self { base, is_never_analysed: false, mark: String::new() };
        database.mark_now()?;
        Ok(database)
    }
}
