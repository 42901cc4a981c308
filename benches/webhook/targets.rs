//! What the service is held to, and how far it is.

use std::fmt::Write as _;

use crate::distance::Distance;
use crate::endurance::Look;
use crate::hot::Hot;
use crate::load::Load;
use crate::rows::{FEW, Rows};
use crate::table::{median, millis, rate};
use crate::throughput::Throughput;

/// All that the table is made of.
pub struct Results {
    pub throughputs: Vec<Throughput>,
    pub hot: Hot,
    pub distance: Distance,
    pub rows: Option<Rows>,
    pub looks: Option<Vec<Look>>,
}

/// One line: what it is, what it should be, what it is, and whether that is enough, where it was measured.
struct Line {
    figure: String,
    target: String,
    measured: String,
    is_met: Option<bool>,
}

/// Bounds of a figure.
#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    fn is_met(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(least) => figure >= least,
            Self::AtMost(most) => figure <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("at least {least:.2}"),
            Self::AtMost(most) => format!("at most {most:.1}"),
        }
    }
}

impl Line {
    fn new(figure: &str, target: Target, measured: Option<(f64, String)>) -> Self {
        Self {
            figure: figure.to_owned(),
            target: target.text(),
            is_met: measured.as_ref().map(|(figure, _)| target.is_met(*figure)),
            measured: measured
                .map_or_else(|| "not measured".to_owned(), |(figure, how)| format!("{figure:.2} ({how})")),
        }
    }
}

/// The table, in Markdown.
pub fn render(results: &Results) -> String {
    let mut lines = Vec::new();
    for (connections, least) in [(64, 1.2), (16, 1.0), (4, 0.8), (1, 0.75)] {
        lines.extend(throughput_lines(results, connections, least));
    }
    lines.push(slowest(results));
    lines.push(redeliveries(results));
    lines.extend(distance(&results.distance));
    lines.push(cpu(results));
    lines.push(memory(results.looks.as_deref()));
    lines.push(many_rows(results.rows.as_ref()));
    lines.extend(hot(&results.hot));
    let lengths = |text: fn(&Line) -> &str| lines.iter().map(|line| text(line).chars().count()).max().unwrap_or(0);
    let (figure, target, measured) =
        (lengths(|line| &line.figure), lengths(|line| &line.target), lengths(|line| &line.measured));
    let mut text = String::new();
    let mut row = |a: &str, b: &str, c: &str, d: &str| {
        // Writing to a string does not fail.
        writeln!(text, "| {a:<figure$} | {b:<target$} | {c:<measured$} | {d:<3} |").ok();
    };
    row("figure", "target", "measured", "met");
    row("---", "---", "---", "---");
    for line in &lines {
        let is_met = line.is_met.map_or("", |is_met| if is_met { "yes" } else { "no" });
        row(&line.figure, &line.target, &line.measured, is_met);
    }
    text
}

/// Against pgbench on the service's own tables, and, for comparison, on tables with a primary key alone.
fn throughput_lines(results: &Results, connections: usize, least: f64) -> [Line; 2] {
    let at = at(results, connections);
    let against = |other: fn(&Throughput) -> &Vec<Load>| {
        let (first, other) = at.map(|at| (&at.first, other(at))).filter(|(_, other)| !other.is_empty())?;
        Some((rate(first) / rate(other), format!("{:.0}/s against {:.0}/s", rate(first), rate(other))))
    };
    let plural = if connections == 1 { "" } else { "s" };
    let figure = format!("first deliveries against pgbench, {connections} connection{plural}");
    let primary_keys = format!("{figure}, pgbench without other indexes than primary keys");
    [
        Line::new(&figure, Target::AtLeast(least), against(|at| &at.pgbench)),
        Line::new(&primary_keys, Target::AtLeast(least), against(|at| &at.plain)),
    ]
}

fn slowest(results: &Results) -> Line {
    let p99 = |loads| median(loads, |load| millis(load.p99));
    let measured = at(results, 16).filter(|at| !at.pgbench.is_empty()).map(|at| (p99(&at.first), p99(&at.pgbench)));
    Line::new(
        "p99 at 16 connections, against pgbench's",
        Target::AtMost(2.0),
        measured.map(|(ours, pgbenchs)| (ours / pgbenchs, format!("{ours:.1} ms against {pgbenchs:.1} ms"))),
    )
}

