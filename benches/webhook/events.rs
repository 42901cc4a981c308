//! Events made ahead, so that the load costs next to nothing while it runs.

use std::ops::RangeInclusive;

use anyhow::Result;
use subledger::secret::Secret;

use crate::support::events::{self, id};

/// Makes first deliveries, each newer than all before it.
pub struct Events {
    events: events::Events,
    made: u64,
}

impl Events {
    /// Events of this many subscriptions, each in its turn; with `are_changing`, each with other seats than the last.
    pub fn new(subscriptions: u64, are_changing: bool) -> Result<Self> {
        let events = events::Events::new(subscriptions)?;
        Ok(Self { events: if are_changing { events.changing() } else { events }, made: 0 })
    }

    /// One event, the same each time.
    pub fn example(&self) -> String {
        self.events.payload(0)
    }

    /// Whole HTTP requests, signed now.
    pub fn requests(&mut self, count: usize, secret: &Secret) -> Vec<Vec<u8>> {
        self.next(count).map(|n| self.events.request(n, secret)).collect()
    }

    /// The same, and every event is of the first subscription.
    pub fn requests_of_one(&mut self, count: usize, secret: &Secret) -> Vec<Vec<u8>> {
        self.next(count).map(|n| self.events.request_of_one(n, secret)).collect()
    }

    /// The id of the event that was made last.
    pub fn newest_id(&self) -> String {
        id(self.made)
    }

    fn next(&mut self, count: usize) -> RangeInclusive<u64> {
        let first = self.made + 1;
        self.made += count as u64;
        first..=self.made
    }
}
