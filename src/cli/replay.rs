//! `replay`: applies events again from what is stored. Needs the database alone, no running server.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};

use super::progress::Progress;
use super::{Outcome, duration, job};
use crate::config::Options;
use crate::service::in_order::in_order;
use crate::service::{Candidate, Replayable, Replayed, Selection, Service};

/// How many named events are looked up at a time.
const LOOKED_UP: usize = 1_000;

/// Which events.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["ids", "failed", "parked"]))]
pub(super) struct Replay {
    /// Events by their ids
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All that have only ever failed
    #[arg(long)]
    failed: bool,
    /// All that are parked and can be placed now; those that nothing links stay parked
    #[arg(long)]
    parked: bool,
    /// Only those of this type
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "ids")]
    event_type: Option<String>,
    /// Only those that came so long ago at most
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, conflicts_with = "ids")]
    since: Option<Duration>,
}

impl Replay {
    /// Replays up to 64 events at a time, those of one subscription (of one customer, if they are parked) one after the
    /// other, oldest first where they were not named; fails at the end if any did.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        job::run(options, async |service| {
            let mut results = Results::default();
            let Some(selection) = self.selection() else {
                replay(&service, named(&service, &self.ids), &mut results).await?;
                return results.summarize(None);
            };
            let pages = service.replayable(&selection).map_err(anyhow::Error::from);
            replay(&service, pages.map_ok(ids_of).try_flatten(), &mut results).await?;
            let still_parked = match selection.which {
                Replayable::Parked => Some(job::with_retries(async || service.parked_count(&selection).await).await?),
                Replayable::Failed => None,
            };
            results.summarize(still_parked)
        })
        .await
    }

    /// `None` if the events are named.
    fn selection(&self) -> Option<Selection> {
        let which = match (self.failed, self.parked) {
            (true, _) => Replayable::Failed,
            (_, true) => Replayable::Parked,
            _ => return None,
        };
        Some(Selection { which, event_type: self.event_type.clone(), since: self.since })
    }
}

/// The named events, each with the key of its turn.
fn named(service: &Service, ids: &[String]) -> impl Stream<Item = Result<(String, String)>> {
    let pages = stream::iter(ids.chunks(LOOKED_UP)).then(async |ids| {
        let page = job::with_retries(async || service.candidates_by_id(ids.to_vec()).await).await;
        page.map_err(anyhow::Error::from)
    });
    pages.map_ok(ids_of).try_flatten()
}

/// The ids of a page, each with the key of its turn.
fn ids_of(page: Vec<Candidate>) -> impl Stream<Item = Result<(String, String)>> {
    stream::iter(page.into_iter().map(|event| Ok((event.turn, event.id))))
}

async fn replay(
    service: &Service,
    ids: impl Stream<Item = Result<(String, String)>>,
    results: &mut Results,
) -> Result<()> {
    let mut progress = Progress::of("events replayed", None);
    let mut replayed = pin!(in_order(ids, async |id: String| {
        let replayed = match job::with_retries(async || service.replay(id.clone()).await).await {
            Ok(replayed) => Ok(replayed),
            Err(error) => Err(job::failure_of_its_own(error)?),
        };
        Ok((id, replayed))
    }));
    while let Some((id, replayed)) = replayed.try_next().await? {
        progress.print(&format!("{id} {}", results.note(replayed)));
        progress.advance(1);
    }
    Ok(())
}

/// What became of the events.
#[derive(Default)]
struct Results {
    counts: BTreeMap<String, usize>,
    failed: usize,
}

impl Results {
    /// Counts a result, and puts it into words.
    fn note(&mut self, replayed: Result<Replayed, String>) -> String {
        let (kind, words) = match replayed {
            Ok(Replayed::Now(outcome)) => (outcome.clone(), outcome),
            // Also one that was released by an earlier one of this run.
            Ok(Replayed::AlreadyRecorded) => ("already recorded".to_owned(), "already recorded".to_owned()),
            Ok(Replayed::NotFound) => {
                self.failed += 1;
                ("not found".to_owned(), "not found".to_owned())
            }
            Err(failure) => {
                self.failed += 1;
                ("failed".to_owned(), format!("failed: {failure}"))
            }
        };
        *self.counts.entry(kind).or_default() += 1;
        words
    }

    fn summarize(&self, still_parked: Option<i64>) -> Outcome {
        let mut parts: Vec<_> = self.counts.iter().map(|(words, count)| format!("{count} {words}")).collect();
        if parts.is_empty() {
            parts.push("nothing to replay".to_owned());
        }
        parts.extend(still_parked.filter(|count| *count > 0).map(|count| format!("{count} stay parked")));
        println!("{}", parts.join(", "));
        if self.failed > 0 {
            bail!("{} could not be replayed", self.failed);
        }
        Ok(())
    }
}
