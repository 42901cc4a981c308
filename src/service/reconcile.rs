//! Reconciling: reads a window of Stripe's event list, applies what never arrived, and compares rows with Stripe's own
//! state. The command and the server's own passes both do it through here.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;

use super::in_order::{IN_FLIGHT, in_order};
use super::page_reader::{Listing, Page};
use super::retry::{failure_of_its_own, is_refused, with_retries};
use super::{Comparison, Recorded, Service};
use crate::stripe::api::{Client, Fetched};
use crate::stripe::{Event, handled_types};

/// Calls to Stripe under way at once; it allows many more a second, but deliveries ask as well.
const AT_ONCE: usize = 4;

/// An event may just be on its way. What differs is compared again after this.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// How many missing events are kept in memory, the newest ones. Pages with older ones are read again when they are due.
const MOST_KEPT: usize = 2_000;

/// How many subscriptions are compared with Stripe's at most: each is a call.
pub const MOST_COMPARED: usize = 10_000;

/// Which events.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Nothing older than this; its second is included.
    pub since: Option<DateTime<Utc>>,
    /// Nothing younger than this; its second is included.
    pub until: Option<DateTime<Utc>>,
    /// The connected account whose events are read.
    pub connect_account: Option<String>,
}

/// The events of a scope.
///
/// Read are the types that are handled, whether or not they were delivered elsewhere: what this service has recorded
/// is the only measure. Others would change nothing, and to record them would say that they had arrived.
#[derive(Debug)]
pub struct Window {
    /// How many events Stripe listed.
    pub count: usize,
    /// How many of them have no idempotency row.
    pub missing: usize,
    /// The subscriptions that any of the events is about.
    pub subscriptions: Concerned,
    listing: Listing,
    until: Option<DateTime<Utc>>,
    stripe: Client,
    /// The newest of the missing events, newest first.
    kept: Vec<Fetched>,
    /// Where the pages begin that hold the other missing ones, newest first.
    left: Vec<Option<String>>,
}

/// What became of an event; inside, why it failed.
pub type Applied = Result<Recorded, String>;

/// How a subscription compares, `None` where Stripe has none of this id; inside, why it was not compared.
pub type Compared = Result<Option<Comparison>, String>;

impl Window {
    /// Reads the list to its end; `on_page` is told the number of events of each page.
    ///
    /// # Errors
    /// Where Stripe or the database does not answer.
    pub async fn read(
        service: &Service,
        stripe: &Client,
        scope: Scope,
        mut on_page: impl FnMut(usize),
    ) -> Result<Self> {
        let Scope { since, until, connect_account } = scope;
        let types = Some(handled_types().collect());
        let listing = Listing { types, since, until, scope: connect_account.as_deref().into() };
        let mut pages = pin!(listing.clone().pages(stripe));
        let mut window = Self {
            count: 0,
            missing: 0,
            subscriptions: Concerned::default(),
            listing,
            until,
            stripe: stripe.clone(),
            kept: Vec::new(),
            left: Vec::new(),
        };
        while let Some(page) = pages.next().await {
            let page = page.context("cannot read Stripe's events")?;
            on_page(page.objects.len());
            window.note(service, page).await?;
        }
        Ok(window)
    }

    /// Takes a page in.
    async fn note(&mut self, service: &Service, page: Page) -> Result<()> {
        let events = self.events(page.objects)?;
        self.count += events.len();
        let missing = missing_of(service, &events).await?;
        for (event, _) in &events {
            self.subscriptions.note(event, missing.contains(&event.id));
        }
        self.missing += missing.len();
        // Once a page is left for later, all older ones are as well: the order is kept.
        if !missing.is_empty() && (!self.left.is_empty() || self.kept.len() + missing.len() > MOST_KEPT) {
            self.left.push(page.after);
        } else {
            let kept = events.into_iter().filter(|(event, _)| missing.contains(&event.id));
            self.kept.extend(kept.map(|(_, fetched)| fetched));
        }
        Ok(())
    }

    /// The events of a page that belong to the window. Should Stripe list an event twice, the second one is a duplicate.
    fn events(&self, page: Vec<Fetched>) -> Result<Vec<(Event, Fetched)>> {
        let mut events = Vec::with_capacity(page.len());
        for fetched in page {
            let fetched = fetched.read_in(&self.listing.scope);
            let event = parse(&fetched)?;
            let is_too_young = self.until.is_some_and(|until| event.created > Some(until));
            if !is_too_young {
                events.push((event, fetched));
            }
        }
        Ok(events)
    }

    /// Applies what is missing, oldest first within each subscription, or only says what it would come to; `on_event` is
    /// told each result, oldest event first. Returns how many failed.
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
        let mut applied = pin!(in_order(self.missing_events(service), |event| {
            let service = service.clone();
            async move {
                let applied = service.apply_missing(&event, is_dry_run).await?;
                Ok((event, applied))
            }
        }));
        while let Some((event, applied)) = applied.try_next().await? {
            failed += usize::from(applied.is_err());
            on_event(&event, &applied);
        }
        Ok(failed)
    }

    /// The missing events, oldest first, each with the key of its turn.
    fn missing_events(&self, service: &Service) -> impl Stream<Item = Result<(String, Event)>> {
        let older = stream::iter(self.left.iter().rev()).then(|after| self.read_again(service, after));
        let older = older.map_ok(|page| stream::iter(page.into_iter().rev().map(Ok))).try_flatten();
        let kept = stream::iter(self.kept.iter().rev().map(parse));
        older.chain(kept).map_ok(|event| {
            let key = event.subscription_id.as_ref().or(event.customer_id.as_ref()).unwrap_or(&event.id);
            (key.clone(), event)
        })
    }

    /// What is still missing of a page, newest first.
    async fn read_again(&self, service: &Service, after: &Option<String>) -> Result<Vec<Event>> {
        let page = self.listing.page(&self.stripe, after.clone()).await.context("cannot read Stripe's events")?;
        let events = self.events(page.unwrap_or_default())?;
        let missing = missing_of(service, &events).await?;
        Ok(events.into_iter().map(|(event, _)| event).filter(|event| missing.contains(&event.id)).collect())
    }
}

