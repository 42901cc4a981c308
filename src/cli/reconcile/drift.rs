//! Compares rows with Stripe's own state, and says where they differ.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::missing::Window;
use crate::cli::job;
use crate::cli::progress::Progress;
use crate::service::{Comparison, Service};
use crate::stripe::api::{Client, Scope};

/// Each is a call to Stripe, so there is an end to how many are made.
const MOST_COMPARED: usize = 10_000;

/// Calls under way at once; Stripe allows many more a second.
const AT_ONCE: usize = 4;

/// An event may just be on its way. What differs is looked at again after this.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Compares every subscription that an event of the window is about, first those that a missing one is about; prints
/// what differs and returns in how many. In a dry run, those that the missing events would mend do not count.
pub(super) async fn report(
    service: &Service,
    stripe: &Client,
    window: &Window,
    scope: &Scope,
    is_dry_run: bool,
) -> Result<usize> {
    let rest = window.subscriptions.keys().filter(|id| !window.touched.contains(*id));
    let ids: Vec<&String> = window.touched.iter().chain(rest).take(MOST_COMPARED).collect();
    let compared = ids.len();
    if compared < window.subscriptions.len() {
        eprintln!("of {} subscriptions, {compared} are compared with Stripe's", window.subscriptions.len());
    }
    let mut progress = Progress::of("subscriptions compared", Some(compared));
    let mut comparisons = stream::iter(ids.into_iter().map(async |id| {
        let comparison = compare_twice(service, stripe, id, window.subscriptions.get(id).unwrap_or(scope)).await?;
        anyhow::Ok((id, comparison))
    }))
    .buffered(AT_ONCE);
    let mut drifted = 0;
    while let Some((id, comparison)) = comparisons.try_next().await? {
        progress.advance(1);
        let would_be_mended = is_dry_run && window.touched.contains(id);
        let lines = lines(id, comparison.as_ref(), would_be_mended);
        lines.iter().for_each(|line| progress.print(line));
        drifted += usize::from(!lines.is_empty() && !would_be_mended);
    }
    drop(progress);
    println!("compared {compared} subscriptions with Stripe's, {drifted} differ");
    Ok(drifted)
}

fn lines(id: &str, comparison: Option<&Comparison>, would_be_mended: bool) -> Vec<String> {
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

async fn compare_twice(service: &Service, stripe: &Client, id: &str, scope: &Scope) -> Result<Option<Comparison>> {
    match compare(service, stripe, id, scope).await? {
        Some(Comparison::Differs(_) | Comparison::Absent) => {
            tokio::time::sleep(SECOND_LOOK).await;
            compare(service, stripe, id, scope).await
        }
        settled => Ok(settled),
    }
}

/// `None` where Stripe has no such subscription.
async fn compare(service: &Service, stripe: &Client, id: &str, scope: &Scope) -> Result<Option<Comparison>> {
    let object = stripe.subscription_patiently(id, scope.clone()).await;
    match object.with_context(|| format!("cannot read subscription {id} from Stripe"))? {
        None => Ok(None),
        Some(object) => {
            let compared = job::patiently(async || service.compare(object.clone()).await).await;
            compared.map(Some).with_context(|| format!("cannot compare subscription {id}"))
        }
    }
}
