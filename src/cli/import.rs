//! `import`: the first fill. Every subscription that Stripe has is applied through the path that events take.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};

use super::progress::Progress;
use super::{Outcome, job};
use crate::config::Options;
use crate::service::in_order::in_order;
use crate::service::page_reader::Listing;
use crate::service::{Comparison, Recorded, Service};
use crate::stripe::api::{ApiError, Client, Fetched, List};
use crate::stripe::signature::Verified;
use crate::stripe::{Event, Newest, subscription_types};

/// How to import.
#[derive(clap::Args, Debug)]
pub(super) struct Import {
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Import from this connected account
    #[arg(long, value_name = "ACCT", value_parser = job::connect_account)]
    connect_account: Option<String>,
}

/// How far the event list is read back from its newest event: longer than an event may be in the list before its change
/// shows in a subscription that is read. A longer window would protect from nothing: every older event is in the states.
const WINDOW: TimeDelta = TimeDelta::minutes(5);

/// What Stripe's event list tells of the time before the states are read.
#[derive(Default)]
struct Known {
    /// The newest of each subscription.
    newest: HashMap<String, Newest>,
    /// Where the window begins.
    began: Option<DateTime<Utc>>,
    /// Whether an older event was listed.
    is_whole: bool,
}

/// A subscription that Stripe listed, and how its row compares; inside, why it is none.
type Listed = (Fetched, Result<Comparison, String>);

impl Import {
    /// Reads the newest events, then the subscriptions, and applies each; fails at the end if any did.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        job::run_with_stripe(options, async |service, stripe| {
            let known = self.known(&stripe).await?;
            self.import(&service, &stripe, &known).await
        })
        .await
    }

    /// Must be whole before the first state is read; see [`Event::imported`].
    async fn known(&self, stripe: &Client) -> Result<Known> {
        let types: Vec<_> = subscription_types().collect();
        let list = List::Events { types: &types, since: None, until: None };
        let mut known = Known::default();
        let mut progress = Progress::part("part 1 of 2: newest events read");
        let mut pages = stripe.pages(list, self.connect_account.as_deref());
        while !known.is_whole {
            match pages.next().await {
                Err(ApiError::Status { status, .. }) if matches!(status.as_u16(), 403 | 404) => {
                    log::warn!(
                        "Stripe does not let this key read its events ({status}): an event that is older than what \
                         is imported could win, until the next one comes"
                    );
                    return Ok(known);
                }
                page => match page.context("cannot read Stripe's events")? {
                    None => return Ok(known),
                    Some(page) => {
                        progress.advance(page.len());
                        page.iter().try_for_each(|event| known.note(&event.verified()))?;
                    }
                },
            }
        }
        Ok(known)
    }

    async fn import(&self, service: &Service, stripe: &Client, known: &Known) -> Outcome {
        let mut counts = BTreeMap::<&str, usize>::new();
        let mut progress = Progress::part("part 2 of 2: subscriptions imported");
        let pages = Listing::of_subscriptions(self.connect_account.as_deref()).pages(stripe);
        let pages = pages.map(|page| page.context("cannot read Stripe's subscriptions"));
        let listed = pages.and_then(|page| compared(service, page.objects)).try_flatten();
        let mut imported = pin!(in_order(listed, |listed| self.import_one(service, listed, known)));
        while let Some((id, became)) = imported.try_next().await? {
            let became = became.unwrap_or_else(|failure| {
                progress.print(&format!("{id} failed: {failure}"));
                "failed"
            });
            if self.dry_run && became != "unchanged" && became != "failed" {
                progress.print(&format!("{id} would be {became}"));
            }
            *counts.entry(became).or_default() += 1;
            progress.advance(1);
        }
        drop(progress);
        self.summarize(&counts)
    }

    fn summarize(&self, counts: &BTreeMap<&str, usize>) -> Outcome {
        let total: usize = counts.values().sum();
        let parts: Vec<_> = counts.iter().map(|(became, count)| format!("{count} {became}")).collect();
        let would = if self.dry_run { " (dry run: nothing was written)" } else { "" };
        println!(
            "{total} subscriptions: {}{would}",
            if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
        );
        match counts.get("failed") {
            Some(failed) => bail!("{failed} subscriptions could not be imported"),
            None => Ok(()),
        }
    }

    /// The id of a subscription, and what became of it in a word; inside, why it failed.
    async fn import_one(
        &self,
        service: &Service,
        (subscription, comparison): Listed,
        known: &Known,
    ) -> Result<(String, Result<&'static str, String>)> {
        let became = match comparison {
            Ok(comparison) => self.apply(service, &subscription, comparison, known).await?,
            Err(failure) => Err(failure),
        };
        Ok((name_of(&subscription), became))
    }

    async fn apply(
        &self,
        service: &Service,
        subscription: &Fetched,
        comparison: Comparison,
        known: &Known,
    ) -> Result<Result<&'static str, String>> {
        let newest = subscription.id().and_then(|id| known.newest.get(id));
        // Where the row is behind the newest event it is written although it shows the same: an event in between
        // that is yet to come must not win.
        if let Comparison::Same { as_of } = comparison
            && newest.is_none_or(|newest| as_of >= Some(newest.created))
        {
            return Ok(Ok("unchanged"));
        }
        let connect_account = self.connect_account.as_deref();
        let event = match Event::imported(subscription, connect_account, newest, known.began) {
            Ok(event) => event,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let recorded = job::with_retries(async || {
            if self.dry_run { service.preview(event.clone()).await } else { service.apply(event.clone()).await }
        });
        Ok(match recorded.await {
            Ok(Recorded::First(outcome)) => Ok(outcome.as_str()),
            Ok(Recorded::Duplicate) => Ok("unchanged"),
            Err(error) => Err(job::failure_of_its_own(error)?),
        })
    }
}

fn name_of(subscription: &Fetched) -> String {
    subscription.id().unwrap_or("a subscription without an id").to_owned()
}

/// Compares a page of subscriptions with their rows; each has the key of its turn.
async fn compared(service: &Service, page: Vec<Fetched>) -> Result<impl Stream<Item = Result<(String, Listed)>>> {
    let objects: Vec<_> = page.iter().map(|subscription| subscription.object().clone()).collect();
    let compared = match job::with_retries(async || service.compare_page(objects.clone()).await).await {
        Ok(compared) => compared,
        Err(error) => bail!(job::failure_of_its_own(error)?),
    };
    let listed = page.into_iter().zip(compared).map(|(subscription, comparison)| {
        Ok((name_of(&subscription), (subscription, comparison.map_err(|error| error.to_string()))))
    });
    Ok(stream::iter(listed))
}

impl Known {
    fn note(&mut self, event: &Verified) -> Result<()> {
        let event = Event::parse(event).context("Stripe listed what is no event")?;
        let Some(created) = event.created else {
            return Ok(());
        };
        // The list begins with the newest event.
        let began = *self.began.get_or_insert(created - WINDOW);
        if created < began {
            self.is_whole = true;
            return Ok(());
        }
        let Some(id) = event.subscription_id.filter(|_| event.kind.shows_a_subscription()) else {
            return Ok(());
        };
        let newest = self.newest.entry(id).or_insert_with(|| Newest { created, event_ids: Vec::new() });
        if newest.created < created {
            *newest = Newest { created, event_ids: Vec::new() };
        }
        if newest.created == created && !newest.event_ids.contains(&event.id) {
            newest.event_ids.push(event.id);
        }
        Ok(())
    }
}
