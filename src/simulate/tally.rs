//! Counts what deliveries came to, and puts it into words. It sends nothing and compares nothing.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// What deliveries came to so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Deliveries that were taken.
    pub(super) deliveries: usize,
    pub(super) duplicates: usize,
    pub(super) accounts: usize,
    /// By type and outcome, of events that were recorded for the first time.
    pub(super) outcomes: BTreeMap<&'static str, BTreeMap<String, usize>>,
    /// By reason.
    pub(super) retries: BTreeMap<String, usize>,
    /// What was given up, and what must not be.
    pub(super) problems: Vec<String>,
    pub(super) last_success: Option<Instant>,
    latencies: Vec<Duration>,
    applied: HashMap<String, usize>,
}

impl Tally {
    /// A delivery was taken.
    pub(super) fn taken(
        &mut self,
        event_id: &str,
        event_type: &'static str,
        applied: bool,
        outcome: &str,
        latency: Duration,
    ) {
        self.deliveries += 1;
        self.latencies.push(latency);
        if !applied {
            self.duplicates += 1;
            return;
        }
        *self.outcomes.entry(event_type).or_default().entry(outcome.to_owned()).or_default() += 1;
        let times = self.applied.entry(event_id.to_owned()).or_default();
        *times += 1;
        if *times > 1 {
            self.problems.push(format!("{event_id} was recorded for the first time {times} times"));
        }
    }

    /// Prints everything. `took` is the time from the first delivery to the last.
    pub(super) fn print(&mut self, took: Duration) {
        self.latencies.sort_unstable();
        let seconds = took.as_secs_f64().max(0.001);
        println!(
            "{} deliveries taken in {seconds:.1} s: {:.0} a second, latency p50 {:.1} ms, p99 {:.1} ms",
            self.deliveries,
            self.deliveries as f64 / seconds,
            self.percentile(50).as_secs_f64() * 1e3,
            self.percentile(99).as_secs_f64() * 1e3,
        );
        println!("{} answered as duplicates, {} accounts made", self.duplicates, self.accounts);
        for (event_type, outcomes) in &self.outcomes {
            println!("  {event_type:<37} {}", listed(outcomes));
        }
        match self.retries.values().sum::<usize>() {
            0 => println!("no retries"),
            retries => println!("{retries} retries: {}", listed(&self.retries)),
        }
    }

    /// Of the sorted latencies.
    fn percentile(&self, percent: usize) -> Duration {
        let index = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(index).copied().unwrap_or_default()
    }
}

/// `3 applied, 1 stale`.
pub(super) fn listed(counts: &BTreeMap<String, usize>) -> String {
    counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_is_recorded_twice_is_a_problem() {
        let mut tally = Tally::default();
        let millis = Duration::from_millis;
        tally.taken("evt_1", "invoice.paid", true, "parked", millis(3));
        tally.taken("evt_1", "invoice.paid", false, "duplicate", millis(1));
        assert!(tally.problems.is_empty());
        tally.taken("evt_1", "invoice.paid", true, "applied", millis(2));
        assert_eq!((tally.problems.len(), tally.duplicates, tally.deliveries), (1, 1, 3));
    }

    #[test]
    fn percentiles_are_of_the_latencies_and_of_none_none() {
        assert_eq!(Tally::default().percentile(99), Duration::ZERO);
        let tally = Tally { latencies: (1..=100).map(Duration::from_millis).collect(), ..Tally::default() };
        assert_eq!((tally.percentile(50).as_millis(), tally.percentile(99).as_millis()), (51, 100));
    }
}
