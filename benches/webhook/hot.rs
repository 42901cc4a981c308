//! One subscription that all events are about, so that all of them want the same row.

use anyhow::{Result, ensure};

use crate::bench::Bench;
use crate::load::{self, Load};
use crate::pgbench::Script;

/// How many connections want the row at once.
const CONNECTIONS: usize = 16;

const SHOWN: &str =
    "SELECT last_event_id FROM subscriptions WHERE stripe_subscription_id = 'sub_' || lpad('1', 24, '0')";

/// A [`Load`] a round of each.
pub struct Hot {
    pub ours: Vec<Load>,
    pub pgbench: Vec<Load>,
    /// Answers other than 200 with `applied` or `stale`.
    pub errors: usize,
    pub deadlocks: u64,
}

/// Measures both in turn.
pub fn measure(bench: &mut Bench) -> Result<Hot> {
    let deadlocks_before = bench.database.deadlocks()?;
    let server = bench.start_server()?;
    let count = bench.warm_up(&server, CONNECTIONS)?;
    let mut hot = Hot { ours: Vec::new(), pgbench: Vec::new(), errors: 0, deadlocks: 0 };
    for _ in 0..bench.options.rounds() {
        let requests = bench.events.requests_of_one(count, server.secret());
        // With several on the way the order of arrival is not ours to say.
        let load = load::deliver(&server, CONNECTIONS, &requests, &["applied", "stale"])?;
        let recorded = bench.database.events(&["applied", "stale"])?;
        ensure!(recorded == u64::try_from(count - load.errors.len())?, "not just what was acknowledged is recorded");
        let newest = bench.events.newest_id();
        ensure!(
            !load.errors.is_empty() || bench.database.text(SHOWN)? == newest,
            "the subscription does not show its newest event"
        );
        if let Some(error) = load.errors.first() {
            println!("one hot subscription, an error: {error}");
        }
        hot.errors += load.errors.len();
        hot.ours.push(load);
        bench.database.clear()?;
        hot.pgbench.extend(bench.run_pgbench(Script::Hot, CONNECTIONS)?);
    }
    server.stop()?;
    hot.deadlocks = bench.database.deadlocks()? - deadlocks_before;
    Ok(hot)
}
