//! How many events a second the webhook takes, beside what PostgreSQL itself can do with the same two writes.
//!
//! `cargo bench --bench webhook` needs nothing but PostgreSQL's programs: it starts a private server with every
//! durability setting on, the real `subledger` as a process of its own, and loads it over keep-alive connections.
//! In turn with it `pgbench` makes the same two writes in the same database, as four prepared statements in turn:
//! BEGIN, INSERT of the event with the same payload, UPDATE of the subscription, COMMIT. It writes to the service's own
//! tables with all their indexes, since that is the same durable work, and for comparison to tables like them with a
//! primary key alone. Both are timed by their clients, from the first byte sent to the last one received.
//!
//! `-- --quick` makes a few hundred events of each kind and times nothing. In every mode each answer, and what is in
//! the database afterwards, is checked. No figure makes it fail.

mod bench;
mod database;
mod distance;
mod endurance;
mod events;
mod hot;
mod load;
mod pgbench;
mod process;
// It can do more than delay and count, for the tests.
#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/it/support/proxy.rs"]
mod proxy;
mod rows;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod targets;
mod throughput;

use anyhow::{Result, ensure};
use clap::Parser;

use bench::{Bench, QUICK_EVENTS, SUBSCRIPTIONS};
use targets::Results;

/// What a quick run does of what takes long.
const QUICK_ROWS: u64 = 20_000;

#[derive(Debug, Parser)]
struct Options {
    /// How long one measurement takes, about
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// How often each is measured, in turn; medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How many connections (and pgbench clients) at once
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64")]
    connections: Vec<usize>,
    /// Compares the rate with 10000 rows in `stripe_events` to that with so many; 10000000 take 20 GB of disk
    #[arg(long, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    rows: Option<u64>,
    /// Delivers so many events over 64 connections and watches the server's memory
    #[arg(long, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    events: Option<u64>,
    /// Every event changes its subscription's seats, so that a row of `subscription_changes` is written with it
    #[arg(long)]
    changing: bool,
    /// The tables are empty when the server starts, and the planner never has statistics of them: autovacuum is off
    #[arg(long, conflicts_with = "rows")]
    from_empty: bool,
    /// What the server logs, to a file
    #[arg(long, default_value = "warn")]
    log: String,
    /// Only prove that all of it works
    #[arg(long)]
    quick: bool,
    /// Given by `cargo bench`; without it (`cargo test --benches`) the run is a quick one
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn rounds(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }
}

fn main() -> Result<()> {
    let mut options = Options::parse();
    ensure!(!options.connections.contains(&0), "--connections: none is too few");
    options.quick |= !options.bench;
    if options.quick {
        options.rows.get_or_insert(QUICK_ROWS);
        options.events.get_or_insert(QUICK_EVENTS as u64 * 5);
    }
    // On a disk, as a database is; the usual folder for temporary files may be in memory.
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut bench = Bench::prepare(options, scratch.path().to_owned())?;
    println!("{}", heading(&mut bench)?);
    let results = measure(&mut bench)?;
    if bench.options.quick {
        println!("every answer and every row was as it should be");
    } else {
        println!("{}", table::render(&results.throughputs, &results.hot));
        println!("{}", targets::render(&results));
    }
    bench.database.stop()
}

fn measure(bench: &mut Bench) -> Result<Results> {
    let connections = bench.options.connections.clone();
    Ok(Results {
        throughputs: connections.into_iter().map(|count| throughput::measure(bench, count)).collect::<Result<_>>()?,
        hot: hot::measure(bench)?,
        distance: distance::measure(bench)?,
        looks: match bench.options.events {
            Some(count) => endurance::measure(bench, usize::try_from(count)?)?,
            None => None,
        },
        rows: bench.options.rows.map(|count| rows::measure(bench, count)).transpose()?,
    })
}

fn heading(bench: &mut Bench) -> Result<String> {
    let settings = bench.database.settings()?;
    let runs = if bench.options.quick {
        format!("{QUICK_EVENTS} events each, nothing is timed")
    } else {
        format!("median of {} rounds of {} s", bench.options.rounds, bench.options.seconds)
    };
    let missing =
        if bench.has_pgbench() { "" } else { "there is no pgbench beside PostgreSQL's programs to compare with\n" };
    let changes = if bench.options.changing { ", a change with each" } else { "" };
    let tables =
        if bench.options.from_empty { ", tables that were empty at the start and were never analysed" } else { "" };
    Ok(format!(
        "subledger {}, {settings}, {} cores for all of it\n\
         {SUBSCRIPTIONS} subscriptions, {} bytes an event{changes}, {runs}{tables}\n{missing}",
        env!("CARGO_PKG_VERSION"),
        std::thread::available_parallelism()?,
        bench.events.example().len(),
    ))
}
