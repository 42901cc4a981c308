//! How many events a second, with one number of connections: first deliveries, redeliveries, and pgbench, in turn.

use anyhow::{Context, Result, ensure};

use crate::bench::Bench;
use crate::load::{self, Load};
use crate::pgbench::Script;
use crate::support::server::Server;

/// All that was measured with one number of connections, a [`Load`] a round.
pub struct Throughput {
    pub connections: usize,
    pub first: Vec<Load>,
    pub again: Vec<Load>,
    /// On the service's own tables.
    pub pgbench: Vec<Load>,
    /// On tables with a primary key alone.
    pub plain: Vec<Load>,
}

/// Measures all of them, in turn, so that what else the machine does meets each alike.
pub fn measure(bench: &mut Bench, connections: usize) -> Result<Throughput> {
    let mut measured =
        Throughput { connections, first: Vec::new(), again: Vec::new(), pgbench: Vec::new(), plain: Vec::new() };
    let server = bench.start_server()?;
    let count = bench.warm_up(&server, connections)?;
    for _ in 0..bench.options.rounds() {
        let (load, requests) = bench.first_deliveries(&server, connections, count)?;
        measured.first.push(load);
        measured.again.push(redeliveries(bench, &server, connections, &requests)?);
        bench.database.clear()?;
        measured.pgbench.extend(bench.run_pgbench(Script::Own, connections)?);
        measured.plain.extend(bench.run_pgbench(Script::Plain, connections)?);
    }
    server.stop()?;
    Ok(measured)
}

fn redeliveries(bench: &mut Bench, server: &Server, connections: usize, requests: &[Vec<u8>]) -> Result<Load> {
    let load =
        load::deliver(server, connections, requests, &["duplicate"])?.without_errors().context("a redelivery")?;
    ensure!(bench.database.events(&["applied"])? == u64::try_from(requests.len())?, "a redelivery was recorded");
    Ok(load)
}
