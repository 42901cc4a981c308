//! `reconcile`: reads Stripe's event list, applies what never arrived, and reports where a row is not as Stripe has it.

mod drift;
mod missing;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use chrono::{DateTime, SecondsFormat, Utc};

use self::missing::Window;
use super::progress::Progress;
use super::{Outcome, duration, job};
use crate::config::Options;
use crate::service::{Recorded, Service};
use crate::stripe::Event;
use crate::stripe::api::{Client, Scope};

/// Stripe lists its events for so long.
const STRIPES_MEMORY: Duration = Duration::from_secs(30 * 86_400);

/// Read beyond what was asked for: this machine's clock may be wrong, and two runs in a row must overlap.
const OVERLAP: Duration = Duration::from_secs(600);

/// What to reconcile.
#[derive(clap::Args, Debug)]
pub(super) struct Reconcile {
    /// How far to look back; Stripe lists its events for 30d
    #[arg(long, value_name = "DURATION", default_value = "72h", value_parser = duration::parse)]
    since: Duration,
    /// Say what would be applied and what differs, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Reconcile with this connected account
    #[arg(long, value_name = "ACCT", value_parser = job::connect_account)]
    connect_account: Option<String>,
}

impl Reconcile {
    /// Reads, applies oldest first, compares; fails at the end if an event did or drift remains.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        job::run_with_stripe(options, async |service, stripe| self.reconcile(&service, &stripe).await).await
    }

    async fn reconcile(&self, service: &Service, stripe: &Client) -> Outcome {
        if self.since > STRIPES_MEMORY {
            eprintln!("Stripe lists its events for 30 days; what is older cannot be read");
        }
        let scope = Scope::from(self.connect_account.as_deref());
        let window = Window::read(service, stripe, self.window_start(), &scope).await?;
        println!("read {} events, {} never arrived", window.count, window.missing.len());
        let failed = self.apply(service, &window).await?;
        let drifted = drift::report(service, stripe, &window, &scope, self.dry_run).await?;
        match (failed, drifted) {
            (0, 0) => Ok(()),
            (0, drifted) => bail!("{drifted} subscriptions differ from Stripe's"),
            (failed, 0) => bail!("{failed} events failed"),
            (failed, drifted) => bail!("{failed} events failed, {drifted} subscriptions differ from Stripe's"),
        }
    }

    /// Only chooses what is read; it orders nothing.
    fn window_start(&self) -> Option<DateTime<Utc>> {
        Utc::now().checked_sub_signed(chrono::TimeDelta::from_std(self.since + OVERLAP).ok()?)
    }

    /// Applies what is missing, oldest first; returns how many failed.
    async fn apply(&self, service: &Service, window: &Window) -> anyhow::Result<usize> {
        let mut counts = BTreeMap::<&str, usize>::new();
        let mut progress = Progress::of("events applied", Some(window.missing.len()));
        for fetched in &window.missing {
            let event = match Event::parse(&fetched.verified()) {
                Ok(event) => event,
                Err(error) => bail!("Stripe listed what is no event: {error}"),
            };
            let recorded = job::patiently(async || {
                if self.dry_run { service.preview(event.clone()).await } else { service.apply(event.clone()).await }
            });
            let (became, words) = match recorded.await {
                Ok(Recorded::First(outcome)) => (outcome.as_str(), outcome.as_str().to_owned()),
                // It arrived in the meantime.
                Ok(Recorded::Duplicate) => ("duplicate", "duplicate".to_owned()),
                Err(error) => ("failed", format!("failed: {}", job::failure_of_its_own(error)?)),
            };
            let would = if self.dry_run { "would be " } else { "" };
            progress.print(&format!("{} {would}{words}", words_for(&event)));
            progress.advance(1);
            *counts.entry(became).or_default() += 1;
        }
        drop(progress);
        if !counts.is_empty() && !self.dry_run {
            let parts: Vec<_> = counts.iter().map(|(became, count)| format!("{count} {became}")).collect();
            println!("{}", parts.join(", "));
        }
        Ok(counts.get("failed").copied().unwrap_or(0))
    }
}

fn words_for(event: &Event) -> String {
    let created = event.created.map(|created| created.to_rfc3339_opts(SecondsFormat::AutoSi, true));
    let parts =
        [Some(event.id.as_str()), Some(&event.event_type), created.as_deref(), event.subscription_id.as_deref()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}
