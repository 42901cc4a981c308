//! What is told in the end.

use std::fmt::Write as _;
use std::time::Duration;

use crate::load::Load;

/// All that was measured with one number of connections, a [`Load`] a round.
pub struct Measured {
    connections: usize,
    pub first: Vec<Load>,
    pub again: Vec<Load>,
    pub pgbench: Vec<Load>,
}

impl Measured {
    pub fn new(connections: usize) -> Self {
        Self { connections, first: Vec::new(), again: Vec::new(), pgbench: Vec::new() }
    }
}

/// The table. `of pgbench` compares rates at the same number of connections.
pub fn render(results: &[Measured]) -> String {
    let mut text = String::from(
        "connections                      events/s   p50 ms   p99 ms  of pgbench  CPU µs/event  RSS MiB\n",
    );
    for measured in results {
        let pgbench = median(&measured.pgbench, |load| load.per_second);
        for (name, loads) in
            [("first deliveries", &measured.first), ("redeliveries", &measured.again), ("pgbench", &measured.pgbench)]
        {
            if loads.is_empty() {
                continue;
            }
            let of = |figure: fn(&Load) -> f64| median(loads, figure);
            let is_comparable = name == "first deliveries" && !measured.pgbench.is_empty();
            let ratio = is_comparable.then(|| format!("{:.2}", of(|load| load.per_second) / pgbench));
            let usage = |figure: fn(&Load) -> f64| loads.iter().all(|load| load.usage.is_some()).then(|| of(figure));
            let cpu = usage(|load| load.usage.map_or(0.0, |usage| usage.cpu_micros_per_event));
            let resident = usage(|load| load.usage.map_or(0.0, |usage| usage.resident_kib as f64 / 1024.0));
            // Writing to a string does not fail.
            writeln!(
                text,
                "{:>11}  {name:<17}  {:>9.0}{:>9.2}{:>9.2}{:>12}{:>14}{:>9}",
                measured.connections,
                of(|load| load.per_second),
                of(|load| millis(load.p50)),
                of(|load| millis(load.p99)),
                ratio.unwrap_or_default(),
                cpu.map(|micros| format!("{micros:.0}")).unwrap_or_default(),
                resident.map(|mib| format!("{mib:.1}")).unwrap_or_default(),
            )
            .ok();
        }
    }
    text
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn median(loads: &[Load], figure: fn(&Load) -> f64) -> f64 {
    let mut figures: Vec<f64> = loads.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
