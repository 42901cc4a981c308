//! Reads by admins and pruning: the latency of each.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use subledger::service::{Prunable, Service};

use crate::report::Column;
use crate::support::client::Client;
use crate::support::server::Server;

/// How often each is measured.
const TIMES: usize = 20;

/// The invoice that only the oldest event is about.
pub const OLD_INVOICE: &str = "in_1BenchOldInvoice";

/// The account with many subscriptions.
pub const LARGE_ACCOUNT: &str = "00000000-0000-4000-8000-000000000500";

/// Reads of the rows that were filled in and of those that were delivered, and the status that each answers: also what
/// finds nothing.
const PATHS: [(&str, u16); 18] = [
    ("/health", 200),
    ("/events?limit=20", 200),
    ("/events?customer=cus_00000000000005", 200),
    ("/events?subscription=sub_000000000000000000000005", 200),
    ("/events?type=customer.subscription.updated", 200),
    ("/events?type=invoice.paid", 200),
    ("/events?status=parked", 200),
    ("/events?status=failed", 200),
    ("/events?type=customer.subscription.updated&status=ignored", 200),
    ("/admin", 200),
    ("/admin/search?q=in_1NobodyHasThisInvoiceId01", 404),
    ("/admin/search?q=evt_1NobodyHasThisEventId01", 404),
    ("/admin/search?q=nobody%20has%20this%20name", 404),
    ("/admin/search?q=in_1BenchOldInvoice", 303),
    ("/events?type=invoice.paid&status=parked", 200),
    ("/events?type=customer.subscription.updated&status=failed", 200),
    ("/admin/accounts/00000000-0000-4000-8000-000000000500", 200),
    ("/api/v1/accounts/00000000-0000-4000-8000-000000000500", 200),
];

pub fn latencies(server: &Server, column: &mut Column) -> Result<()> {
    let mut client = Client::open(server.address())?;
    for (path, status) in PATHS {
        let mut latencies = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            let started = Instant::now();
            let answer = client.get(path)?;
            latencies.push(started.elapsed());
            ensure!(answer.status == status, "{path}: {} {}", answer.status, answer.body);
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
