//! What one event costs, and how that grows with the rows of `stripe_events`: disk, WAL, rate, reads, pruning.
//!
//! `cargo bench --bench scale -- --rows 10000,1000000,10000000` fills a private PostgreSQL to each number of rows in
//! turn, measures with the real `subledger`, and prints one table in Markdown. Ten million rows take about 33 GB.

mod deliver;
mod fill;
mod read;
mod report;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use subledger::config::Options as Configuration;
use subledger::db::connect::Target;

use deliver::Deliveries;
use report::{Column, Report};
use support::database::Database;
use support::events::Events;
use support::server::Server;

/// How many subscriptions there are, each of an account of its own.
const SUBSCRIPTIONS: u64 = 10_000;

#[derive(Debug, Parser)]
struct Options {
    /// To how many rows `stripe_events` is filled, one after the other
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    rows: Vec<u64>,
    /// How many events each measurement of deliveries takes
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// How many connections at once
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Given by `cargo bench`; without it (`cargo test --benches`) all is measured once, with next to nothing
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    if !options.bench {
        (options.rows, options.events) = (vec![2_000], 200);
    }
    ensure!(options.connections > 0 && options.events > 0, "none is too few");
    ensure!(options.rows.iter().all(|&rows| rows >= 1_000), "--rows: a thousand is the least");
    // On a disk, as a database is; the usual folder for temporary files may be in memory.
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut report = Report::default();
    for &rows in &options.rows {
        let dir = scratch.path().join("postgres");
        let column = measure(&options, rows, scratch.path(), &dir).with_context(|| format!("with {rows} rows"))?;
        report.add(rows, column);
        fs::remove_dir_all(&dir)?;
    }
    println!("{report}");
    Ok(())
}

fn measure(options: &Options, rows: u64, scratch: &Path, dir: &Path) -> Result<Column> {
    let mut column = Column::default();
    let mut database = Database::start(dir)?;
    database.fill_subscriptions(SUBSCRIPTIONS)?;
    let events = Events::new(SUBSCRIPTIONS)?;
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
