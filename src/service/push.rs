//! Pushes changes to `CHANGES_URL`, signed by Standard Webhooks: in order for each account and each subscription, at
//! least once, by one replica at a time.
//!
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::Utc;
use diesel_async::{AnsiTransactionManager, AsyncConnection, TransactionManager};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Url;
use sha2::Sha256;
use tokio::task::{Id, JoinSet};
use uuid::Uuid;

use super::error::AttemptError;
use super::{READ_LIMIT, Service, ServiceError};
use crate::db::Conn;
use crate::db::change_push::{self, Pending, Queue};
use crate::db::changes::Change;
use crate::db::connect::Target;
use crate::secret::Secret;

/// The most that the receiver may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The pause after the first failed attempt, in seconds; each further one is twice as long, up to the last.
const FIRST_PAUSE_SECS: i32 = 5;
const LAST_PAUSE_SECS: i32 = 3_600;

/// How often it is looked for changes, and for accounts whose pause is over.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How often a replica asks whether it is its turn to push, and whether it still is.
const TURN_INTERVAL: Duration = Duration::from_secs(1);

/// Accounts that are pushed at once: such as failed last time, and the others. Receivers that do not answer take no
/// place from those that do.
const RETRIES_AT_ONCE: usize = 8;
const FIRST_ATTEMPTS_AT_ONCE: usize = 16;

/// Changes moved to the accounts' queues at once, and changes of one account pushed in one go.
const QUEUED_AT_ONCE: i64 = 500;
const PUSHED_AT_ONCE: i64 = 20;

/// How long an account that is being pushed is left alone by another process, should this one die, in seconds.
const CLAIM_SECS: i32 = 3;

/// How long requests under way may take once the process is told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Accounts named with their errors.
const NAMED_FAILURES: i64 = 20;

/// Where changes are pushed, and how they are signed.
#[derive(Clone, Debug)]
pub struct Push {
    http: reqwest::Client,
    url: Url,
    key: Arc<Key>,
}

struct Key(Vec<u8>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// What is yet to be pushed, and why.
#[derive(Clone, Debug, Default)]
pub struct PendingChanges {
    /// How many changes, of how many failing accounts.
    pub total: Pending,
    /// Some of the accounts whose last attempt failed, the longest failing first.
    pub failing: Vec<Queue>,
}

impl Push {
    /// Posts to `url`, and signs with `secret`: `whsec_` and the key in Base64.
    ///
    /// # Errors
    /// Where the secret is no such key, or no client can be made.
    pub fn new(url: Url, secret: &Secret) -> anyhow::Result<Self> {
        let text = secret.expose();
        let key = BASE64.decode(text.strip_prefix("whsec_").unwrap_or(text));
        // The cause would show a part of the secret.
        let key = key.ok().filter(|key| !key.is_empty());
        let key = key.context("it is not whsec_ and a key in Base64, as Standard Webhooks wants it")?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("subledger/", env!("CARGO_PKG_VERSION")))
            .timeout(ANSWER_LIMIT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .context("no client can be made")?;
        Ok(Self { http, url, key: Arc::new(Key(key)) })
    }

    /// Posts one change.
    async fn post(&self, change: &Change) -> anyhow::Result<()> {
        let body = serde_json::to_string(change)?;
        let id = format!("chg_{}", change.id);
        let timestamp = Utc::now().timestamp();
        let request = self
            .http
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", self.sign(&id, timestamp, &body)?)
            .body(body);
        let response = request.send().await.map_err(reqwest::Error::without_url).context("no answer")?;
        anyhow::ensure!(response.status().is_success(), "the answer was {}", response.status());
        Ok(())
    }

    fn sign(&self, id: &str, timestamp: i64, body: &str) -> anyhow::Result<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key.0).context("the key cannot be used")?;
        mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
        Ok(format!("v1,{}", BASE64.encode(mac.finalize().into_bytes())))
    }
}

impl Service {
    /// Pushes changes while no other replica does, until the process stops. Without `CHANGES_URL` it does nothing.
    pub async fn push_changes(&self, database: Target) {
        let Some(push) = self.parts().push.clone() else { return };
        loop {
            let turn = async {
                if let Err(error) = self.push_in_turn(&push, &database).await {
                    log::warn!("pushing changes: {error:#}");
                }
                tokio::time::sleep(TURN_INTERVAL).await;
            };
            tokio::select! {
                () = turn => {}
                () = self.changes_closed() => return,
            }
        }
    }

