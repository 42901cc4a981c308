//! `replay`: applies events again from what is stored. Needs the database alone, no running server.

use std::collections::BTreeMap;

use anyhow::bail;

use super::progress::Progress;
use super::{Outcome, job};
use crate::config::Options;
use crate::service::{Replayable, Replayed, Service};

/// Which events.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Replay {
    /// Events by their ids
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All that have only ever failed
    #[arg(long)]
    failed: bool,
    /// All that are parked; one whose account is still unknown stays so
    #[arg(long)]
    parked: bool,
}

impl Replay {
    /// Replays one after the other, oldest first where they were not named; fails at the end if any did.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        job::run(options, async |service| {
            let ids = match self.which() {
                Some(which) => service.replayable(which).await?,
                None => self.ids.clone(),
            };
            replay(&service, ids).await
        })
        .await
    }

    fn which(&self) -> Option<Replayable> {
        if self.failed {
            return Some(Replayable::Failed);
        }
        self.parked.then_some(Replayable::Parked)
    }
}

async fn replay(service: &Service, ids: Vec<String>) -> Outcome {
    let mut counts = BTreeMap::<String, usize>::new();
    let mut failed = 0;
    let mut progress = Progress::of("events replayed", Some(ids.len()));
    for id in ids {
        let words = match job::patiently(async || service.replay(id.clone()).await).await {
            Ok(Replayed::Now(outcome)) => outcome,
            // Also one that was woken together with an earlier one of this run.
            Ok(Replayed::AlreadyRecorded) => "already recorded".to_owned(),
            Ok(Replayed::NotFound) => {
                failed += 1;
                "not found".to_owned()
            }
            Err(error) => {
                failed += 1;
                format!("failed: {}", job::failure_of_its_own(error)?)
            }
        };
        progress.print(&format!("{id} {words}"));
        progress.advance(1);
        let kind = words.split(':').next().unwrap_or_default().to_owned();
        *counts.entry(kind).or_default() += 1;
    }
    drop(progress);
    let counts: Vec<_> = counts.iter().map(|(words, count)| format!("{count} {words}")).collect();
    println!("{}", if counts.is_empty() { "nothing to replay".to_owned() } else { counts.join(", ") });
    if failed > 0 {
        bail!("{failed} could not be replayed");
    }
    Ok(())
}
