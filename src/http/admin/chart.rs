//! The charts of the last 24 hours and of the last seven days: the position of each bar and each part. Pure.

use chrono::{DateTime, TimeDelta, Utc};

use super::format::{count, counted};
use crate::db::overview::HourCount;
use crate::service::{CHART_DAYS, CHART_HOURS, Overview};

/// The parts of a bar, from the bottom up.
pub const STATUSES: [&str; 5] = ["applied", "stale", "ignored", "parked", "failed"];

/// The height of the drawing, and the width of a bar with its gap.
const HEIGHT: f64 = 100.0;
const STEP: f64 = 10.0;
const BAR_WIDTH: f64 = 7.0;

/// The least height of a part: one failure among thousands must be visible.
const LEAST_HEIGHT: f64 = 2.0;

/// A chart, ready to be drawn.
#[derive(Debug)]
pub struct Chart {
    /// Distinguishes the charts of a page.
    pub id: &'static str,
    pub title: &'static str,
    /// The name of a bar's span of time: the table's first column.
    pub span: &'static str,
    pub bars: Vec<Bar>,
    /// The values of the top and the middle line.
    pub top: String,
    pub middle: String,
    /// The sums, in the order of [`STATUSES`].
    pub sums: Vec<(&'static str, String)>,
    /// The whole chart in one sentence, for screen readers.
    pub summary: String,
    pub width: f64,
    pub height: f64,
}

/// One hour or one day.
#[derive(Debug)]
pub struct Bar {
    pub x: f64,
    pub width: f64,
    pub parts: Vec<Part>,
    /// `14:00` or `Mon 3 Nov`.
    pub name: String,
    /// The text at the axis, if the bar has one.
    pub label: Option<String>,
    /// The counts in the order of [`STATUSES`], and their sum.
    pub counts: Counts,
    pub sum: i64,
    pub description: String,
}

type Counts = [i64; STATUSES.len()];

/// The events of one bar with one status.
#[derive(Debug)]
pub struct Part {
    pub status: &'static str,
    pub y: f64,
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
    /// The last 24 hours, by hour.
    pub fn of_day(overview: &Overview) -> Self {
        let bars = (0..CHART_HOURS).map(|index| {
            let start = overview.day_start + TimeDelta::hours(index);
            let name = start.format("%H:%M").to_string();
            // Every sixth hour, counted back from the current one at the edge.
            let label = ((CHART_HOURS - 1 - index) % 6 == 5).then(|| name.clone());
            (name, label, counts(&overview.hours, start, TimeDelta::hours(1)))
        });
        Self::of("day", ["Last 24 hours", "Hour, UTC", "hour"], bars.collect())
    }

    /// The last seven days, by day.
    pub fn of_week(overview: &Overview) -> Self {
        let bars = (0..CHART_DAYS).map(|index| {
            let start = overview.week_start + TimeDelta::days(index);
            let name = start.format("%a %-d %b").to_string();
            (name, Some(start.format("%a").to_string()), counts(&overview.hours, start, TimeDelta::days(1)))
        });
        Self::of("week", ["Last 7 days", "Day, UTC", "day"], bars.collect())
    }

    fn of(
        id: &'static str,
        [title, span, unit]: [&'static str; 3],
        bars: Vec<(String, Option<String>, Counts)>,
    ) -> Self {
        let largest = bars.iter().map(|(.., counts)| counts.iter().sum()).max().unwrap_or(0);
        let top = round_up(largest);
        let sums: Vec<_> = (0..STATUSES.len())
            .map(|status| (STATUSES[status], bars.iter().map(|(.., counts)| counts[status]).sum::<i64>()))
            .collect();
        let parts: Vec<_> = sums.iter().map(|(status, sum)| format!("{} {status}", count(*sum))).collect();
        Self {
            id,
            title,
            span,
            width: STEP * bars.len() as f64,
            height: HEIGHT,
            top: count(top),
            middle: count(top / 2),
            summary: format!(
                "Events by {unit}. In all: {}. At most {} in one {unit}.",
                parts.join(", "),
                count(largest)
            ),
            sums: sums.into_iter().map(|(status, sum)| (status, count(sum))).collect(),
            bars: bars
                .into_iter()
                .enumerate()
                .map(|(index, (name, label, counts))| bar(index, name, label, counts, top))
                .collect(),
        }
    }
}

/// The counts of the hours within a span of time.
fn counts(all: &[HourCount], start: DateTime<Utc>, length: TimeDelta) -> Counts {
    let within = |one: &&HourCount| (start..start + length).contains(&one.hour);
    STATUSES.map(|status| all.iter().filter(within).filter(|one| one.status == status).map(|one| one.events).sum())
}

fn bar(index: usize, name: String, label: Option<String>, counts: Counts, top: i64) -> Bar {
    let mut y = HEIGHT;
    let parts = STATUSES.into_iter().zip(counts).filter(|(_, events)| *events > 0).map(|(status, events)| {
        let height = (events as f64 / top as f64 * HEIGHT).max(LEAST_HEIGHT);
        y = (y - height).max(0.0);
        Part { status, y, height }
    });
    let parts = parts.collect();
    let sum = counts.iter().sum();
    let present = STATUSES.into_iter().zip(counts).filter(|(_, events)| *events > 0);
    let present: Vec<_> = present.map(|(status, events)| format!("{} {status}", count(events))).collect();
    Bar {
        x: index as f64 * STEP + (STEP - BAR_WIDTH) / 2.0,
        width: BAR_WIDTH,
        parts,
        description: match sum {
            0 => format!("{name} UTC: no events"),
            _ => format!("{name} UTC: {} ({})", counted(sum, "event"), present.join(", ")),
        },
        name,
        label,
        counts,
        sum,
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
        let bar = bar(0, "00:00".to_owned(), None, [10_000, 0, 0, 0, 1], 10_000);
        let (applied, failed) = (&bar.parts[0], &bar.parts[1]);
        assert_eq!((applied.status, failed.status), ("applied", "failed"));
        assert!(failed.height >= LEAST_HEIGHT && failed.y >= 0.0 && applied.y >= 0.0);
        assert_eq!(bar.description, "00:00 UTC: 10,001 events (10,000 applied, 1 failed)");
    }

    #[test]
    fn each_hour_counts_in_its_own_span_alone() {
        let hour = |hours| HourCount {
            hour: DateTime::UNIX_EPOCH + TimeDelta::hours(hours),
            status: "stale".to_owned(),
            events: 1,
        };
        let all = [hour(23), hour(24), hour(47), hour(48)];
        let day = DateTime::UNIX_EPOCH + TimeDelta::days(1);
        assert_eq!(counts(&all, day, TimeDelta::days(1)), [0, 2, 0, 0, 0]);
        assert_eq!(counts(&all, day, TimeDelta::hours(1)), [0, 1, 0, 0, 0]);
    }
}
