//! How many events a second the webhook takes, beside what PostgreSQL itself can do with the same two writes.
//!
//! `cargo bench --bench webhook` needs nothing but PostgreSQL's programs: it starts a private server with every
//! durability setting on, the real `subledger` as a process of its own, and loads it over keep-alive connections.
//! In turn with it `pgbench` makes the same two writes in the same database, as four prepared statements.
//!
//! `-- --quick` makes a few hundred events of each kind and times nothing. In every mode each answer, and what is in
//! the database afterwards, is checked.

mod events;
mod load;
mod pgbench;
mod process;
mod setup;
mod table;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use events::Events;
use load::Load;
use pgbench::Pgbench;
use setup::{Database, Server};
use table::Measured;

/// How many subscriptions there are, each of an account of its own.
const SUBSCRIPTIONS: u64 = 10_000;

/// How many events there are in each measurement of a quick run.
const QUICK_EVENTS: usize = 400;

/// How many events warm up a connection count, and tell how many fill the time.
const WARM_UP_EVENTS: usize = 3_000;

#[derive(Debug, Parser)]
struct Options {
    /// How long one measurement takes, about
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// How often each is measured, in turn; medians are reported
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How many connections (and pgbench clients) at once
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    connections: Vec<usize>,
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

fn main() -> Result<()> {
    let mut options = Options::parse();
    ensure!(!options.connections.contains(&0), "--connections: none is too few");
    options.quick |= !options.bench;
    // On a disk, as a database is; the usual folder for temporary files may be in memory.
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut database = Database::start(scratch.path())?;
    let server = Server::start(scratch.path(), &database.url(), &options.log)?;
    database.fill(SUBSCRIPTIONS)?;
    let events = Events::new(SUBSCRIPTIONS)?;
    let pgbench = Pgbench::prepare(&database.program_dir()?, scratch.path(), database.url(), &events, SUBSCRIPTIONS)?;
    if pgbench.is_none() {
        println!("there is no pgbench beside PostgreSQL's programs, so nothing to compare with\n");
    }
    println!("{}", heading(&options, &mut database, &events)?);
    let mut bench = Bench { database, server, events, pgbench };
    let mut results = Vec::new();
    for &connections in &options.connections {
        results.push(bench.measure(connections, &options)?);
    }
    bench.server.stop()?;
    if options.quick {
        println!("every answer and every row was as it should be");
    } else {
        println!("{}", table::render(&results));
    }
    bench.database.stop()
}

fn heading(options: &Options, database: &mut Database, events: &Events) -> Result<String> {
    let settings = database.settings()?;
    let runs = if options.quick {
        format!("{QUICK_EVENTS} events each, nothing is timed")
    } else {
        format!("median of {} rounds of {} s", options.rounds, options.seconds)
    };
    Ok(format!(
        "subledger {}, {settings}, {} cores for all of it\n{SUBSCRIPTIONS} subscriptions, {} bytes an event, {runs}\n",
        env!("CARGO_PKG_VERSION"),
        std::thread::available_parallelism()?,
        events.example().len(),
    ))
}

/// Everything that is running.
struct Bench {
    database: Database,
    server: Server,
    events: Events,
    pgbench: Option<Pgbench>,
}

impl Bench {
    /// Measures all three with one number of connections, in turn.
    fn measure(&mut self, connections: usize, options: &Options) -> Result<Measured> {
        let mut measured = Measured::new(connections);
        let (count, rounds) = if options.quick {
            (QUICK_EVENTS, 1)
        } else {
            let warm_up = self.first_deliveries(connections, WARM_UP_EVENTS)?.0;
            self.database.clear()?;
            ((warm_up.per_second * f64::from(options.seconds)) as usize, options.rounds)
        };
        for _ in 0..rounds {
            let (load, requests) = self.first_deliveries(connections, count.max(connections))?;
            measured.first.push(load);
            measured.again.push(self.redeliveries(connections, &requests)?);
            self.database.clear()?;
            if let Some(pgbench) = &self.pgbench {
                let (load, transactions) = if options.quick {
                    pgbench.run_transactions(connections, QUICK_EVENTS.div_ceil(connections))?
                } else {
                    pgbench.run_seconds(connections, options.seconds)?
                };
                ensure!(self.database.events()? == transactions, "pgbench did not write what it says");
                measured.pgbench.push(load);
                self.database.clear()?;
            }
        }
        Ok(measured)
    }

    fn first_deliveries(&mut self, connections: usize, count: usize) -> Result<(Load, Vec<Vec<u8>>)> {
        let requests = self.events.requests(count, self.server.secret());
        let before = self.server.totals();
        let mut load = load::run(self.server.address(), connections, &requests, "applied")?;
        load.usage = self.server.usage_since(before, count);
        let (count, subscriptions) = (u64::try_from(count)?, SUBSCRIPTIONS.min(u64::try_from(count)?));
        ensure!(self.database.events()? == count, "not every event was recorded");
        ensure!(self.database.newest_shown()? == subscriptions, "not every subscription shows its newest event");
        Ok((load, requests))
    }

    fn redeliveries(&mut self, connections: usize, requests: &[Vec<u8>]) -> Result<Load> {
        let before = self.server.totals();
        let mut load = load::run(self.server.address(), connections, requests, "duplicate").context("a redelivery")?;
        load.usage = self.server.usage_since(before, requests.len());
        ensure!(self.database.events()? == u64::try_from(requests.len())?, "a redelivery was recorded");
        Ok(load)
    }
}
