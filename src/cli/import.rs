//! `import`: the first fill. Every subscription that Stripe has is applied through the path that events take.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};

use super::progress::Progress;
use super::{Outcome, job};
use crate::config::Options;
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

/// What Stripe's event list tells of the time before the states are read.
#[derive(Default)]
struct Known {
    /// The newest of each subscription.
    newest: HashMap<String, Newest>,
    /// The time of the oldest listed event.
    list_began: Option<DateTime<Utc>>,
}

impl Import {
    /// Reads the event list, then the subscriptions, and applies each; fails at the end if any did.
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
        let mut progress = Progress::of("events read", None);
        let mut pages = stripe.pages(list, self.connect_account.as_deref());
        loop {
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
    }

    async fn import(&self, service: &Service, stripe: &Client, known: &Known) -> Outcome {
        let mut counts = BTreeMap::<&str, usize>::new();
        let mut progress = Progress::of("subscriptions read", None);
        let mut pages = stripe.pages(List::Subscriptions, self.connect_account.as_deref());
        while let Some(page) = pages.next().await.context("cannot read Stripe's subscriptions")? {
            for subscription in &page {
                let id = subscription.id().unwrap_or("a subscription without an id");
                let became = match self.import_one(service, subscription, known).await? {
                    Ok(became) => became,
                    Err(failure) => {
                        progress.print(&format!("{id} failed: {failure}"));
                        "failed"
                    }
                };
                if self.dry_run && became != "unchanged" && became != "failed" {
                    progress.print(&format!("{id} would be {became}"));
                }
                *counts.entry(became).or_default() += 1;
            }
            progress.advance(page.len());
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

    /// What became of a subscription, in a word; inside, why it failed.
    async fn import_one(
        &self,
        service: &Service,
        subscription: &Fetched,
        known: &Known,
    ) -> Result<Result<&'static str, String>> {
        let newest = subscription.id().and_then(|id| known.newest.get(id));
        let object = subscription.object();
        let comparison = match job::patiently(async || service.compare(object.clone()).await).await {
            Ok(comparison) => comparison,
            Err(error) => return job::failure_of_its_own(error).map(Err),
        };
        // Where the row is behind the newest event it is written although it shows the same: an event in between
        // that is yet to come must not win.
        if let Comparison::Same { as_of } = comparison
            && newest.is_none_or(|newest| as_of >= Some(newest.created))
        {
            return Ok(Ok("unchanged"));
        }
        let connect_account = self.connect_account.as_deref();
        let event = match Event::imported(subscription, connect_account, newest, known.list_began) {
            Ok(event) => event,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let recorded = job::patiently(async || {
            if self.dry_run { service.preview(event.clone()).await } else { service.apply(event.clone()).await }
        });
        Ok(match recorded.await {
            Ok(Recorded::First(outcome)) => Ok(outcome.as_str()),
            Ok(Recorded::Duplicate) => Ok("unchanged"),
            Err(error) => Err(job::failure_of_its_own(error)?),
        })
    }
}

impl Known {
    fn note(&mut self, event: &Verified) -> Result<()> {
        let event = Event::parse(event).context("Stripe listed what is no event")?;
        let Some(created) = event.created else {
            return Ok(());
        };
        self.list_began = Some(self.list_began.map_or(created, |began| began.min(created)));
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
