//! Resident memory of the server while very many events arrive.

use anyhow::{Context, Result};

use crate::bench::Bench;
use crate::process::Totals;

const CONNECTIONS: usize = 64;

/// How many requests are made at once; more would fill the memory of a small machine.
const BATCH: usize = 10_000;

/// How often the memory is looked at.
const LOOKS: usize = 10;

/// What the server's memory was after so many events.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub events: usize,
    pub resident_kib: u64,
}

/// Delivers `count` events. `None` where the system does not tell a process's memory.
pub fn measure(bench: &mut Bench, count: usize) -> Result<Option<Vec<Look>>> {
    let server = bench.start_server()?;
    let mut looks = Vec::new();
    let mut delivered = 0;
    for look in 1..=LOOKS {
        while delivered < count * look / LOOKS {
            let batch = BATCH.min(count * look / LOOKS - delivered);
            bench.database.mark_now()?;
            bench.first_deliveries(&server, CONNECTIONS, batch).with_context(|| format!("after {delivered} events"))?;
            delivered += batch;
        }
        if let Some(totals) = Totals::of(server.id()) {
            println!("{delivered:>10} events, {:.1} MiB", totals.resident_kib as f64 / 1024.0);
            looks.push(Look { events: delivered, resident_kib: totals.resident_kib });
        }
    }
    server.stop()?;
    bench.database.clear()?;
    Ok(Some(looks).filter(|looks| looks.len() == LOOKS))
}