fn parse(fetched: &Fetched) -> Result<Event> {
    Event::parse(&fetched.verified()).context("Stripe listed what is no event")
}

/// The ids of those events that have no idempotency row.
async fn missing_of(service: &Service, events: &[(Event, Fetched)]) -> Result<HashSet<String>> {
    let ids: Vec<_> = events.iter().map(|(event, _)| event.id.clone()).collect();
    Ok(with_retries(|| service.unrecorded(ids.clone())).await?.into_iter().collect())
}

/// The subscriptions that events are about, each with the connected account that it belongs to: as many as can be
/// compared, and the number of all.
#[derive(Debug, Default)]
pub struct Concerned {
    /// Those that a missing event is about.
    touched: BTreeMap<String, Option<String>>,
    others: BTreeMap<String, Option<String>>,
    /// Hashes of all ids.
    seen: HashSet<u64>,
}

impl Concerned {
    fn note(&mut self, event: &Event, is_missing: bool) {
        let Some(id) = &event.subscription_id else { return };
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        self.seen.insert(hasher.finish());
        if is_missing {
            self.others.remove(id);
        } else if self.touched.contains_key(id) {
            return;
        }
        let noted = if is_missing { &mut self.touched } else { &mut self.others };
        if noted.len() < MOST_COMPARED || noted.contains_key(id) {
            noted.insert(id.clone(), event.connect_account.clone());
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.seen.len()
    }

    /// Whether a missing event is about this subscription, one of those to compare.
    pub fn is_touched(&self, id: &str) -> bool {
        self.touched.contains_key(id)
    }

    /// At most `most` of them and at most [`MOST_COMPARED`], first those that a missing event is about.
    pub fn to_compare(&self, most: usize) -> Vec<(String, Option<String>)> {
        let some = self.touched.iter().chain(&self.others).take(most.min(MOST_COMPARED));
        some.map(|(id, account)| (id.clone(), account.clone())).collect()
    }
}

impl Service {
    /// Applies an event that never arrived, or only says what it would come to.
    async fn apply_missing(&self, event: &Event, is_dry_run: bool) -> Result<Applied> {
        let recorded = if is_dry_run {
            with_retries(|| self.preview(event.clone())).await
        } else {
            with_retries(|| self.apply(event.clone())).await
        };
        match recorded {
            Ok(recorded) => Ok(Ok(recorded)),
            Err(error) => Ok(Err(failure_of_its_own(error)?)),
        }
    }

    /// Compares subscriptions with Stripe's own state, twice where they differ; `on_compared` is told each result as it
    /// comes. One that Stripe asks to wait with holds up no other.
    ///
    /// # Errors
    /// Where Stripe or the database does not answer.
    pub async fn compare_all(
        &self,
        stripe: &Client,
        subscriptions: Vec<(String, Option<String>)>,
        connect_account: Option<&str>,
        mut on_compared: impl FnMut(&str, Compared),
    ) -> Result<()> {
        let connect_account = connect_account.map(str::to_owned);
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        let comparisons = subscriptions.into_iter().map(|(id, own)| {
            let (service, stripe, at_once) = (self.clone(), stripe.clone(), at_once.clone());
            let account = own.or_else(|| connect_account.clone());
            async move {
                let compared = service.compare_twice(&stripe, &at_once, &id, account.as_deref()).await;
                compared.map(|compared| (id, compared))
            }
        });
        let mut comparisons = stream::iter(comparisons).buffer_unordered(IN_FLIGHT);
        while let Some(compared) = comparisons.next().await {
            let (id, comparison) = compared?;
            on_compared(&id, comparison);
        }
        Ok(())
    }

    async fn compare_twice(
        &self,
        stripe: &Client,
        at_once: &Semaphore,
        id: &str,
        connect_account: Option<&str>,
    ) -> Result<Compared> {
        match self.compare_with_stripe(stripe, at_once, id, connect_account).await? {
            Ok(Some(Comparison::Differs(_) | Comparison::Absent)) => {
                tokio::time::sleep(SECOND_LOOK).await;
                self.compare_with_stripe(stripe, at_once, id, connect_account).await
            }
            settled => Ok(settled),
        }
    }

    async fn compare_with_stripe(
        &self,
        stripe: &Client,
        at_once: &Semaphore,
        id: &str,
        connect_account: Option<&str>,
    ) -> Result<Compared> {
        let object = stripe.subscription_patiently(id, connect_account, at_once).await;
        let object = match object.with_context(|| format!("cannot read subscription {id} from Stripe")) {
            Ok(None) => return Ok(Ok(None)),
            Ok(Some(object)) => object,
            Err(error) if is_refused(&error) => return Ok(Err(format!("{error:#}"))),
            Err(error) => return Err(error),
        };
        match with_retries(|| self.compare(object.clone())).await {
            Ok(compared) => Ok(Ok(Some(compared))),
            Err(error) => failure_of_its_own(error).map(Err),
        }
    }
}
