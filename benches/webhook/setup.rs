//! The private PostgreSQL and the server under test, each a process of its own.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use subledger::postgres::PrivatePostgres;
use subledger::secret::Secret;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

use crate::process::{Totals, Usage};

const SECRET: &str = "whsec_bench";

/// What must be on, or the figures would be of something that nobody runs.
const DURABILITY: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

const STARTED: &str = "listening on http://";

const FILL: &str = "
    INSERT INTO accounts (name, stripe_customer_id)
        SELECT 'Account ' || n, 'cus_' || lpad(n::text, 14, '0') FROM generate_series(1, $COUNT) n;
    INSERT INTO subscriptions (account_id, plan, status, stripe_subscription_id, stripe_customer_id, stripe_price_id,
            seat_limit, current_period_start, current_period_end, last_event_id, last_event_type, last_event_created)
        SELECT id, 'team', 'active', 'sub_' || lpad(substr(stripe_customer_id, 5), 24, '0'), stripe_customer_id,
            'price_Bench', 8, '2026-11-01Z', '2026-12-01Z', 'evt_Bench', 'customer.subscription.created', '2026-11-01Z'
        FROM accounts;
    VACUUM ANALYZE";

/// PostgreSQL, and a connection to it.
pub struct Database {
    postgres: PrivatePostgres,
    client: Client,
    runtime: Runtime,
}

impl Database {
    /// A new and empty one beneath `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        let postgres = PrivatePostgres::start(&dir.join("postgres"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (client, connection) = runtime.block_on(tokio_postgres::connect(&postgres.url(), NoTls))?;
        runtime.spawn(connection);
        Ok(Self { postgres, client, runtime })
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
        // VACUUM wants to be alone.
        FILL.replace("$COUNT", &subscriptions.to_string()).split(';').try_for_each(|statement| self.execute(statement))
    }

    /// Forgets all events, so that each measurement begins alike.
    pub fn clear(&mut self) -> Result<()> {
        ["TRUNCATE stripe_events", "VACUUM subscriptions", "CHECKPOINT"]
            .iter()
            .try_for_each(|statement| self.execute(statement))
    }

    /// How many events are recorded, all of them as applied.
    pub fn events(&mut self) -> Result<u64> {
        ensure!(self.count("SELECT count(*) FROM stripe_events WHERE outcome <> 'applied'")? == 0, "not all applied");
        self.count("SELECT count(*) FROM stripe_events")
    }

    /// How many subscriptions show the newest of their recorded events.
    pub fn newest_shown(&mut self) -> Result<u64> {
        self.count(
            "SELECT count(*) FROM subscriptions JOIN (SELECT DISTINCT ON (subscription_id) id FROM stripe_events
             ORDER BY subscription_id, created DESC) newest ON newest.id = subscriptions.last_event_id",
        )
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

    fn execute(&mut self, statement: &str) -> Result<()> {
        self.runtime.block_on(self.client.batch_execute(statement)).with_context(|| statement.to_owned())
    }

    fn text(&mut self, query: &str) -> Result<String> {
        Ok(self.runtime.block_on(self.client.query_one(query, &[]))?.try_get(0)?)
    }

    fn count(&mut self, query: &str) -> Result<u64> {
        let count: i64 = self.runtime.block_on(self.client.query_one(query, &[]))?.try_get(0)?;
        Ok(u64::try_from(count)?)
    }
}

/// The server under test.
pub struct Server {
    child: Child,
    address: SocketAddr,
    secret: Secret,
}

impl Server {
    /// Starts it with its defaults, and waits until it listens. It logs to a file in `dir`.
    pub fn start(dir: &Path, database_url: &str, log_filter: &str) -> Result<Self> {
        let log = dir.join("subledger.log");
        let child = Command::new(env!("CARGO_BIN_EXE_subledger"))
            // Nothing of what the caller's environment configures.
            .env_clear()
            .env("DATABASE_URL", database_url)
            .env("STRIPE_WEBHOOK_SECRET", SECRET)
            .env("ADMIN_TOKEN", "bench")
            .env("BIND_ADDR", "127.0.0.1:0")
            .env("RUST_LOG", format!("{log_filter},subledger::commands::serve=info"))
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start subledger")?;
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into(), secret: Secret::new(SECRET) };
        server.address = server.wait_for_address(&log)?;
        Ok(server)
    }

    fn wait_for_address(&mut self, log: &Path) -> Result<SocketAddr> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = fs::read_to_string(log)?;
            if let Some((line, _)) = text.split_once(STARTED).and_then(|(_, rest)| rest.split_once('\n')) {
                return line.parse().context("the address that subledger logs");
            }
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("subledger does not start: {text}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What it has used so far.
    pub fn totals(&self) -> Option<Totals> {
        Totals::of(self.child.id())
    }

    /// What it has used since `before`, for this many events.
    pub fn usage_since(&self, before: Option<Totals>, events: usize) -> Option<Usage> {
        Some(self.totals()?.since(before?, events))
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "subledger stopped with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
