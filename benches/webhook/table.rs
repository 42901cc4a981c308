//! All that was measured, a line a kind of load.

use std::fmt::Write as _;
use std::time::Duration;

use crate::hot::Hot;
use crate::load::Load;
use crate::throughput::Throughput;

const HEADING: &str =
    "connections                            events/s   p50 ms   p99 ms  CPU µs/event  RSS MiB  client CPU µs/event\n";

/// The table. `client` is what makes the load: this program, or pgbench.
pub fn render(results: &[Throughput], hot: &Hot) -> String {
    let mut text = String::from(HEADING);
    for measured in results {
        for (name, loads) in [
            ("first deliveries", &measured.first),
            ("redeliveries", &measured.again),
            ("pgbench", &measured.pgbench),
            ("pgbench, primary keys", &measured.plain),
        ] {
            text += &line(&measured.connections.to_string(), name, loads);
        }
    }
    text += &line("16", "one subscription", &hot.ours);
    text += &line("16", "pgbench, the same", &hot.pgbench);
    text
}

fn line(connections: &str, name: &str, loads: &[Load]) -> String {
    let mut text = String::new();
    if loads.is_empty() {
        return text;
    }
    let shown =
        |figure: Option<f64>, digits: usize| figure.map(|figure| format!("{figure:.digits$}")).unwrap_or_default();
    let all = |figure: &dyn Fn(&Load) -> Option<f64>| {
        loads.iter().all(|load| figure(load).is_some()).then(|| median(loads, |load| figure(load).unwrap_or(f64::NAN)))
    };
    // Writing to a string does not fail.
    writeln!(
        text,
        "{connections:>11}  {name:<23}  {:>9.0}{:>9.2}{:>9.2}{:>14}{:>9}{:>21}",
        rate(loads),
        median(loads, |load| millis(load.p50)),
        median(loads, |load| millis(load.p99)),
        shown(all(&|load| Some(load.usage?.cpu_micros_per_event)), 0),
        shown(all(&|load| Some(load.usage?.resident_kib as f64 / 1024.0)), 1),
        shown(all(&|load| load.client_cpu_micros), 0),
    )
    .ok();
    text
}

/// The median rate.
pub fn rate(loads: &[Load]) -> f64 {
    median(loads, |load| load.per_second)
}

/// The median of a figure.
pub fn median(loads: &[Load], figure: impl Fn(&Load) -> f64) -> f64 {
    let mut figures: Vec<f64> = loads.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// In milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
