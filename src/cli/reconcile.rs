//! `reconcile`: reads Stripe's event list, applies what never arrived, and reports where a row is not as Stripe has it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use chrono::{DateTime, SecondsFormat, Utc};

use super::progress::Progress;
use super::{Outcome, duration, job};
use crate::config::Options;
use crate::service::reconcile::{Compared, MOST_COMPARED, Scope, Window};
use crate::service::{Comparison, Service};
use crate::stripe::Event;
use crate::stripe::api::Client;

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
        let window = self.read(service, stripe).await?;
        println!("read {} events, {} never arrived", window.count, window.missing);
        let failed = self.apply(service, &window).await?;
        let Drift { differing, uncompared } = self.report_drift(service, stripe, &window).await?;
        let problems = [
            (failed, "events failed"),
            (differing, "subscriptions differ from Stripe's"),
            (uncompared, "subscriptions were not compared with Stripe's"),
        ];
        let problems: Vec<_> =
            problems.iter().filter(|(count, _)| *count > 0).map(|(count, words)| format!("{count} {words}")).collect();
        if problems.is_empty() { Ok(()) } else { bail!(problems.join(", ")) }
    }

    /// Only chooses what is read; it orders nothing.
    fn window_start(&self) -> Option<DateTime<Utc>> {
        Utc::now().checked_sub_signed(chrono::TimeDelta::from_std(self.since + OVERLAP).ok()?)
    }

    async fn read(&self, service: &Service, stripe: &Client) -> Result<Window> {
        let scope = Scope { since: self.window_start(), until: None, connect_account: self.connect_account.clone() };
        let mut progress = Progress::of("events read", None);
        Window::read(service, stripe, scope, |events| progress.advance(events)).await
    }

    /// Applies what is missing, oldest first; returns how many failed.
    async fn apply(&self, service: &Service, window: &Window) -> Result<usize> {
        let mut counts = BTreeMap::<&str, usize>::new();
        let mut progress = Progress::of("events applied", Some(window.missing));
        let would = if self.dry_run { "would be " } else { "" };
        let failed = window
            .apply(service, self.dry_run, |event, applied| {
                let (became, words) = match applied {
                    // A duplicate arrived in the meantime.
                    Ok(recorded) => (recorded.as_str(), recorded.as_str().to_owned()),
                    Err(failure) => ("failed", format!("failed: {failure}")),
                };
                progress.print(&format!("{} {would}{words}", words_for(event)));
                progress.advance(1);
                *counts.entry(became).or_default() += 1;
            })
            .await?;
        drop(progress);
        if !counts.is_empty() && !self.dry_run {
            let parts: Vec<_> = counts.iter().map(|(became, count)| format!("{count} {became}")).collect();
            println!("{}", parts.join(", "));
        }
        Ok(failed)
    }

    /// Compares the subscriptions that an event of the window is about with Stripe's, and prints what differs. In a dry
    /// run, those that the missing events would mend do not count.
    async fn report_drift(&self, service: &Service, stripe: &Client, window: &Window) -> Result<Drift> {
        let subscriptions = window.subscriptions.to_compare(MOST_COMPARED);
        let mut progress = Progress::of("subscriptions compared", Some(subscriptions.len()));
        let (mut compared, mut differing) = (0, 0);
        let on_compared = |id: &str, result: Compared| {
            progress.advance(1);
            let comparison = match result {
                Ok(comparison) => comparison,
                Err(error) => {
                    progress.print(&format!("{id} was not compared: {error}"));
                    return;
                }
            };
            compared += 1;
            let would_be_mended = self.dry_run && window.subscriptions.is_touched(id);
            let lines = drift_lines(id, comparison.as_ref(), would_be_mended);
            lines.iter().for_each(|line| progress.print(line));
            differing += usize::from(!lines.is_empty() && !would_be_mended);
        };
        service.compare_all(stripe, subscriptions, self.connect_account.as_deref(), on_compared).await?;
        drop(progress);
        let uncompared = window.subscriptions.count().saturating_sub(compared);
        let partial = if uncompared > 0 { format!("; {uncompared} were not compared") } else { String::new() };
        println!("compared {compared} subscriptions with Stripe's, {differing} differ{partial}");
        Ok(Drift { differing, uncompared })
    }
}

/// The result of a comparison.
struct Drift {
    /// How many subscriptions differ.
    differing: usize,
    /// How many were not compared: more than are compared in one run, or refused by Stripe.
    uncompared: usize,
}

fn drift_lines(id: &str, comparison: Option<&Comparison>, would_be_mended: bool) -> Vec<String> {
    let note = if would_be_mended { " (the missing events are about it)" } else { "" };
    match comparison {
        // Stripe has none (any more), or it waits for its account: no drift.
        None | Some(Comparison::Same { .. } | Comparison::Parked) => Vec::new(),
        Some(Comparison::Absent) => vec![format!("drift {id}: there is no row{note}")],
        Some(Comparison::Differs(differences)) => differences
            .iter()
            .map(|each| format!("drift {id} {}: ours {}, Stripe's {}{note}", each.column, each.ours, each.stripes))
            .collect(),
    }
}

fn words_for(event: &Event) -> String {
    let created = event.created.map(|created| created.to_rfc3339_opts(SecondsFormat::AutoSi, true));
    let parts =
        [Some(event.id.as_str()), Some(&event.event_type), created.as_deref(), event.subscription_id.as_deref()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}
