//! Reconciling: reads a window of Stripe's event list, applies what never arrived, and compares rows with Stripe's own
//! state. The command and the server's own passes both do it through here.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, stream};

use super::patience::{failure_of_its_own, patiently};
use super::{Comparison, Recorded, Service};
use crate::stripe::api::{Client, Fetched, List};
use crate::stripe::{Event, handled_types};

/// Calls to Stripe under way at once; it allows many more a second.
const AT_ONCE: usize = 4;

/// An event may just be on its way. What differs is compared again after this.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Which events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// Nothing older than this; its second is included.
    pub since: Option<DateTime<Utc>>,
    /// Nothing younger than this; its second is included.
    pub until: Option<DateTime<Utc>>,
    /// The connected account whose events are read.
    pub connect_account: Option<&'a str>,
}

/// The events of a scope.
///
/// Read are the types that are handled, whether or not they were delivered elsewhere: what this service has recorded
/// is the only measure. Others would change nothing, and to record them would say that they had arrived.
#[derive(Debug, Default)]
pub struct Window {
    /// How many events Stripe listed.
    pub count: usize,
    /// Those that have no idempotency row, oldest first. Only these are kept whole.
    pub missing: Vec<Fetched>,
    /// The subscriptions that any of the events is about, each with the connected account that it belongs to.
    pub subscriptions: BTreeMap<String, Option<String>>,
    /// Those that a missing event is about.
    pub touched: BTreeSet<String>,
}

/// What became of an event; inside, why it failed.
pub type Applied = Result<Recorded, String>;

impl Window {
    /// Reads the list to its end; `on_page` is told the number of events of each page. Should Stripe list an event
    /// twice, it counts once.
    ///
    /// # Errors
    /// Where Stripe or the database does not answer.
    pub async fn read(
        service: &Service,
        stripe: &Client,
        scope: Scope<'_>,
        mut on_page: impl FnMut(usize),
    ) -> Result<Self> {
        let types: Vec<_> = handled_types().collect();
        let list = List::Events { types: &types, since: scope.since, until: scope.until };
        let mut window = Self::default();
        let mut seen = HashSet::new();
        let mut pages = stripe.pages(list, scope.connect_account);
        while let Some(page) = pages.next().await.context("cannot read Stripe's events")? {
            on_page(page.len());
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
        scope: Scope<'_>,
        seen: &mut HashSet<String>,
    ) -> Result<()> {
        let mut new = Vec::new();
        for fetched in page {
            let fetched = fetched.read_in(&scope.connect_account.into());
            let event = Event::parse(&fetched.verified()).context("Stripe listed what is no event")?;
            let is_too_young = scope.until.is_some_and(|until| event.created > Some(until));
            if !is_too_young && seen.insert(event.id.clone()) {
                if let Some(id) = &event.subscription_id {
                    self.subscriptions.insert(id.clone(), event.connect_account.clone());
                }
                new.push((event.id, event.subscription_id, fetched));
            }
        }
        let ids: Vec<_> = new.iter().map(|(id, ..)| id.clone()).collect();
        let unrecorded: HashSet<_> = patiently(|| service.unrecorded(ids.clone())).await?.into_iter().collect();
        for (_, subscription, fetched) in new.into_iter().filter(|(id, ..)| unrecorded.contains(id)) {
            self.touched.extend(subscription);
            self.missing.push(fetched);
        }
        Ok(())
    }

    /// Applies what is missing, oldest first, or only says what it would come to; `on_event` is told each result.
    /// Returns how many failed.
    ///
    /// # Errors
    /// Where the database or Stripe does not answer. What was applied stays so.
    pub async fn apply(
        &self,
        service: &Service,
        is_dry_run: bool,
        mut on_event: impl FnMut(&Event, &Applied),
    ) -> Result<usize> {
        let mut failed = 0;
        for fetched in &self.missing {
            let event = match Event::parse(&fetched.verified()) {
                Ok(event) => event,
                Err(error) => bail!("Stripe listed what is no event: {error}"),
            };
            let recorded = if is_dry_run {
                patiently(|| service.preview(event.clone())).await
            } else {
                patiently(|| service.apply(event.clone())).await
            };
            let applied = match recorded {
                Ok(recorded) => Ok(recorded),
                Err(error) => Err(failure_of_its_own(error)?),
            };
            failed += usize::from(applied.is_err());
            on_event(&event, &applied);
        }
        Ok(failed)
    }

    /// At most `most` of the subscriptions, first those that a missing event is about.
    pub fn subscriptions_to_compare(&self, most: usize) -> Vec<(String, Option<String>)> {
        let rest = self.subscriptions.keys().filter(|id| !self.touched.contains(*id));
        let ids = self.touched.iter().chain(rest).take(most);
        ids.map(|id| (id.clone(), self.subscriptions.get(id).cloned().flatten())).collect()
    }
}

impl Service {
    /// Compares subscriptions with Stripe's own state, twice where they differ; `on_compared` is told each result in
    /// the order of the ids, with `None` where Stripe has no such subscription.
    ///
    /// # Errors
    /// Where Stripe or the database does not answer.
    pub async fn compare_all(
        &self,
        stripe: &Client,
        subscriptions: Vec<(String, Option<String>)>,
        connect_account: Option<&str>,
        mut on_compared: impl FnMut(&str, Option<Comparison>),
    ) -> Result<()> {
        let connect_account = connect_account.map(str::to_owned);
        let comparisons = subscriptions.into_iter().map(|(id, own)| {
            let (service, stripe) = (self.clone(), stripe.clone());
            let account = own.or_else(|| connect_account.clone());
            async move {
                let compared = service.compare_twice(&stripe, &id, account.as_deref()).await;
                compared.map(|compared| (id, compared))
            }
        });
        let mut comparisons = stream::iter(comparisons).buffered(AT_ONCE);
        while let Some(compared) = comparisons.next().await {
            let (id, comparison) = compared?;
            on_compared(&id, comparison);
        }
        Ok(())
    }

    async fn compare_twice(
        &self,
        stripe: &Client,
        id: &str,
        connect_account: Option<&str>,
    ) -> Result<Option<Comparison>> {
        match self.compare_with_stripe(stripe, id, connect_account).await? {
            Some(Comparison::Differs(_) | Comparison::Absent) => {
                tokio::time::sleep(SECOND_LOOK).await;
                self.compare_with_stripe(stripe, id, connect_account).await
            }
            settled => Ok(settled),
        }
    }

    /// `None` where Stripe has no such subscription.
    async fn compare_with_stripe(
        &self,
        stripe: &Client,
        id: &str,
        connect_account: Option<&str>,
    ) -> Result<Option<Comparison>> {
        let object = stripe.subscription_patiently(id, connect_account).await;
        match object.with_context(|| format!("cannot read subscription {id} from Stripe"))? {
            None => Ok(None),
            Some(object) => {
                let compared = patiently(|| self.compare(object.clone())).await;
                compared.map(Some).with_context(|| format!("cannot compare subscription {id}"))
            }
        }
    }
}
