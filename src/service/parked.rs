//! Parked events, applied once what they wait for is there: through the same path as deliveries, oldest first, in pages.
//!
//! Three things look for them. An event that links a customer or makes a row does, once it is committed; one that is parked
//! does, too, since what it waits for may have been committed meanwhile. So whichever of two transactions commits last sees
//! the other. A link over the API does. And a sweep does, for links that were made with SQL (triggers mark their accounts),
//! and now and then for what a crash left.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use super::accounts::{Change, End};
use super::error::{AttemptError, ServiceError};
use super::{Recorded, Service};
use crate::db::accounts::NewLinks;
use crate::db::entitlements::Settings;
use crate::db::parked::{self, After, Awaited, Parked};
use crate::db::{Conn, accounts};
use crate::handlers::{HandlerError, Outcome, Recording, Submission, Work, move_misplaced};
use crate::stripe::Event;
use crate::stripe::signature::Verified;

/// How many parked events are read, and submitted, at a time.
const PAGE: i64 = 64;

/// How long the answer to an event waits for the parked events that it releases.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often links that were made with SQL are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

/// How often all parked events are looked through, for what a crash left.
const SCAN_EVERY: Duration = Duration::from_secs(600);

/// How long the look for parked events after a commit may take: the events' answers wait for it.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// How often a parked event is tried whose attempts fail because something is out of reach, and the first pause.
const MAX_ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long a parked event that failed is passed over by the releases of its subscription.
const FAILED_FOR: Duration = Duration::from_secs(60);

/// How many accounts a sweep releases beside each other.
const RELEASES_AT_ONCE: usize = 8;

/// How many accounts one sweep takes on at a time.
const SWEPT_ACCOUNTS: i64 = 100;

