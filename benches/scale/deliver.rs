//! Deliveries over HTTP: rate, latency, and what each writes to the log.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::report::Column;
use crate::support::client::Client;
use crate::support::database::Database;
use crate::support::events::Events;
use crate::support::server::Server;

/// After which the sessions have told what they did (`PGSTAT_MIN_INTERVAL`, and a wide margin).
const STATISTICS_DELAY: Duration = Duration::from_secs(2);

pub struct Deliveries<'a> {
    events: Events,
    connections: usize,
    server: &'a Server,
    made: u64,
}

impl<'a> Deliveries<'a> {
    pub fn new(events: Events, connections: usize, server: &'a Server) -> Self {
        Self { events, connections, server, made: 0 }
    }

    /// Opens the pool's connections and has their statements prepared.
    pub fn warm_up(&mut self, database: &mut Database, count: usize) -> Result<()> {
        self.deliver(count)?;
        database.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect").or_else(|error| {
            eprintln!("no full-page writes apart: {error:#}");
            Ok(())
        })
    }

    pub fn measure(&mut self, database: &mut Database, count: usize, when: &str, column: &mut Column) -> Result<()> {
        let before = database.text("SELECT pg_current_wal_insert_lsn()::text")?;
        let images_before = database.count("SELECT wal_fpi FROM pg_stat_wal", &[])?;
        let (per_second, latencies) = self.deliver(count)?;
        let written = database.count(&format!("SELECT (pg_current_wal_insert_lsn() - '{before}')::bigint"), &[])?;
        thread::sleep(STATISTICS_DELAY);
        let images = database.count("SELECT wal_fpi FROM pg_stat_wal", &[])? - images_before;
        let each = |total: u64| total as f64 / count as f64;
        column.add(format!("{when}: events/s"), format!("{per_second:.0}"));
        column.latency(&format!("{when}: delivery"), latencies)?;
        column.add(format!("{when}: WAL bytes an event"), format!("{:.0}", each(written)));
        let apart =
            image_bytes(database, &before).map_or("not known".to_owned(), |bytes| format!("{:.0}", each(bytes)));
        column.add(format!("{when}: of these full pages"), apart);
        column.add(format!("{when}: full pages an event"), format!("{:.2}", each(images)));
        Ok(())
    }

    /// Delivers so many events, each for the first time; returns the rate and how long each took.
    fn deliver(&mut self, count: usize) -> Result<(f64, Vec<Duration>)> {
        let secret = self.server.secret();
        let numbers = self.made + 1..=self.made + u64::try_from(count)?;
        self.made = *numbers.end();
        let requests: Vec<_> = numbers.map(|n| self.events.request(n, secret)).collect();
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<Duration>> {
            let mut client = Client::open(self.server.address())?;
            let mut latencies = Vec::with_capacity(count);
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                let sent = Instant::now();
                let answer = client.ask(request)?;
                latencies.push(sent.elapsed());
                let is_first = answer.status == 200 && answer.body.contains("\"applied\":true");
                ensure!(is_first, "{}: {}", answer.status, answer.body);
            }
            Ok(latencies)
        };
        let started = Instant::now();
        let latencies = thread::scope(|scope| -> Result<Vec<Duration>> {
            let workers: Vec<_> = (0..self.connections).map(|_| scope.spawn(work)).collect();
            let mut latencies = Vec::with_capacity(count);
            for worker in workers {
                latencies.extend(worker.join().map_err(|_| anyhow!("a connection's thread panicked"))??);
            }
            Ok(latencies)
        })?;
        Ok((count as f64 / started.elapsed().as_secs_f64(), latencies))
    }
}

/// What of the log since then is full pages; `None` where the extension that tells is not there.
fn image_bytes(database: &mut Database, since: &str) -> Option<u64> {
    let query =
        format!("SELECT sum(fpi_size)::bigint FROM pg_get_wal_stats('{since}', pg_current_wal_flush_lsn(), false)");
    database.count(&query, &[]).ok()
}
