//! What admins read, and pruning: how long each takes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use subledger::service::{Prunable, Service};

use crate::report::Column;
use crate::support::client::Client;
use crate::support::server::Server;

/// How often each is measured.
const TIMES: usize = 20;

/// Of the rows that were filled in and of those that were delivered.
const PATHS: [&str; 9] = [
    "/health",
    "/events?limit=20",
    "/events?customer=cus_00000000000005",
    "/events?subscription=sub_000000000000000000000005",
    "/events?type=customer.subscription.updated",
    "/events?type=invoice.paid",
    "/events?status=parked",
    "/events?status=failed",
    "/admin",
];

pub fn latencies(server: &Server, column: &mut Column) -> Result<()> {
    let mut client = Client::open(server.address())?;
    for path in PATHS {
        let mut latencies = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            let started = Instant::now();
            let answer = client.get(path)?;
            latencies.push(started.elapsed());
            ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.body);
        }
        column.latency(&format!("GET {path}"), latencies)?;
    }
    Ok(())
}

/// Deletes batches of what is older than 90 days, for as long as there are whole ones.
pub async fn prune(service: &Service) -> Result<Vec<Duration>> {
    const BATCH: u32 = 1_000;
    let age = Duration::from_secs(90 * 86_400);
    let mut latencies = Vec::with_capacity(TIMES);
    while latencies.len() < TIMES {
        let started = Instant::now();
        let deleted = service.prune(Prunable::Events, age, BATCH).await?;
        latencies.push(started.elapsed());
        if deleted < BATCH as usize {
            break;
        }
    }
    Ok(latencies)
}