impl Service {
    /// Those of `awaited` for which an event is parked, or may be: an account's customers are looked at when it is released.
    pub(super) async fn with_parked(&self, awaited: Vec<Awaited>) -> HashSet<Awaited> {
        match self.look_for_parked(&awaited).await {
            Ok(found) => found,
            Err(error) => {
                log::log!(
                    error.log_level(log::Level::Warn),
                    "cannot look for parked events, the next sweep will: {}",
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

    /// Has the next sweep look for events that wait for this.
    pub(super) fn release_later(&self, awaited: impl IntoIterator<Item = Awaited>) {
        self.inner.unreleased.lock().unwrap_or_else(PoisonError::into_inner).extend(awaited);
    }

    /// [`Service::release`] that goes on after the answer if it takes long.
    pub(super) async fn release_before_answer(&self, releases: Vec<Awaited>) {
        let service = self.clone();
        let job = self.parts().runtime.spawn(async move { service.release_all(releases, false).await });
        // It goes on: only the answer does not wait for it.
        tokio::time::timeout(PATIENCE, job).await.ok();
    }

    /// Applies what waits for `releases`. What cannot be applied now is left to the next sweep.
    pub(super) async fn release_all(&self, releases: impl IntoIterator<Item = Awaited>, with_failed: bool) {
        for awaited in releases {
            if let Err(error) = self.release(&awaited, with_failed).await {
                log::log!(
                    error.log_level(log::Level::Warn),
                    "cannot apply the events parked for {awaited:?}, the next sweep will: {}",
                    error.chain()
                );
                self.release_later([awaited]);
            }
        }
    }

    /// Applies what is parked for an account: for each of its customers, and for the account by its name. Rows of its
    /// customers that stand elsewhere by their metadata alone are moved first.
    async fn release_account(&self, account_id: Uuid, with_failed: bool) -> Result<(), ServiceError> {
        let mut conn = self.connection().await?;
        let mark = accounts::new_links_of(&mut conn, account_id).await?;
        let customers = accounts::customers(&mut conn, account_id).await?;
        drop(conn);
        // A link that was made with SQL may have mended what failed, as one over the API may.
        let with_failed = mark.as_ref().is_some_and(|mark| self.is_first_release_of(mark)) || with_failed;
        // A row that cannot be moved holds up no event.
        let moved = self.change(Moving { account_id }).await;
        for customer in customers {
            self.apply_parked(&Awaited::Customer(customer), with_failed).await?;
        }
        self.apply_parked(&Awaited::Account(account_id), with_failed).await?;
        moved?;
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
            _ => self.apply_parked(awaited, with_failed).await,
        }
    }

    /// Applies what waits for `awaited`. One event that fails stays parked, with a row in `event_failures`, and holds up
    /// no other. One that failed just now is tried again only `with_failed`: after a link, which may have mended it.
    async fn apply_parked(&self, awaited: &Awaited, with_failed: bool) -> Result<(), ServiceError> {
        let mut after = parked::beginning();
        loop {
            let mut conn = self.connection().await?;
            let page = parked::page(&mut conn, awaited, &after, PAGE).await?;
            drop(conn);
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = (last.created, last.id.clone());
            let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            let mut page = page;
            page.retain(|parked| with_failed || self.failed_at(&parked.id).is_none());
            self.apply_page(page).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Applies a page of parked events. What is out of reach is tried again; if it stays so, the page's release fails.
    async fn apply_page(&self, page: Vec<Parked>) -> Result<(), ServiceError> {
        let results = join_all(page.into_iter().map(|parked| self.apply_one(parked))).await;
        results.into_iter().collect()
    }

    async fn apply_one(&self, parked: Parked) -> Result<(), ServiceError> {
        let event = match Event::parse(&Verified::from_own_tables(parked.payload)) {
            Ok(event) => Arc::new(event),
            Err(error) => {
                log::error!("parked event {} cannot be read: {error}", parked.id);
                return Ok(());
            }
        };
        let asked = Instant::now();
        let turn = self.turn_of_parked(&parked.id);
        let _turn = turn.lock().await;
        if self.failed_at(&parked.id).is_some_and(|at| at >= asked) {
            return Ok(());
        }
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let recording = Recording::Again(Outcome::Parked.as_str().to_owned());
            match Box::pin(self.submit(Submission { event: event.clone(), recording })).await {
                Ok(_) => break,
                Err(ServiceError::Failed(error)) => {
                    log::error!("parked event {} failed: {error:#}", parked.id);
                    self.inner
                        .failed_parked
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(parked.id, Instant::now());
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

    /// When a parked event failed, if that is so short a time ago that another release need not try it again.
    fn failed_at(&self, id: &str) -> Option<Instant> {
        let mut failed = self.inner.failed_parked.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, at| at.elapsed() < FAILED_FOR);
        failed.get(id).copied()
    }

    /// Sweeps for parked events that can be applied, until the service is dropped.
    pub fn start_sweep(&self) {
        let weak = Arc::downgrade(&self.inner);
        self.parts().runtime.spawn(async move {
            let mut next_scan = Instant::now();
            while let Some(inner) = weak.upgrade() {
                let service = Self { inner };
                if let Err(error) = service.sweep(&mut next_scan).await {
                    log::log!(error.log_level(log::Level::Warn), "cannot look for parked events: {}", error.chain());
                }
                drop(service);
                tokio::time::sleep(SWEEP_EVERY).await;
            }
        });
    }

    async fn sweep(&self, next_scan: &mut Instant) -> Result<(), ServiceError> {
        let unreleased = std::mem::take(&mut *self.inner.unreleased.lock().unwrap_or_else(PoisonError::into_inner));
        if !unreleased.is_empty() {
            let found = self.with_parked(unreleased.into_iter().collect()).await;
            self.release_all(found, false).await;
        }
        let mut after = Uuid::nil();
        loop {
            let mut conn = self.connection().await?;
            let marked = accounts::new_links(&mut conn, after, SWEPT_ACCOUNTS).await?;
            drop(conn);
            let Some(last) = marked.last() else { break };
            after = last.id;
            // Beside each other: one whose events wait for Stripe holds up no other.
            let releases = marked.iter().map(|mark| self.release_all([Awaited::Account(mark.id)], false));
            stream::iter(releases).for_each_concurrent(RELEASES_AT_ONCE, |release| release).await;
        }
        if Instant::now() >= *next_scan {
            self.scan().await?;
            // Also those of links that another server has released.
            self.inner.released_marks.lock().unwrap_or_else(PoisonError::into_inner).clear();
            *next_scan = Instant::now() + SCAN_EVERY;
        }
        Ok(())
    }

    /// Applies all parked events that look as if they could be placed.
    async fn scan(&self) -> Result<(), ServiceError> {
        let mut after: After = parked::beginning();
        loop {
            let mut conn = self.connection().await?;
            let page = parked::placeable_page(&mut conn, &after, PAGE).await?;
            drop(conn);
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = (last.created, last.id.clone());
            self.apply_page(page).await?;
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
