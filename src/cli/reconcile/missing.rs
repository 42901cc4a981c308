//! What Stripe's event list holds that our tables do not.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};

use crate::cli::job;
use crate::cli::progress::Progress;
use crate::service::Service;
use crate::stripe::api::{Client, Fetched, List, Scope};
use crate::stripe::{Event, handled_types};

/// The events since some time.
///
/// Read are the types that are handled, whether or not they were delivered elsewhere: what this service has recorded
/// is the only measure. Others would change nothing, and to record them would say that they had arrived.
pub(super) struct Window {
    /// How many events Stripe listed.
    pub(super) count: usize,
    /// Those that have no idempotency row, oldest first. Only these are kept whole.
    pub(super) missing: Vec<Fetched>,
    /// The subscriptions that any of the events is about, each with the account on whose behalf it is read.
    pub(super) subscriptions: BTreeMap<String, Scope>,
    /// Those that a missing event is about.
    pub(super) touched: BTreeSet<String>,
}

impl Window {
    /// Reads the list to its end. Should Stripe list an event twice, it counts once.
    pub(super) async fn read(
        service: &Service,
        stripe: &Client,
        since: Option<DateTime<Utc>>,
        scope: &Scope,
    ) -> Result<Self> {
        let types: Vec<_> = handled_types().collect();
        let list = List::Events { types: &types, since };
        let mut window =
            Self { count: 0, missing: Vec::new(), subscriptions: BTreeMap::new(), touched: BTreeSet::new() };
        let mut seen = HashSet::new();
        let mut progress = Progress::of("events read", None);
        let mut pages = stripe.pages(list, scope.clone());
        while let Some(page) = pages.next().await.context("cannot read Stripe's events")? {
            progress.advance(page.len());
            window.note(service, page, scope, &mut seen).await?;
        }
        window.count = seen.len();
        window.missing.reverse();
        Ok(window)
    }

    /// Takes a page in.
    async fn note(
        &mut self,
        service: &Service,
        page: Vec<Fetched>,
        scope: &Scope,
        seen: &mut HashSet<String>,
    ) -> Result<()> {
        let mut new = Vec::new();
        for fetched in page {
            let fetched = fetched.read_in(scope);
            let event = Event::parse(&fetched.verified()).context("Stripe listed what is no event")?;
            if seen.insert(event.id.clone()) {
                if let Some(id) = &event.subscription_id {
                    self.subscriptions.insert(id.clone(), event.scope());
                }
                new.push((event.id, event.subscription_id, fetched));
            }
        }
        let ids: Vec<_> = new.iter().map(|(id, ..)| id.clone()).collect();
        let unrecorded: HashSet<_> =
            job::patiently(async || service.unrecorded(ids.clone()).await).await?.into_iter().collect();
        for (_, subscription, fetched) in new.into_iter().filter(|(id, ..)| unrecorded.contains(id)) {
            self.touched.extend(subscription);
            self.missing.push(fetched);
        }
        Ok(())
    }
}
