//! `pgbench`: the same two writes, made by PostgreSQL's own load generator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::events::Events;
use crate::load::Load;
use crate::process::Totals;

/// One transaction: the idempotency row with its payload, and the subscription's new state, in four statements.
const SCRIPT: &str = r"\set n random(1, $SUBSCRIPTIONS)
\set event random(1, 9000000000000000000)
\set seats random(1, 100)
BEGIN;
INSERT INTO $stripe_events (id, type, outcome, api_version, livemode, created, customer_id, subscription_id, account_id, payload) VALUES ('evt_' || lpad(:event::text, 24, '0'), 'customer.subscription.updated', 'applied', '2025-03-31.basil', false, now(), 'cus_' || lpad(:n::text, 14, '0'), 'sub_' || lpad(:n::text, 24, '0'), md5(:n::text)::uuid, :payload);
UPDATE $subscriptions SET plan = 'team', status = 'active', stripe_customer_id = 'cus_' || lpad(:n::text, 14, '0'), stripe_price_id = 'price_Bench', seat_limit = :seats, current_period_start = '2026-11-01Z', current_period_end = '2026-12-01Z', cancel_at_period_end = false, cancel_at = null, canceled_at = null, ended_at = null, trial_end = null, paused_collection = false, last_event_id = 'evt_' || lpad(:event::text, 24, '0'), projected_event_id = 'evt_' || lpad(:event::text, 24, '0'), last_event_type = 'customer.subscription.updated', last_event_created = now(), updated_at = now() WHERE stripe_subscription_id = 'sub_' || lpad(:n::text, 24, '0');
COMMIT;
";

/// What a transaction is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Script {
    /// Any subscription, in the service's own tables with all their indexes.
    Own,
    /// Any subscription, in tables like them with a primary key alone.
    Plain,
    /// Always the same subscription, in the service's own tables.
    Hot,
}

impl Script {
    const ALL: [Self; 3] = [Self::Own, Self::Plain, Self::Hot];

    fn file_name(self) -> &'static str {
        match self {
            Self::Own => "own.sql",
            Self::Plain => "plain.sql",
            Self::Hot => "hot.sql",
        }
    }

    fn text(self, subscriptions: u64) -> String {
        let prefix = if self == Self::Plain { "plain_" } else { "" };
        let subscriptions = if self == Self::Hot { 1 } else { subscriptions };
        SCRIPT.replace("$SUBSCRIPTIONS", &subscriptions.to_string()).replace('$', prefix)
    }
}

/// How often each client, or how long.
#[derive(Clone, Copy, Debug)]
pub enum Until {
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
        for script in Script::ALL {
            fs::write(dir.join(script.file_name()), script.text(subscriptions))?;
        }
        Ok(Some(Self { program, dir, database_url, payload: events.example() }))
    }

    /// Runs a script; also says how many transactions there were in all.
    pub fn run(&self, script: Script, clients: usize, until: Until) -> Result<(Load, u64)> {
        let threads = clients.min(std::thread::available_parallelism()?.get());
        let mut command = Command::new(&self.program);
        command
            .current_dir(&self.dir)
            // Every latency is logged, since a share of them would not tell the p99 as exactly as ours.
            .args(["--no-vacuum", "--protocol=prepared", "--log", "--log-prefix=latencies"])
            .arg(format!("--file={}", script.file_name()))
            .arg(format!("--client={clients}"))
            .arg(format!("--jobs={threads}"))
            .arg(match until {
                Until::Transactions(each) => format!("--transactions={each}"),
                Until::Seconds(seconds) => format!("--time={seconds}"),
            })
            .arg(format!("--define=payload={}", self.payload))
            .arg(&self.database_url);
        let before = Totals::own();
        let output = command.output().with_context(|| format!("cannot run {}", self.program.display()))?;
        let now = Totals::own();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench failed: {errors}");
        let per_second = rate(&String::from_utf8(output.stdout)?)?;
        let latencies = self.take_latencies()?;
        let transactions = latencies.len();
        let cpu = now.zip(before).map(|(now, before)| now.children_cpu_micros_since(before, transactions));
        let load = Load { client_cpu_micros: cpu, ..Load::new(per_second, latencies)? };
        Ok((load, u64::try_from(transactions)?))
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

/// The rate in pgbench's report, connecting excluded.
fn rate(report: &str) -> Result<f64> {
    let rate = report.lines().find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next());
    Ok(rate.context("pgbench says no rate")?.parse()?)
}
