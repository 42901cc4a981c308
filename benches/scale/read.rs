//! Reads by admins and pruning: the latency of each, and what a read costs PostgreSQL.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use subledger::service::{Prunable, Service};

use crate::report::Column;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::server::Server;

/// How often each is measured.
const TIMES: usize = 20;

/// The invoice that only the oldest event is about.
pub const OLD_INVOICE: &str = "in_1BenchOldInvoice";

/// The account with many subscriptions.
pub const LARGE_ACCOUNT: &str = "00000000-0000-4000-8000-000000000500";

/// Reads of the rows that were filled in and of those that were delivered, and the status that each answers: also what
/// finds nothing.
const PATHS: [(&str, u16); 18] = [
    ("/health", 200),
    ("/events?limit=20", 200),
    ("/events?customer=cus_00000000000005", 200),
    ("/events?subscription=sub_000000000000000000000005", 200),
    ("/events?type=customer.subscription.updated", 200),
    ("/events?type=invoice.paid", 200),
    ("/events?status=parked", 200),
    ("/events?status=failed", 200),
    ("/events?type=customer.subscription.updated&status=ignored", 200),
    ("/admin", 200),
    ("/admin/search?q=in_1NobodyHasThisInvoiceId01", 404),
    ("/admin/search?q=evt_1NobodyHasThisEventId01", 404),
    ("/admin/search?q=nobody%20has%20this%20name", 404),
    ("/admin/search?q=in_1BenchOldInvoice", 303),
    ("/events?type=invoice.paid&status=parked", 200),
    ("/events?type=customer.subscription.updated&status=failed", 200),
    ("/admin/accounts/00000000-0000-4000-8000-000000000500", 200),
    ("/api/v1/accounts/00000000-0000-4000-8000-000000000500", 200),
];

pub fn latencies(server: &Server, database: &mut Database, column: &mut Column) -> Result<()> {
    let mut client = Client::open(server.address())?;
    for (path, status) in PATHS {
        let mut latencies = Vec::with_capacity(TIMES);
        let before = cpu_millis(database).ok();
        for _ in 0..TIMES {
            let started = Instant::now();
            let answer = client.get(path)?;
            latencies.push(started.elapsed());
            ensure!(answer.status == status, "{path}: {} {}", answer.status, answer.body);
        }
        column.latency(&format!("GET {path}"), latencies)?;
        let spent = before.zip(cpu_millis(database).ok()).map(|(before, after)| (after - before) as f64 / TIMES as f64);
        let figure = spent.map_or_else(|| "not known".to_owned(), |millis| format!("{millis:.1}"));
        column.add(format!("GET {path}: PostgreSQL's CPU, ms"), figure);
    }
    Ok(())
}

/// The view of what accounts are entitled to: a page of a hundred accounts, and every account there is.
pub fn entitlements(database: &mut Database, column: &mut Column) -> Result<()> {
    const PAGE: &str =
        "SELECT count(entitled) FROM (SELECT id FROM accounts ORDER BY created_at DESC, id LIMIT 100) AS page
        JOIN account_entitlements ON account_id = page.id";
    const ALL: &str =
        "SELECT count(*) FILTER (WHERE entitled) FROM accounts JOIN account_entitlements ON account_id = id";
    for (name, query) in [("a page of 100 accounts", PAGE), ("all accounts", ALL)] {
        let mut latencies = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            let started = Instant::now();
            database.count(query, &[])?;
            latencies.push(started.elapsed());
        }
        column.latency(&format!("account_entitlements, {name}"), latencies)?;
    }
    Ok(())
}

/// The processor time of all processes of the server that `database` runs, in milliseconds, which other load of the
/// machine does not stretch. Known on Linux alone.
fn cpu_millis(database: &mut Database) -> Result<u64> {
    let backend = database.count("SELECT pg_backend_pid()::bigint", &[])?;
    let postmaster = Stat::read(&backend.to_string()).context("no /proc")?.parent;
    let processes = fs::read_dir("/proc")?.filter_map(|entry| Stat::read(entry.ok()?.file_name().to_str()?));
    let own = Stat::read(&postmaster.to_string()).context("no postmaster")?;
    Ok(own.of_ended + processes.filter(|process| process.parent == postmaster).map(|process| process.own).sum::<u64>())
}

/// What `/proc/<pid>/stat` says of a process; times in milliseconds.
struct Stat {
    parent: u64,
    own: u64,
    /// Of its children that have ended.
    of_ended: u64,
}

impl Stat {
    /// Source: <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>.
    fn read(pid: &str) -> Option<Self> {
        /// Linux counts in hundredths of a second.
        const TICK_MILLIS: u64 = 10;
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name of the program, which stands before, may contain spaces.
        let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: field(4)?,
            own: (field(14)? + field(15)?) * TICK_MILLIS,
            of_ended: (field(16)? + field(17)?) * TICK_MILLIS,
        })
    }
}

/// Deletes batches of what is older than 90 days, for as long as there are whole ones.
pub async fn prune(service: &Service) -> Result<Vec<Duration>> {
    const BATCH: u32 = 1_000;
    let age = Duration::from_secs(90 * 86_400);
    let mut latencies = Vec::with_capacity(TIMES);
    while latencies.len() < TIMES {
        let started = Instant::now();
        let deleted = service.prune(Prunable::Events, age, BATCH).await?;
        latencies.push(started.elapsed());
        if deleted < BATCH as usize {
            break;
        }
    }
    Ok(latencies)
}
