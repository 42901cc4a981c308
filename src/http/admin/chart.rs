//! The chart of the last 24 hours: where each bar and each part of it stands. Pure.

use chrono::{DateTime, TimeDelta, Utc};

use super::format::{count, counted};
use crate::db::overview::HourCount;
use crate::service::{CHART_HOURS, Overview};

/// The parts of a bar, from the bottom up.
pub const STATUSES: [&str; 5] = ["applied", "stale", "ignored", "parked", "failed"];

/// The height of the drawing, and the width of an hour in it.
const HEIGHT: f64 = 100.0;
const HOUR_WIDTH: f64 = 10.0;
const BAR_WIDTH: f64 = 7.0;

/// What is there must be seen: one failure among thousands is drawn this high.
const LEAST_HEIGHT: f64 = 2.0;

/// The chart, ready to be drawn.
#[derive(Debug)]
pub struct Chart {
    pub bars: Vec<Bar>,
    /// What the top line stands for, and the one in the middle.
    pub top: String,
    pub middle: String,
    /// The sums, in the order of [`STATUSES`].
    pub sums: Vec<(&'static str, String)>,
    /// The whole in one sentence, for those who cannot see it.
    pub summary: String,
    pub width: f64,
    pub height: f64,
}

/// One hour.
#[derive(Debug)]
pub struct Bar {
    pub x: f64,
    pub parts: Vec<Part>,
    /// `14:00`.
    pub hour: String,
    /// Whether the axis names it.
    pub is_labelled: bool,
    /// The counts in the order of [`STATUSES`], and their sum.
    pub counts: [i64; STATUSES.len()],
    pub sum: i64,
    pub words: String,
}

/// The events of one hour that came to the same.
#[derive(Debug)]
pub struct Part {
    pub status: &'static str,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

impl Bar {
    pub fn has_parked(&self) -> bool {
        self.counts[3] > 0
    }

    pub fn has_failed(&self) -> bool {
        self.counts[4] > 0
    }
}

impl Chart {
    pub fn of(overview: &Overview) -> Self {
        let hours: Vec<_> = (0..CHART_HOURS).map(|hour| overview.chart_start + TimeDelta::hours(hour)).collect();
        let counts: Vec<_> = hours.iter().map(|hour| counts_of(*hour, &overview.hours)).collect();
        let largest = counts.iter().map(|counts| counts.iter().sum()).max().unwrap_or(0);
        let top = round_up(largest);
        let bars = hours.iter().zip(&counts).enumerate().map(|(index, (hour, counts))| bar(index, *hour, *counts, top));
        let sums: Vec<_> = (0..STATUSES.len())
            .map(|status| (STATUSES[status], counts.iter().map(|counts| counts[status]).sum::<i64>()))
            .collect();
        let parts: Vec<_> = sums.iter().map(|(status, sum)| format!("{} {status}", count(*sum))).collect();
        Self {
            bars: bars.collect(),
            top: count(top),
            middle: count(top / 2),
            summary: format!("Events by hour. In all: {}. At most {} in one hour.", parts.join(", "), count(largest)),
            sums: sums.into_iter().map(|(status, sum)| (status, count(sum))).collect(),
            width: HOUR_WIDTH * CHART_HOURS as f64,
            height: HEIGHT,
        }
    }
}

fn counts_of(hour: DateTime<Utc>, all: &[HourCount]) -> [i64; STATUSES.len()] {
    STATUSES.map(|status| all.iter().filter(|one| one.hour == hour && one.status == status).map(|one| one.events).sum())
}

fn bar(index: usize, hour: DateTime<Utc>, counts: [i64; STATUSES.len()], top: i64) -> Bar {
    let mut y = HEIGHT;
    let parts = STATUSES.into_iter().zip(counts).filter(|(_, events)| *events > 0).map(|(status, events)| {
        let height = (events as f64 / top as f64 * HEIGHT).max(LEAST_HEIGHT);
        y = (y - height).max(0.0);
        Part { status, y, width: BAR_WIDTH, height }
    });
    let parts = parts.collect();
    let sum = counts.iter().sum();
    let came = STATUSES.into_iter().zip(counts).filter(|(_, events)| *events > 0);
    let came: Vec<_> = came.map(|(status, events)| format!("{} {status}", count(events))).collect();
    let start = hour.format("%H:%M");
    Bar {
        x: index as f64 * HOUR_WIDTH + (HOUR_WIDTH - BAR_WIDTH) / 2.0,
        parts,
        hour: start.to_string(),
        // Every sixth hour, counted back from the one under way, which stands at the edge.
        is_labelled: (CHART_HOURS as usize - 1 - index) % 6 == 5,
        counts,
        sum,
        words: match sum {
            0 => format!("{start} UTC: nothing"),
            _ => format!("{start} UTC: {} ({})", counted(sum, "event"), came.join(", ")),
        },
    }
}

/// The next even number that reads well: 2, 4, 6, 8, 10, 20, 40 and so on.
fn round_up(largest: i64) -> i64 {
    let mut power = 1_i64;
    loop {
        for step in [2, 4, 6, 8, 10] {
            if largest <= step * power {
                return step * power;
            }
        }
        power = power.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_number_that_reads_well() {
        assert_eq!([0, 1, 3, 5, 7, 11, 61, 1_001].map(round_up), [2, 2, 4, 6, 8, 20, 80, 2_000]);
    }

    #[test]
    fn one_failure_among_thousands_is_seen_and_stays_within_the_drawing() {
        let bar = bar(0, DateTime::UNIX_EPOCH, [10_000, 0, 0, 0, 1], 10_000);
        let (applied, failed) = (&bar.parts[0], &bar.parts[1]);
        assert_eq!((applied.status, failed.status), ("applied", "failed"));
        assert!(failed.height >= LEAST_HEIGHT && failed.y >= 0.0 && applied.y >= 0.0);
        assert_eq!(bar.words, "00:00 UTC: 10,001 events (10,000 applied, 1 failed)");
    }
}
