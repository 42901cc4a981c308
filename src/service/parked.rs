//! Parked events, applied once what they wait for is there: through the same path as deliveries, oldest first, in pages.
//!
//! Four look for them. An event that links a customer or makes a row does, once it is committed; one that is parked
//! does, too, since what it waits for may have been committed meanwhile. So whichever of two transactions commits last sees
//! the other. A link over the API does. And a sweep does, for links that were made with SQL (triggers mark their accounts),
//! and now and then for what a crash left.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::accounts::{Change, End};
use super::error::{AttemptError, ServiceError};
use super::{Recorded, Service};
use crate::db::accounts::NewLinks;
use crate::db::entitlements::Settings;
use crate::db::parked::{self, Awaited, Parked};
use crate::db::{Conn, accounts};
use crate::handlers::{HandlerError, Outcome, Recording, Submission, Work, move_misplaced};
use crate::stripe::Event;
use crate::stripe::signature::Verified;

/// How many parked events are read at a time.
const PAGE: i64 = 64;

/// How many of the events that wait for the same are under way at once. Those that take turns must not wait so long that
/// they are given up.
const IN_FLIGHT: usize = 16;

/// How long the answer to an event waits for the parked events that it releases.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often links that were made with SQL are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

/// How often all parked events are looked through, for what a crash left.
const SCAN_EVERY: Duration = Duration::from_secs(600);

/// How long the look for parked events after a commit may take: the events' answers wait for it.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// How often a release tries a parked event while the database is out of reach or too busy, and the first pause.
const MAX_ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long releases pass over a parked event that failed of itself.
const FAILED_FOR: Duration = Duration::from_secs(60);

/// The first and the longest pause before a parked event is tried again for which Stripe or a lock was in the way. Each
/// pause is twice as long as the one before.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(3_600);

/// How many releases a sweep starts beside each other, and how long it waits for one of them. A release that takes longer
/// goes on by itself, since it may wait for Stripe.
const RELEASES_AT_ONCE: usize = 8;
const SWEEP_PATIENCE: Duration = Duration::from_millis(250);

/// For how much that parked events may wait for one query of a sweep looks.
const LOOKED_FOR_AT_ONCE: usize = 1_000;

/// How many accounts one sweep takes on at a time.
const SWEPT_ACCOUNTS: i64 = 1_000;

/// How many failed events one sweep tries again.
const MAX_RETRIES: usize = 1_000;

/// Work that a sweep starts. The same work never runs twice at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sweep {
    Release(Awaited),
    /// The parked event with this id.
    Retry(String),
    /// A look through all parked events.
    Scan,
}

/// What is running. Its end is noted also if it panics: otherwise no sweep would run it again.
struct RunningSweep {
    service: Service,
    sweep: Sweep,
}

impl Drop for RunningSweep {
    fn drop(&mut self) {
        self.service.running_sweeps().remove(&self.sweep);
    }
}

/// A failed attempt at a parked event.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailedParked {
    began_at: Instant,
    at: Instant,
    /// How long releases pass over the event.
    pause: Duration,
    /// Whether a sweep tries it again after the pause.
    is_retried: bool,
}

impl Service {
    /// Those of `awaited` for which an event is parked, or a row may have to be moved.
    pub(super) async fn with_parked(&self, awaited: Vec<Awaited>) -> HashSet<Awaited> {
        match self.look_for_parked(&awaited).await {
            Ok(found) => found,
            Err(error) => {
                log::log!(
                    error.log_level(log::Level::Warn),
                    "cannot look for parked events now, a sweep will look again: {}",
                    error.chain()
                );
                self.release_later(awaited);
                HashSet::new()
            }
        }
    }

    async fn look_for_parked(&self, awaited: &[Awaited]) -> Result<HashSet<Awaited>, ServiceError> {
        let looked = async {
            let mut conn = self.connection().await?;
            Ok(parked::awaited(&mut conn, awaited).await?)
        };
        // The events' answers wait for it.
        tokio::time::timeout(LOOK_LIMIT, looked).await.unwrap_or_else(|_| Err(AttemptError::TimedOut.into()))
    }

    /// Has the next sweep look for events that wait for this. A job has no sweeps; those of a server look through all parked
    /// events when it starts, and now and then.
    pub(super) fn release_later(&self, awaited: impl IntoIterator<Item = Awaited>) {
        if !self.inner.has_sweeps.load(Ordering::Relaxed) {
            return;
        }
        self.inner.unreleased.lock().unwrap_or_else(PoisonError::into_inner).extend(awaited);
    }