fn redeliveries(results: &Results) -> Line {
    let measured = at(results, 16).map(|at| (rate(&at.again), rate(&at.first)));
    Line::new(
        "redeliveries against first deliveries, 16 connections",
        Target::AtLeast(1.3),
        measured.map(|(again, first)| (again / first, format!("{again:.0}/s against {first:.0}/s"))),
    )
}

fn distance(distance: &Distance) -> [Line; 2] {
    let (near, far, network) = (millis(distance.near), millis(distance.far), millis(distance.network));
    let waits = (far - near) / network;
    [
        Line::new(
            "round trips to the database for a first delivery",
            Target::AtMost(3.0),
            Some((distance.round_trips, "counted on the wire".to_owned())),
        ),
        // The count says the exact number. Timers are not as exact: a few hundredths more are theirs.
        Line::new(
            "latency with 1 ms of network, in round trips",
            Target::AtMost(3.2),
            Some((waits, format!("{far:.2} ms, {near:.2} ms without; measured, it is {network:.2} ms"))),
        ),
    ]
}

fn cpu(results: &Results) -> Line {
    let of = |load: &Load| load.usage.map(|usage| usage.cpu_micros_per_event);
    let measured = at(results, 16).filter(|at| at.first.iter().all(|load| of(load).is_some()));
    Line::new(
        "CPU µs of the server's process for an event, 16 connections",
        Target::AtMost(90.0),
        measured.map(|at| (median(&at.first, |load| of(load).unwrap_or(f64::NAN)), "user and system".to_owned())),
    )
}

/// The most there was, and whether it still grew after the first tenth.
fn memory(looks: Option<&[Look]>) -> Line {
    let mib = |look: &Look| look.resident_kib as f64 / 1024.0;
    let measured = looks.and_then(|looks| {
        let most = looks.iter().map(mib).fold(0.0, f64::max);
        let (first, last) = (looks.first()?, looks.last()?);
        let how = format!("after {} events {:.1}, after {} {:.1}", first.events, mib(first), last.events, mib(last));
        Some((most, how))
    });
    let line = Line::new("resident MiB, 64 connections", Target::AtMost(40.0), measured);
    if line.is_met.is_some() { line } else { Line { measured: "not measured (--events 1000000)".to_owned(), ..line } }
}

fn many_rows(rows: Option<&Rows>) -> Line {
    let measured = rows.map(|rows| {
        let (few, many) = (rate(&rows.few), rate(&rows.many));
        (many / few, format!("{many:.0}/s against {few:.0}/s, {} rows, {}", rows.count, rows.size))
    });
    let figure = format!("rate with 10000000 rows in stripe_events, against {FEW}");
    let line = Line::new(&figure, Target::AtLeast(0.8), measured);
    if line.is_met.is_some() { line } else { Line { measured: "not measured (--rows 10000000)".to_owned(), ..line } }
}

fn hot(hot: &Hot) -> [Line; 2] {
    let rates = (!hot.pgbench.is_empty()).then(|| (rate(&hot.ours), rate(&hot.pgbench)));
    let stale = median(&hot.ours, |load| load.outcomes.get(1).copied().unwrap_or(0) as f64);
    let all = median(&hot.ours, |load| load.outcomes.iter().sum::<usize>() as f64);
    let stale = format!("{:.0} % of it stale", 100.0 * stale / all);
    [
        Line::new(
            "one hot subscription against pgbench's one row, 16 connections",
            Target::AtLeast(1.0),
            rates.map(|(ours, pgbenchs)| (ours / pgbenchs, format!("{ours:.0}/s, {stale}, against {pgbenchs:.0}/s"))),
        ),
        Line::new(
            "errors and deadlocks of one hot subscription",
            Target::AtMost(0.0),
            Some(((hot.errors as u64 + hot.deadlocks) as f64, format!("{} and {}", hot.errors, hot.deadlocks))),
        ),
    ]
}

fn at(results: &Results, connections: usize) -> Option<&Throughput> {
    results.throughputs.iter().find(|measured| measured.connections == connections)
}
