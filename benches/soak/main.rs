//! Whether the server stays as it is under a load that goes on: memory, open files, threads, connections.
//!
//! `cargo bench --bench soak -- --minutes 15` starts a private PostgreSQL and the real `subledger`, and has 64 clients
//! send it first deliveries, duplicates, bad signatures and admins' reads, and break off now and then. It prints what
//! the server uses once a minute, and fails where an answer was not what it should have been, an acknowledged event is
//! missing, or memory, files or threads have grown.

mod sender;
#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;

use sender::{Sender, Sent};
use support::database::Database;
use support::events::Events;
use support::server::{Server, Uses};

/// How many subscriptions there are, each of an account of its own.
const SUBSCRIPTIONS: u64 = 10_000;

/// The pool's connections, of which each is a file, and a few that come and go.
const FILES_TO_SPARE: usize = 32;

#[derive(Debug, Parser)]
struct Options {
    /// How long
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// How many clients at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    connections: u32,
    /// How much resident memory may grow after the warm-up, which is the first third but at most three minutes
    #[arg(long, default_value_t = 8)]
    bound_mib: u64,
    /// Given by `cargo bench`; without it (`cargo test --benches`) the run takes five seconds and bounds nothing
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn length(&self) -> Duration {
        Duration::from_secs(if self.bench { u64::from(self.minutes) * 60 } else { 5 })
    }

    /// Between two lines: a minute, but at least six lines.
    fn interval(&self) -> Duration {
        (self.length() / 6).min(Duration::from_secs(60))
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    // On a disk, as a database is; the usual folder for temporary files may be in memory.
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut database = Database::start(&scratch.path().join("postgres"))?;
    let server = Server::start(scratch.path(), &database.url(), "off")?;
    database.fill_subscriptions(SUBSCRIPTIONS)?;
    let before = server.uses()?;
    let sent = Sent::default();
    let samples = soak(&options, &mut database, &server, &sent)?;
    // Closed connections are noticed in a moment.
    thread::sleep(Duration::from_secs(2));
    let after = server.uses()?;
    println!("{}", line("closed", 0.0, after, connections(&mut database)?));
    println!("\n{sent}");
    sent.compare_with(database.count("SELECT count(*) FROM stripe_events", &[])?)?;
    if options.bench {
        judge(&options, &samples, before, after)?;
    }
    server.stop()?;
    database.stop()
}

/// Loads the server and returns what it used at each interval.
fn soak(options: &Options, database: &mut Database, server: &Server, sent: &Sent) -> Result<Vec<Uses>> {
    let events = Events::new(SUBSCRIPTIONS)?;
    let deadline = Instant::now() + options.length();
    println!("{:>8}{:>11}{:>10}{:>8}{:>9}{:>14}", "seconds", "events/s", "RSS MiB", "files", "threads", "database's");
    thread::scope(|scope| {
        let senders: Vec<_> = (0..options.connections)
            .map(|number| {
                let events = &events;
                scope.spawn(move || Sender::new(number, options.connections, events, server, sent)?.run(deadline))
            })
            .collect();
        let mut samples = Vec::new();
        let mut counted = 0;
        let started = Instant::now();
        while Instant::now() + options.interval() / 2 < deadline {
            thread::sleep(options.interval());
            let now = sent.acknowledged.load(Ordering::Relaxed);
            let per_second = (now - counted) as f64 / options.interval().as_secs_f64();
            counted = now;
            let uses = server.uses()?;
            let seconds = started.elapsed().as_secs().to_string();
            println!("{}", line(&seconds, per_second, uses, connections(database)?));
            samples.push(uses);
            if senders.iter().any(thread::ScopedJoinHandle::is_finished) && Instant::now() < deadline {
                break;
            }
        }
        for sender in senders {
            sender.join().map_err(|_| anyhow!("a sender panicked"))??;
        }
        Ok(samples)
    })
}

fn line(seconds: &str, per_second: f64, uses: Uses, connections: u64) -> String {
    let resident = uses.resident_kib as f64 / 1024.0;
    format!("{seconds:>8}{per_second:>11.0}{resident:>10.1}{:>8}{:>9}{connections:>14}", uses.files, uses.threads)
}

/// How many connections the server has to the database.
fn connections(database: &mut Database) -> Result<u64> {
    database.count("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'subledger'", &[])
}

fn judge(options: &Options, samples: &[Uses], before: Uses, after: Uses) -> Result<()> {
    let warm_up = (options.length() / 3).min(Duration::from_secs(180));
    let warm = (warm_up.as_secs() / options.interval().as_secs().max(1)).saturating_sub(1);
    let warm = samples.get(usize::try_from(warm)?).context("too few samples")?;
    let last = samples.last().context("no sample")?;
    let grown = last.resident_kib.saturating_sub(warm.resident_kib);
    println!("grown after the warm-up: {:.1} MiB, at most {} MiB", grown as f64 / 1024.0, options.bound_mib);
    ensure!(grown <= options.bound_mib * 1024, "memory has grown by {grown} KiB after the warm-up");
    ensure!(last.threads == warm.threads, "threads: {} after the warm-up, {} at the end", warm.threads, last.threads);
    let left = after.files.saturating_sub(before.files);
    ensure!(left <= FILES_TO_SPARE, "{left} more files are open than before the load");
    Ok(())
}