    /// Has the next sweep look for what this event may have made that parked ones wait for, and for what it may wait for
    /// itself: it may be committed although its answer was lost.
    pub(super) fn release_around(&self, event: &Event) {
        let subscription = event.subscription_id.iter().map(|id| Awaited::Subscription(id.clone()));
        self.release_later(subscription.chain(self.parts().policy.awaited_placement(event)));
    }

    /// [`Service::release`] that goes on after the answer if it takes long.
    pub(super) async fn release_before_answer(&self, releases: Vec<Awaited>) {
        let (service, awaited) = (self.clone(), releases.clone());
        let job = self.parts().runtime.spawn(async move { service.release_all(releases, false).await });
        // It goes on: only the answer does not wait for it.
        if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, job).await {
            log::error!("applying parked events panicked, a sweep will look for them: {error}");
            self.release_later(awaited);
        }
    }

    /// Applies what waits for `releases`. What cannot be applied now is left to the next sweep.
    pub(super) async fn release_all(&self, releases: impl IntoIterator<Item = Awaited>, with_failed: bool) {
        for awaited in releases {
            if let Err(error) = self.release(&awaited, with_failed).await {
                log::log!(
                    error.log_level(log::Level::Warn),
                    "cannot apply the events parked for {awaited:?} now, a sweep will try again: {}",
                    error.chain()
                );
                self.release_later([awaited]);
            }
        }
    }

    /// Applies what is parked for an account: for each of its customers, and for the account by its name. Rows of its
    /// customers that stand elsewhere by their metadata alone are moved first.
    async fn release_account(&self, account_id: Uuid, with_failed: bool) -> Result<(), ServiceError> {
        let asked = Instant::now();
        let mut conn = self.connection().await?;
        let mark = accounts::new_links_of(&mut conn, account_id).await?;
        let customers = accounts::customers(&mut conn, account_id).await?;
        drop(conn);
        // A link that was made with SQL may have mended what failed, as one over the API may.
        let with_failed = mark.as_ref().is_some_and(|mark| self.is_first_release_of(mark)) || with_failed;
        // Beside each other: what fails for one of them, or waits for Stripe, holds up none of the others.
        let moved = self.change(Moving { account_id }).await;
        let awaited: Vec<_> =
            customers.into_iter().map(Awaited::Customer).chain([Awaited::Account(account_id)]).collect();
        let applied =
            join_all(awaited.iter().map(|awaited| self.apply_parked(Some(awaited), asked, with_failed))).await;
        applied.into_iter().fold(moved, Result::and)?;
        // Only now: whoever dies before leaves the mark to the next sweep.
        if let Some(mark) = mark {
            let mut conn = self.connection().await?;
            accounts::unmark(&mut conn, &mark).await?;
            self.inner.released_marks.lock().unwrap_or_else(PoisonError::into_inner).remove(&account_id);
        }
        Ok(())
    }

    /// Whether no release of this mark has begun yet. A release that fails leaves the mark, and the next one finds it again.
    fn is_first_release_of(&self, mark: &NewLinks) -> bool {
        let mut released = self.inner.released_marks.lock().unwrap_or_else(PoisonError::into_inner);
        released.insert(mark.id, mark.clone()).as_ref() != Some(mark)
    }

    async fn release(&self, awaited: &Awaited, with_failed: bool) -> Result<(), ServiceError> {
        match awaited {
            Awaited::Account(account_id) => Box::pin(self.release_account(*account_id, with_failed)).await,
            _ => self.apply_parked(Some(awaited), Instant::now(), with_failed).await,
        }
    }

    /// Applies what waits for `awaited`, oldest first; for `None`, every parked event that looks as if it could be placed.
    /// One that fails stays parked, with a row in `event_failures`, and holds up no other. One that failed just now is
    /// tried again only `with_failed`: after a link, which may have mended it, and which was there when this was `asked` for.
    ///
    /// # Errors
    /// The database is out of reach; the release is to be run again.
    async fn apply_parked(
        &self,
        awaited: Option<&Awaited>,
        asked: Instant,
        with_failed: bool,
    ) -> Result<(), ServiceError> {
        let mut after = parked::beginning();
        let mut in_flight = FuturesUnordered::new();
        loop {
            let mut conn = self.connection().await?;
            let page = match awaited {
                Some(awaited) => parked::page(&mut conn, awaited, &after, PAGE).await?,
                None => parked::placeable_page(&mut conn, &after, PAGE).await?,
            };
            drop(conn);
            let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            for parked in page {
                after = (parked.created, parked.id.clone());
                if !with_failed && self.is_passed_over(&parked.id) {
                    continue;
                }
                if in_flight.len() >= IN_FLIGHT {
                    in_flight.next().await.transpose()?;
                }
                in_flight.push(self.apply_one(parked, asked, with_failed));
            }
            if is_last {
                return in_flight.try_collect().await;
            }
        }
    }

    /// Applies one parked event. It stays parked if it fails; if Stripe or a lock is in the way, a sweep tries it again
    /// after a pause.
    ///
    /// # Errors
    /// The database is out of reach.
    async fn apply_one(&self, parked: Parked, asked: Instant, with_failed: bool) -> Result<(), ServiceError> {
        let event = match Event::parse(&Verified::from_own_tables(parked.payload)) {
            Ok(event) => Arc::new(event),
            Err(error) => {
                log::error!("parked event {} cannot be read: {error}", parked.id);
                return Ok(());
            }
        };
        let turn = self.turn_of_parked(&parked.id);
        let _turn = turn.lock().await;
        if self.has_failed_since(&parked.id, asked, with_failed) {
            return Ok(());
        }
        let began_at = Instant::now();
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let recording = Recording::Again(Outcome::Parked.as_str().to_owned());
            match Box::pin(self.submit(Submission { event: event.clone(), recording })).await {
                Ok(_) => {
                    self.failed_parked().remove(&parked.id);
                    break;
                }
                Err(ServiceError::Failed(error)) => {
                    log::error!("parked event {} failed: {error:#}", parked.id);
                    self.note_failed(parked.id, began_at, false);
                    break;
                }
                Err(error) if error.is_of_one_event() => {
                    log::warn!("parked event {} is tried again later: {}", parked.id, error.chain());
                    self.note_failed(parked.id, began_at, true);
                    break;
                }
                Err(error) if attempt == MAX_ATTEMPTS => return Err(error),
                Err(error) => log::log!(
                    error.log_level(log::Level::Warn),
                    "parked event {}, attempt {attempt}: {}",
                    parked.id,
                    error.chain()
                ),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(())
    }

    /// Two releases that find the same event try it one after the other.
    fn turn_of_parked(&self, id: &str) -> Arc<Mutex<()>> {
        let mut tried = self.inner.tried_parked.lock().unwrap_or_else(PoisonError::into_inner);
        tried.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = tried.get(id).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        tried.insert(id.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn failed_parked(&self) -> MutexGuard<'_, HashMap<String, FailedParked>> {
        self.inner.failed_parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_failed(&self, id: String, began_at: Instant, is_retried: bool) {
        let mut failed = self.failed_parked();
        let pause = failed.get(&id).map_or(FIRST_RETRY, |failed| (failed.pause * 2).min(LONGEST_RETRY));
        let pause = if is_retried { pause } else { FAILED_FOR };
        failed.insert(id, FailedParked { began_at, at: Instant::now(), pause, is_retried });
    }

    /// Whether a parked event failed so short a time ago that another release need not try it.
    fn is_passed_over(&self, id: &str) -> bool {
        self.failed_parked().get(id).is_some_and(|failed| failed.is_retried || failed.at.elapsed() < failed.pause)
    }

    /// Whether an attempt failed meanwhile. After a link (`with_failed`) only one counts that began since: an earlier one may
    /// not have seen the link.
    fn has_failed_since(&self, id: &str, since: Instant, with_failed: bool) -> bool {
        let counts = |failed: &FailedParked| if with_failed { failed.began_at >= since } else { failed.at >= since };
        self.failed_parked().get(id).is_some_and(counts)
    }

    /// Forgets the failures that are long past, and returns the events that are to be tried again now.
    fn due_retries(&self) -> Vec<String> {
        let mut failed = self.failed_parked();
        failed.retain(|_, failed| failed.is_retried || failed.at.elapsed() < failed.pause);
        let is_due = |failed: &FailedParked| failed.is_retried && failed.at.elapsed() >= failed.pause;
        failed.iter().filter(|(_, failed)| is_due(failed)).map(|(id, _)| id.clone()).take(MAX_RETRIES).collect()
    }

    /// Sweeps for parked events that can be applied, until the service is dropped.
    pub fn start_sweep(&self) {
        self.inner.has_sweeps.store(true, Ordering::Relaxed);
        let weak = Arc::downgrade(&self.inner);
        self.parts().runtime.spawn(async move {
            let mut next_scan = Instant::now();
            while let Some(inner) = weak.upgrade() {
                let service = Self { inner };
                // A panic must not end the sweeps.
                match AssertUnwindSafe(service.sweep(&mut next_scan)).catch_unwind().await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        log::log!(
                            error.log_level(log::Level::Warn),
                            "cannot look for parked events: {}",
                            error.chain()
                        );
                    }
                    Err(_) => log::error!("looking for parked events panicked"),
                }
                drop(service);
                tokio::time::sleep(SWEEP_EVERY).await;
            }
        });
    }

    async fn sweep(&self, next_scan: &mut Instant) -> Result<(), ServiceError> {
        let unreleased = std::mem::take(&mut *self.inner.unreleased.lock().unwrap_or_else(PoisonError::into_inner));
        let unreleased: Vec<_> = unreleased.into_iter().collect();
        for awaited in unreleased.chunks(LOOKED_FOR_AT_ONCE) {
            let found = self.with_parked(awaited.to_vec()).await;
            self.start_releases(found.into_iter().map(Sweep::Release).collect()).await;
        }
        self.start_releases(self.due_retries().into_iter().map(Sweep::Retry).collect()).await;
        let mut after = Uuid::nil();
        loop {
            let mut conn = self.connection().await?;
            let marked = accounts::new_links(&mut conn, after, SWEPT_ACCOUNTS).await?;
            drop(conn);
            let Some(last) = marked.last() else { break };
            after = last.mark.id;
            let (awaited, idle): (Vec<_>, Vec<_>) = marked.into_iter().partition(|marked| marked.is_awaited);
            if !idle.is_empty() {
                let idle: Vec<_> = idle.into_iter().map(|marked| marked.mark).collect();
                accounts::unmark_all(&mut *self.connection().await?, &idle).await?;
            }
            let releases = awaited.iter().map(|marked| Sweep::Release(Awaited::Account(marked.mark.id)));
            self.start_releases(releases.collect()).await;
        }
        if Instant::now() >= *next_scan {
            self.start_releases(vec![Sweep::Scan]).await;
            // Also those of links that another server has released.
            self.inner.released_marks.lock().unwrap_or_else(PoisonError::into_inner).clear();
            *next_scan = Instant::now() + SCAN_EVERY;
        }
        Ok(())
    }

    /// Starts releases, except those that are still running, and waits a moment for each.
    async fn start_releases(&self, sweeps: Vec<Sweep>) {
        let running = sweeps.into_iter().map(|sweep| async move {
            if !self.running_sweeps().insert(sweep.clone()) {
                // What runs may be past an event that came since.
                if let Sweep::Release(awaited) = sweep {
                    self.release_later([awaited]);
                }
                return;
            }
            let service = self.clone();
            let running = RunningSweep { service, sweep };
            let job = self.parts().runtime.spawn(async move {
                let RunningSweep { service, sweep } = &running;
                match sweep {
                    Sweep::Release(awaited) => service.release_all([awaited.clone()], false).await,
                    Sweep::Retry(id) => service.retry(id).await,
                    Sweep::Scan => {
                        if let Err(error) = service.apply_parked(None, Instant::now(), false).await {
                            log::warn!("cannot look through the parked events: {}", error.chain());
                        }
                    }
                }
            });
            tokio::time::timeout(SWEEP_PATIENCE, job).await.ok();
        });
        stream::iter(running).for_each_concurrent(RELEASES_AT_ONCE, |running| running).await;
    }

    fn running_sweeps(&self) -> MutexGuard<'_, HashSet<Sweep>> {
        self.inner.running_sweeps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries a parked event again for which Stripe or a lock was in the way.
    async fn retry(&self, id: &str) {
        let result = async {
            let mut conn = self.connection().await?;
            let parked = parked::find(&mut conn, id).await?;
            drop(conn);
            match parked {
                Some(parked) => self.apply_one(parked, Instant::now(), false).await?,
                // Applied meanwhile.
                None => drop(self.failed_parked().remove(id)),
            }
            Ok::<_, ServiceError>(())
        };
        if let Err(error) = result.await {
            log::log!(error.log_level(log::Level::Warn), "cannot retry parked event {id}: {}", error.chain());
        }
    }

    /// What became of an event that is recorded with the outcome `former`, and is applied again.
    pub(super) async fn apply_again(&self, event: Event, former: String) -> Result<Recorded, ServiceError> {
        self.submit(Submission { event: Arc::new(event), recording: Recording::Again(former) }).await
    }
}

/// Moves rows that stand in other accounts by their metadata alone to the account of their customers.
struct Moving {
    account_id: Uuid,
}

impl Change for Moving {
    type Output = ();

    async fn run(
        &self,
        conn: &mut Conn,
        work: &mut Work,
        settings: &Settings,
        _: bool,
    ) -> Result<End<()>, HandlerError> {
        move_misplaced(conn, work, settings, self.account_id).await?;
        Ok(if work.is_empty() { End::Rollback(()) } else { End::Commit(()) })
    }

    fn refused(_: &diesel::result::Error) -> Option<()> {
        None
    }
}
