//! Whether the rate holds when `stripe_events` has very many rows: fills it, and measures with few and with many.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::bench::{Bench, QUICK_EVENTS, SUBSCRIPTIONS, check_first_deliveries};
use crate::database::Database;
use crate::events::Events;
use crate::load::{self, Load};
use crate::support::server::Server;
use crate::support::{database, fill};

const CONNECTIONS: usize = 16;

/// What is compared with.
pub const FEW: u64 = 10_000;

/// A [`Load`] a round of each.
pub struct Rows {
    pub count: u64,
    pub few: Vec<Load>,
    pub many: Vec<Load>,
    /// What the table and its indexes take with many, in bytes.
    pub size: String,
}

/// Measures with few rows, then with `count`, in a database of its own, which is removed.
pub fn measure(bench: &mut Bench, count: u64) -> Result<Rows> {
    let dir = bench.scratch.join("postgres-many-rows");
    let mut empty = database::Database::start(&dir)?;
    empty.fill_subscriptions(SUBSCRIPTIONS)?;
    let payload = bench.events.example();
    let mut database = filled(empty, FEW, &payload)?;
    let few = loads(bench, &mut database)?;
    let started = Instant::now();
    database = filled(database.base, count, &payload)?;
    let size = database.text("SELECT pg_size_pretty(pg_total_relation_size('stripe_events'))")?;
    println!("{count} rows, {size}, filled in {} s\n", started.elapsed().as_secs());
    let many = loads(bench, &mut database)?;
    database.stop()?;
    fs::remove_dir_all(&dir)?;
    Ok(Rows { count, few, many, size })
}

/// The database with so many rows instead of those that it had, at rest.
fn filled(database: database::Database, rows: u64, payload: &str) -> Result<Database> {
    let mut database = fill::refilled(database, rows, payload, "false")?;
    database.execute_each("ALTER SYSTEM RESET ALL; VACUUM ANALYZE")?;
    database = database.restarted()?;
    fill::warm(&mut database)?;
    database.try_into()
}

fn loads(bench: &mut Bench, database: &mut Database) -> Result<Vec<Load>> {
    let server = Server::start(&bench.scratch, &database.url(), &bench.options.log)?;
    // Once, not before each round: in use, a checkpoint comes every five minutes or later, and what each page costs that
    // is changed for the first time after it is spread over very many events.
    database.execute_each("VACUUM subscriptions; CHECKPOINT")?;
    let mut deliver = |count| deliver(&mut bench.events, database, &server, count).context("with many rows");
    let count = if bench.options.quick {
        QUICK_EVENTS
    } else {
        (deliver(QUICK_EVENTS)?.per_second * f64::from(bench.options.seconds)) as usize
    };
    let loads = (0..bench.options.rounds()).map(|_| deliver(count)).collect::<Result<_>>()?;
    server.stop()?;
    Ok(loads)
}

fn deliver(events: &mut Events, database: &mut Database, server: &Server, count: usize) -> Result<Load> {
    database.mark_now()?;
    let requests = events.requests(count, server.secret());
    let load = load::deliver(server, CONNECTIONS, &requests, &["applied"])?.without_errors()?;
    check_first_deliveries(database, count)?;
    Ok(load)
}