    /// Waits for the turn of this replica, and pushes until it is lost.
    ///
    /// The lock is one of a transaction that stays open, on a connection of its own: it ends with the process, also
    /// behind a connection pooler. The transaction has read nothing and has no id, so it holds back nothing.
    async fn push_in_turn(&self, push: &Push, database: &Target) -> anyhow::Result<()> {
        let mut conn = database.connect().await.context("cannot connect to the database")?;
        AnsiTransactionManager::begin_transaction(&mut conn).await?;
        change_push::allow_idling(&mut conn).await?;
        while !change_push::try_hold(&mut conn).await? {
            tokio::time::sleep(TURN_INTERVAL).await;
        }
        log::info!("this replica pushes the changes");
        tokio::select! {
            result = self.push_all(push) => result,
            error = lost(&mut conn) => Err(error),
        }
    }

    /// Pushes what there is, and what comes, until the process stops.
    async fn push_all(&self, push: &Push) -> anyhow::Result<()> {
        let mut tasks = JoinSet::new();
        let mut accounts: HashMap<Id, (Uuid, bool)> = HashMap::new();
        loop {
            while self.queue_changes().await.map_err(anyhow::Error::new)? {}
            for has_failed in [false, true] {
                let places = if has_failed { RETRIES_AT_ONCE } else { FIRST_ATTEMPTS_AT_ONCE };
                let taken = accounts.values().filter(|(_, is_retry)| *is_retry == has_failed).count();
                let busy = accounts.values().map(|(account, _)| *account).collect();
                for queue in self.due_queues(has_failed, busy, places.saturating_sub(taken)).await? {
                    let (service, push, account) = (self.clone(), push.clone(), queue.account_id);
                    let task = tasks.spawn(async move { service.push_queue(&push, queue).await });
                    accounts.insert(task.id(), (account, has_failed));
                }
            }
            tokio::select! {
                Some(ended) = tasks.join_next_with_id() => {
                    let id = match &ended { Ok((id, _)) => *id, Err(error) => error.id() };
                    accounts.remove(&id);
                    match ended {
                        Ok((_, Err(error))) => log::log!(error.log_level(log::Level::Warn), "pushing changes: {}", error.chain()),
                        Err(error) => log::error!("pushing changes: {error}"),
                        Ok((_, Ok(()))) => {}
                    }
                }
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = self.changes_closed() => {
                    let rest = async { while tasks.join_next().await.is_some() {} };
                    tokio::time::timeout(STOP_LIMIT, rest).await.ok();
                    return Ok(());
                }
            }
        }
    }

    /// Moves settled changes to the queues of their accounts; returns whether there were any.
    async fn queue_changes(&self) -> Result<bool, ServiceError> {
        let has_news = change_push::has_news(&mut *self.connection().await?).await?;
        if has_news { self.take(Step::Queue).await } else { Ok(false) }
    }

