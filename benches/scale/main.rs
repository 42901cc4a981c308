//! What one event costs, and how that grows with the rows of `stripe_events`: disk, WAL, rate, reads, pruning, memory;
//! what the jobs take; and whom an upgrade holds up.
//!
//! `cargo bench --bench scale -- --rows 10000,1000000,10000000` fills a private PostgreSQL to each number of rows in
//! turn, measures with the real `subledger`, and prints one table in Markdown. Ten million rows take about 33 GB.
//! `--jobs 10000,40000` measures `import` and `reconcile` of as many subscriptions and events instead, against a stand-in
//! for Stripe's API; with `--program` it does so with another `subledger`, of an earlier version for instance.
//! `--upgrade 1000000` upgrades a database of version 0.1 with so many events while others read and write. No figure makes
//! it fail.

mod deliver;
mod fill;
mod jobs;
mod read;
mod report;
mod stripe;
#[path = "../support/mod.rs"]
mod support;
mod upgrade;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use subledger::config::Options as Configuration;
use subledger::db::connect::Target;

use deliver::Deliveries;
use report::{Column, Report};
use support::database::Database;
use support::events::Events;
use support::server::Server;

#[derive(Debug, Parser)]
struct Options {
    /// To how many rows `stripe_events` is filled, one after the other
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    rows: Vec<u64>,
    /// How many subscriptions there are meanwhile, each of an account of its own
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    subscriptions: u64,
    /// How many events each measurement of deliveries takes
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// How many connections at once
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Only imports so many subscriptions, and reconciles so many events
    #[arg(long, value_delimiter = ',')]
    jobs: Vec<u64>,
    /// The `subledger` that --jobs runs instead of this one
    #[arg(long, requires = "jobs")]
    program: Option<PathBuf>,
    /// Only upgrades a database of version 0.1 that has so many events
    #[arg(long, value_delimiter = ',')]
    upgrade: Vec<u64>,
    /// Given by `cargo bench`; without it (`cargo test --benches`) all is measured once, with next to nothing
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    let mut reading = Duration::from_secs(30);
    if !options.bench {
        (options.rows, options.events, options.subscriptions) = (vec![2_000], 200, 1_000);
        (options.jobs, options.upgrade, reading) = (vec![150], vec![1_000], Duration::from_secs(1));
    } else if !(options.jobs.is_empty() && options.upgrade.is_empty()) {
        options.rows.clear();
    }
    ensure!(options.connections > 0 && options.events > 0, "none is too few");
    ensure!(options.rows.iter().all(|&rows| rows >= 1_000), "--rows: a thousand is the least");
    // On a disk, as a database is; the usual folder for temporary files may be in memory.
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let dir = scratch.path().join("postgres");
    let mut report = Report::new("rows");
    for &rows in &options.rows {
        let column = measure(&options, rows, scratch.path(), &dir).with_context(|| format!("with {rows} rows"))?;
        report.add(rows, column);
        fs::remove_dir_all(&dir)?;
    }
    print!("{report}");
    if options.jobs.is_empty() && options.upgrade.is_empty() {
        return Ok(());
    }
    let mut database = Database::start(&dir)?;
    let program = options.program.as_deref().unwrap_or(Path::new(env!("CARGO_BIN_EXE_subledger")));
    let mut report = Report::new("subscriptions or events");
    for &count in &options.jobs {
        let mut column = Column::default();
        jobs::measure(&mut database, program, count, &mut column).with_context(|| format!("jobs of {count}"))?;
        report.add(count, column);
    }
    print!("{report}");
    let mut report = Report::new("events");
    for &rows in &options.upgrade {
        let mut column = Column::default();
        upgrade::measure(&mut database, rows, &Events::new(1)?.payload(0), reading, &mut column)?;
        report.add(rows, column);
    }
    print!("{report}");
    database.stop()
}

fn measure(options: &Options, rows: u64, scratch: &Path, dir: &Path) -> Result<Column> {
    let mut column = Column::default();
    let mut database = Database::start(dir)?;
    database.fill_subscriptions(options.subscriptions)?;
    let events = Events::new(options.subscriptions)?;
    let started = Instant::now();
    database = fill::events(database, rows, &events.payload(0))?;
    let seconds = started.elapsed().as_secs();
    eprintln!("{rows} rows filled in {seconds} s");
    fill::sizes(&mut database, rows, &mut column)?;

    let server = Server::start(scratch, &database.url(), "off")?;
    let mut deliveries = Deliveries::new(events, options.connections, &server);
    deliveries.warm_up(&mut database, options.events.div_ceil(10))?;
    database.execute_each("VACUUM ANALYZE; CHECKPOINT")?;
    deliveries.measure(&mut database, options.events, "after a checkpoint", &mut column)?;
    deliveries.measure(&mut database, options.events, "further ones", &mut column)?;
    read::latencies(&server, &mut database, &mut column)?;
    read::entitlements(&mut database, &mut column)?;
    column.add("the server's memory, MiB".to_owned(), format!("{:.1}", server.uses()?.resident_kib as f64 / 1024.0));
    server.stop()?;
    prune(&database, &mut column)?;
    database.stop()?;
    Ok(column)
}

/// Some of the batches that `subledger prune` makes, without its pauses.
fn prune(database: &Database, column: &mut Column) -> Result<()> {
    let target = Target::parse(&database.url())?;
    let config = Configuration::default().server()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let latencies = runtime.block_on(async { read::prune(&subledger::server::service(&config, target)).await })?;
    column.latency("prune, a batch of 1,000", latencies)
}
