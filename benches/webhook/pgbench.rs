//! `pgbench`: the same two writes, made by PostgreSQL's own load generator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::events::Events;
use crate::load::Load;

/// One transaction: the idempotency row with its payload, and the subscription's new state, in four statements.
const SCRIPT: &str = r"\set n random(1, $SUBSCRIPTIONS)
\set event random(1, 9000000000000000000)
\set seats random(1, 100)
BEGIN;
INSERT INTO stripe_events (id, type, outcome, api_version, livemode, created, customer_id, subscription_id, payload) VALUES ('evt_' || lpad(:event::text, 24, '0'), 'customer.subscription.updated', 'applied', '2025-03-31.basil', false, now(), 'cus_' || lpad(:n::text, 14, '0'), 'sub_' || lpad(:n::text, 24, '0'), :payload);
UPDATE subscriptions SET plan = 'team', status = 'active', stripe_customer_id = 'cus_' || lpad(:n::text, 14, '0'), stripe_price_id = 'price_Bench', seat_limit = :seats, current_period_start = '2026-11-01Z', current_period_end = '2026-12-01Z', cancel_at_period_end = false, cancel_at = null, canceled_at = null, ended_at = null, trial_end = null, paused_collection = false, last_event_id = 'evt_' || lpad(:event::text, 24, '0'), last_event_type = 'customer.subscription.updated', last_event_created = now(), updated_at = now() WHERE stripe_subscription_id = 'sub_' || lpad(:n::text, 24, '0');
COMMIT;
";

/// How often, or how long.
enum Until {
    Transactions(usize),
    Seconds(u32),
}

/// A pgbench that is ready to run.
pub struct Pgbench {
    program: PathBuf,
    dir: PathBuf,
    database_url: String,
    payload: String,
}

impl Pgbench {
    /// `None` where there is no pgbench beside PostgreSQL's programs: some systems have it in a package of its own.
    pub fn prepare(
        program_dir: &Path,
        scratch: &Path,
        database_url: String,
        events: &Events,
        subscriptions: u64,
    ) -> Result<Option<Self>> {
        let program = program_dir.join("pgbench");
        if !program.exists() {
            return Ok(None);
        }
        let dir = scratch.join("pgbench");
        fs::create_dir(&dir)?;
        fs::write(dir.join("script.sql"), SCRIPT.replace("$SUBSCRIPTIONS", &subscriptions.to_string()))?;
        Ok(Some(Self { program, dir, database_url, payload: events.example() }))
    }

    /// Runs this many transactions by each client; also says how many there were in all.
    pub fn run_transactions(&self, clients: usize, each: usize) -> Result<(Load, u64)> {
        self.run(clients, &Until::Transactions(each))
    }

    /// Runs for this long; also says how many transactions there were in all.
    pub fn run_seconds(&self, clients: usize, seconds: u32) -> Result<(Load, u64)> {
        self.run(clients, &Until::Seconds(seconds))
    }

    fn run(&self, clients: usize, until: &Until) -> Result<(Load, u64)> {
        let threads = clients.min(std::thread::available_parallelism()?.get());
        let mut command = Command::new(&self.program);
        command
            .current_dir(&self.dir)
            .args(["--no-vacuum", "--protocol=prepared", "--file=script.sql", "--log", "--log-prefix=latencies"])
            .arg(format!("--client={clients}"))
            .arg(format!("--jobs={threads}"))
            .arg(match until {
                Until::Transactions(each) => format!("--transactions={each}"),
                Until::Seconds(seconds) => format!("--time={seconds}"),
            })
            .arg(format!("--define=payload={}", self.payload))
            .arg(&self.database_url);
        let output = command.output().with_context(|| format!("cannot run {}", self.program.display()))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench failed: {errors}");
        let report = String::from_utf8(output.stdout)?;
        let per_second = report
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next())
            .context("pgbench says no rate")?
            .parse()?;
        let latencies = self.take_latencies()?;
        let transactions = u64::try_from(latencies.len())?;
        Ok((Load::new(per_second, latencies)?, transactions))
    }

    /// Reads and removes the logs. A line is: client, transaction, microseconds, script, time.
    fn take_latencies(&self) -> Result<Vec<Duration>> {
        let mut latencies = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.file_name().is_none_or(|name| !name.as_encoded_bytes().starts_with(b"latencies")) {
                continue;
            }
            for line in fs::read_to_string(&path)?.lines() {
                let micros = line.split(' ').nth(2).with_context(|| format!("pgbench logs {line:?}"))?;
                latencies.push(Duration::from_micros(micros.parse()?));
            }
            fs::remove_file(&path)?;
        }
        Ok(latencies)
    }
}
