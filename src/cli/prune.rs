//! `prune`: deletes old idempotency rows, failures and changes. Parked events stay, however old, and so does the last
//! change of each subscription.

use std::time::Duration;

use super::progress::Progress;
use super::{Outcome, duration, job};
use crate::config::Options;
use crate::service::{Prunable, Service};

/// Stripe lists its events for so long; what is younger could come again.
const LEAST_AGE: Duration = Duration::from_secs(30 * 86_400);

/// Rows in one transaction.
const BATCH: u32 = 1_000;

/// Between two batches, for the deliveries that need the disk, too.
const PAUSE: Duration = Duration::from_millis(50);

/// How old.
#[derive(clap::Args, Debug)]
pub(super) struct Prune {
    /// Delete what was received longer ago than this, at least 30d
    #[arg(long, value_name = "DURATION", value_parser = age)]
    older_than: Duration,
}

fn age(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        age if age < LEAST_AGE => Err("30d is the least: Stripe may still list what is younger".to_owned()),
        age => Ok(age),
    }
}

impl Prune {
    /// Deletes in batches until none is left.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        job::run(options, async |service| {
            let failures = self.prune(&service, Prunable::Failures, "failures deleted").await?;
            let events = self.prune(&service, Prunable::Events, "events deleted").await?;
            let changes = self.prune(&service, Prunable::Changes, "changes deleted").await?;
            println!("deleted {events} events, {failures} failures and {changes} changes");
            Ok(())
        })
        .await
    }

    async fn prune(&self, service: &Service, what: Prunable, words: &'static str) -> anyhow::Result<usize> {
        let mut progress = Progress::of(words, None);
        let mut total = 0;
        loop {
            let deleted = job::with_retries(async || service.prune(what, self.older_than, BATCH).await).await?;
            progress.advance(deleted);
            total += deleted;
            if deleted < BATCH as usize {
                return Ok(total);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