    async fn due_queues(&self, has_failed: bool, except: Vec<Uuid>, limit: usize) -> Result<Vec<Queue>, ServiceError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut conn = self.connection().await?;
        Ok(change_push::due(&mut conn, has_failed, &except, i64::try_from(limit).unwrap_or(i64::MAX)).await?)
    }

    /// Pushes the next changes of one account, one after the other, up to the first that fails.
    async fn push_queue(&self, push: &Push, mut queue: Queue) -> Result<(), ServiceError> {
        let changes = {
            let mut conn = self.connection().await?;
            if change_push::postpone(&mut conn, &queue, CLAIM_SECS).await? == 0 {
                return Ok(());
            }
            change_push::next_changes(&mut conn, &queue, PUSHED_AT_ONCE).await?
        };
        for change in &changes {
            let waits = change_push::waits_elsewhere(&mut *self.connection().await?, change).await?;
            if waits {
                change_push::postpone(&mut *self.connection().await?, &queue, 1).await?;
                return Ok(());
            }
            if let Err(error) = push.post(change).await {
                let pause = pause_secs(queue.attempts);
                let account = queue.account_id.to_string();
                log::warn!(account = account.as_str(), change_id = change.id;
                    "a change was not delivered, next attempt in {pause} s: {error:#}");
                change_push::failed(&mut *self.connection().await?, &queue, pause, &format!("{error:#}")).await?;
                return Ok(());
            }
            if change_push::delivered(&mut *self.connection().await?, &queue, change.id).await? == 0 {
                return Ok(());
            }
            queue = Queue { next_change_id: change.id + 1, attempts: 0, ..queue };
        }
        if (changes.len() as i64) < PUSHED_AT_ONCE {
            self.take(Step::Finish(queue.account_id)).await?;
        }
        Ok(())
    }

    /// Takes a step in a transaction that holds the lock of the position.
    async fn take(&self, step: Step) -> Result<bool, ServiceError> {
        let mut conn = self.connection().await?;
        let done = conn.transaction(async |conn| {
            change_push::lock_position(conn).await?;
            step.run(conn).await
        });
        Ok(done.await.map_err(AttemptError::from)?)
    }

    /// What is yet to be pushed; `None` without `CHANGES_URL`. Sets the metric, too.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn pending_changes(&self) -> Result<Option<PendingChanges>, ServiceError> {
        if self.parts().push.is_none() {
            return Ok(None);
        }
        let service = self.clone();
        let pending = self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            let total = change_push::pending(&mut conn).await?;
            let failing = change_push::failing(&mut conn, NAMED_FAILURES).await?;
            Ok(PendingChanges { total, failing })
        });
        let pending = pending.await?;
        self.parts().metrics.changes_pending(pending.total.changes);
        Ok(Some(pending))
    }

    /// Starts pushing over: what failed is tried again at once, and with `from` every change from that id on is pushed
    /// again.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn retry_changes(&self, from: Option<i64>) -> Result<(), ServiceError> {
        let service = self.clone();
        self.on_runtime(async move { service.take(Step::StartOver { from }).await }).await?;
        Ok(())
    }
}

/// What is done under the lock of the position.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Move settled changes to the accounts' queues.
    Queue,
    /// Delete an account's queue if it is empty.
    Finish(Uuid),
    /// Try everything again at once, and from this change on once more.
    StartOver { from: Option<i64> },
}

impl Step {
    /// Returns whether anything was done.
    async fn run(self, conn: &mut Conn) -> diesel::QueryResult<bool> {
        match self {
            Self::Queue => change_push::advance(conn, QUEUED_AT_ONCE).await,
            Self::Finish(account) => Ok(change_push::delete_if_empty(conn, account).await? > 0),
            Self::StartOver { from } => {
                if let Some(id) = from {
                    change_push::rewind(conn, id).await?;
                }
                change_push::retry_now(conn).await?;
                Ok(true)
            }
        }
    }
}

/// Ends when the lock is lost, with the reason.
async fn lost(conn: &mut Conn) -> anyhow::Error {
    loop {
        tokio::time::sleep(TURN_INTERVAL).await;
        // The transaction has the lock already, and takes it once more.
        match change_push::try_hold(conn).await {
            Ok(true) => {}
            Ok(false) => return anyhow::anyhow!("another replica pushes"),
            Err(error) => return anyhow::Error::new(error).context("the connection with the lock is lost"),
        }
    }
}

fn pause_secs(failed_attempts: i32) -> i32 {
    let doublings = u32::try_from(failed_attempts).unwrap_or(0).min(16);
    FIRST_PAUSE_SECS.saturating_mul(2_i32.saturating_pow(doublings)).min(LAST_PAUSE_SECS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_from_seconds_to_an_hour() {
        let pauses: Vec<_> = (0..12).map(pause_secs).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]);
        assert_eq!(pause_secs(i32::MAX), LAST_PAUSE_SECS);
    }

    #[test]
    fn a_secret_that_is_no_base64_is_refused_without_being_shown() {
        let url = Url::parse("http://127.0.0.1:1/").unwrap();
        for secret in ["whsec_", "whsec_not base64!", ""] {
            let error = Push::new(url.clone(), &Secret::new(secret)).unwrap_err();
            assert!(!format!("{error:#}").contains("not base64!"), "{error:#}");
        }
    }
}
