//! What a database that is far away costs: round trips of a first delivery, counted on the wire, and its latency.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio_postgres::NoTls;

use crate::bench::Bench;
use crate::proxy::Proxy;
use crate::support::server::Server;

/// Each way; a round trip takes twice as long.
const ONE_WAY: Duration = Duration::from_micros(500);

/// How many events settle what a connection prepares but once.
const WARM_UP_EVENTS: usize = 200;

/// How many round trips tell how long one takes.
const PROBES: usize = 101;

/// What one connection saw, through a proxy before the database.
pub struct Distance {
    /// How often, for an event, the server waited for the database.
    pub round_trips: f64,
    /// The latency of an event without a delay.
    pub near: Duration,
    /// The same with it.
    pub far: Duration,
    /// By how much one round trip became longer, measured.
    pub network: Duration,
}

/// Measures first without and then with a delay.
pub fn measure(bench: &mut Bench) -> Result<Distance> {
    let (warm_up, count) = if bench.options.quick { (20, 20) } else { (WARM_UP_EVENTS, 1_000) };
    let proxy = Proxy::start(&bench.database.url())?;
    let server = Server::start(&bench.scratch, proxy.url(), &bench.options.log)?;
    bench.first_deliveries(&server, 1, warm_up)?;
    bench.database.clear()?;
    let before = proxy.round_trips();
    let near = bench.first_deliveries(&server, 1, count)?.0.p50;
    let round_trips = (proxy.round_trips() - before) as f64 / count as f64;
    bench.database.clear()?;
    let near_probe = round_trip(proxy.url())?;
    proxy.delay(ONE_WAY, ONE_WAY);
    let network = round_trip(proxy.url())?.saturating_sub(near_probe);
    let far = bench.first_deliveries(&server, 1, count)?.0.p50;
    server.stop()?;
    bench.database.clear()?;
    Ok(Distance { round_trips, near, far, network })
}

/// How long the shortest statement takes.
fn round_trip(url: &str) -> Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        let mut taken = Vec::with_capacity(PROBES);
        for _ in 0..PROBES {
            let asked = Instant::now();
            client.batch_execute("SELECT 1").await?;
            taken.push(asked.elapsed());
        }
        taken.sort_unstable();
        taken.get(PROBES / 2).copied().context("nothing was probed")
    })
}
