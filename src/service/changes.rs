//! Reading changes, and waiting for the next one. One task polls for the whole process, and only while somebody waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use uuid::Uuid;

use super::{READ_LIMIT, Service, ServiceError};
use crate::db::changes::{self, Change};

/// How often the task looks for changes. Those of other replicas, and those that an open transaction held back, are
/// found by nothing else.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often superfluous fences are deleted.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);

/// Changes read at once by the task.
const POLL_LIMIT: i64 = 500;

/// Readers that may read the table at once; the others wait, and leave the pool to deliveries.
const READERS_AT_ONCE: usize = 4;

/// What the task read last.
#[derive(Clone, Debug, Default)]
struct Latest {
    /// All settled changes with ids from here on are in `changes`.
    after: i64,
    changes: Arc<[Change]>,
}

impl Latest {
    /// Everything up to this id has been told.
    fn last_id(&self) -> i64 {
        self.changes.last().map_or(self.after, |change| change.id)
    }
}

/// Where the task that polls tells those who wait.
#[derive(Debug)]
pub(super) struct Feed {
    latest: watch::Sender<Latest>,
    /// Whether the process stops: whoever waits shall answer.
    is_closed: watch::Sender<bool>,
    wanted: Notify,
    readers: Semaphore,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            latest: watch::Sender::new(Latest::default()),
            is_closed: watch::Sender::new(false),
            wanted: Notify::new(),
            readers: Semaphore::new(READERS_AT_ONCE),
        }
    }
}

/// Some changes, oldest first.
#[derive(Clone, Debug)]
pub struct ChangePage {
    /// The changes.
    pub changes: Vec<Change>,
    /// The id to go on from.
    pub next: i64,
    /// Whether there are more already.
    pub has_more: bool,
}

/// A place in the sequence of changes, and which of them are wanted.
#[derive(Debug)]
pub struct ChangeReader {
    service: Service,
    waiter: watch::Receiver<Latest>,
    account: Option<Uuid>,
    limit: i64,
    /// The last change that was read, of those that are wanted.
    next: i64,
    /// Up to where everything that is wanted was read; `None` while there may be more in the table.
    seen: Option<i64>,
}

impl Service {
    /// Reads from behind the change `after`, of one account or of all, at most `limit` at once.
    pub fn change_reader(&self, after: i64, account: Option<Uuid>, limit: u16) -> ChangeReader {
        let waiter = self.inner.feed.latest.subscribe();
        self.inner.feed.wanted.notify_one();
        ChangeReader { service: self.clone(), waiter, account, limit: limit.into(), next: after, seen: None }
    }

    /// Polls for changes while somebody waits for them, until [`Service::close_changes`].
    pub async fn watch_changes(&self) {
        tokio::select! {
            () = self.changes_closed() => {}
            () = self.poll_changes() => {}
        }
    }

    /// Lets everybody who waits for changes answer, since the process stops.
    pub fn close_changes(&self) {
        self.inner.feed.is_closed.send_replace(true);
    }

    /// Ends when the process stops.
    pub(super) async fn changes_closed(&self) {
        // It cannot fail: the sender lives as long as the service.
        self.inner.feed.is_closed.subscribe().wait_for(|is_closed| *is_closed).await.ok();
    }

    async fn poll_changes(&self) {
        let mut last = None;
        let mut cleaned = tokio::time::Instant::now();
        loop {
            if self.inner.feed.latest.receiver_count() == 0 {
                last = None;
                tokio::time::timeout(CLEANUP_INTERVAL, self.inner.feed.wanted.notified()).await.ok();
            }
            if cleaned.elapsed() >= CLEANUP_INTERVAL {
                cleaned = tokio::time::Instant::now();
                self.delete_passed_fences().await;
            }
            if self.inner.feed.latest.receiver_count() > 0 {
                match self.poll_once(last).await {
                    Ok(now) => last = Some(now),
                    Err(error) => {
                        log::log!(error.log_level(log::Level::Warn), "cannot read the changes: {}", error.chain())
                    }
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Reads what came after `last` and tells of it; returns the new last id.
    async fn poll_once(&self, last: Option<i64>) -> Result<i64, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            let Some(after) = last else {
                let last = changes::last_id(&mut conn).await?;
                service.publish(last, Vec::new());
                return Ok(last);
            };
            let found = changes::page(&mut conn, after, None, POLL_LIMIT).await?;
            let Some(last) = found.last().map(|change| change.id) else { return Ok(after) };
            service.publish(after, found);
            Ok(last)
        })
        .await
    }

    fn publish(&self, after: i64, found: Vec<Change>) {
        self.inner.feed.latest.send_modify(|latest| {
            latest.after = after;
            latest.changes = found.into();
        });
    }

    async fn delete_passed_fences(&self) {
        let service = self.clone();
        let deleted = self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(changes::delete_passed_fences(&mut conn).await?)
        });
        if let Err(error) = deleted.await {
            log::warn!("cannot delete the fences of changes: {}", error.chain());
        }
    }
}

impl ChangeReader {
    /// The next changes; none if there are none yet.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn read(&mut self) -> Result<ChangePage, ServiceError> {
        // Marked as seen before the table is read: what is told of from now on is news.
        let latest = self.waiter.borrow_and_update().clone();
        if let Some(seen) = self.seen
            && latest.after <= seen
        {
            let is_wanted = |change: &&Change| self.account.is_none_or(|account| account == change.account_id);
            let news = latest.changes.iter().filter(|change| change.id > seen).filter(is_wanted);
            let news = news.take(self.limit_plus_one()).cloned().collect();
            return Ok(self.page(news, seen.max(latest.last_id())));
        }
        let (service, after, account, limit) = (self.service.clone(), self.next, self.account, self.limit);
        let found = self.service.read(READ_LIMIT, async move {
            let _place = service.inner.feed.readers.acquire().await;
            let mut conn = service.connection().await?;
            Ok(changes::page(&mut conn, after, account, limit + 1).await?)
        });
        let found = found.await?;
        Ok(self.page(found, after.max(latest.last_id())))
    }

    /// One more than asked for tells whether there are more.
    fn limit_plus_one(&self) -> usize {
        usize::try_from(self.limit + 1).unwrap_or(usize::MAX)
    }

    /// A page of what was found; if it was all there is, everything up to `seen` was read.
    fn page(&mut self, mut changes: Vec<Change>, seen: i64) -> ChangePage {
        let has_more = changes.len() == self.limit_plus_one();
        if has_more {
            changes.pop();
        }
        self.next = changes.last().map_or(self.next, |change| change.id);
        self.seen = (!has_more).then_some(seen.max(self.next));
        ChangePage { changes, next: self.next, has_more }
    }

    /// Ends when there may be more to read, or when the process stops.
    pub async fn wait(&mut self) {
        tokio::select! {
            // It cannot fail: the sender lives as long as the service.
            _ = self.waiter.changed() => {}
            () = self.service.changes_closed() => {}
        }
    }

    /// Whether the process stops.
    pub fn is_closed(&self) -> bool {
        *self.service.inner.feed.is_closed.borrow()
    }
}
