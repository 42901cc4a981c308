//! Applies events: the one transaction function, for one event or several. Load, decide, write.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use diesel_async::{AsyncConnection, SimpleAsyncConnection, TransactionManager};
use futures_util::FutureExt;
use futures_util::future::join;
use rand::RngExt;
use serde_json::Value;
use tokio::sync::MutexGuard;

use super::error::{AttemptError, Class, ServiceError, classified, uses};
use super::group_commit::Entry;
use super::{ATTEMPT_LIMIT, Service};
use crate::db::parked::Awaited;
use crate::db::pool::Pooled;
use crate::db::{Conn, events, writes};
use crate::handlers::{
    Answers, Context, HandlerError, Note, Outcome, Question, Recording, Sharing, Subject, Submission, Work, WriteError,
};
use crate::metrics::FailureReason;
use crate::stripe::Event;
use crate::stripe::redact::{StoredPayloads, redact};

/// How often a transaction that lost against another is run again.
const MAX_CONFLICTS: u32 = 6;

/// How often an event may ask Stripe. It asks again after each event of the same second that became known meanwhile.
const MAX_QUESTIONS: u32 = 20;

/// How many connections may turn out to be closed, one after the other, before one is taken unchecked.
const MAX_CLOSED: usize = 3;

/// Begins the transaction of an event that goes alone. Without the setting PostgreSQL would plan the look-up anew for each
/// transaction; `docs/decisions/no-sequential-scans.md` says why.
const BEGIN_ALONE: &str = "BEGIN; SET LOCAL plan_cache_mode = force_generic_plan";

/// Begins the transaction of a batch. The lock timeout is short, because all events of the batch wait for the row that
/// another transaction has locked. The batch is then rolled back, and each event goes alone.
const BEGIN_BATCH: &str = "BEGIN; SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL lock_timeout = '50ms'";

/// The result of a delivery whose transaction is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Recorded by this delivery.
    First(Outcome),
    /// Recorded before; nothing changed.
    Duplicate,
}

impl Recorded {
    /// The word of the webhook's answer.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First(outcome) => outcome.as_str(),
            Self::Duplicate => "duplicate",
        }
    }
}

/// What a transaction that committed leaves to do for one of its events.
#[derive(Debug)]
struct Applied {
    recorded: Recorded,
    notes: Vec<Note>,
    releases: Vec<Awaited>,
}

/// The result of one event of a transaction that committed.
#[derive(Debug)]
enum Attempted {
    Applied(Applied),
    /// The event needs a transaction of its own. Nothing of it was written.
    GoesAlone,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Commit,
    /// For a preview.
    Rollback,
}

impl Service {
    /// Applies a delivered event once.
    ///
    /// # Errors
    /// [`ServiceError`]: the event is not known to be committed. If the database could write it, there is a row in
    /// `event_failures`.
    pub async fn apply(&self, event: Event) -> Result<Recorded, ServiceError> {
        self.submit(Submission { event: Arc::new(self.as_stored(event)), recording: Recording::First }).await
    }

    /// The event with the payload in the form in which it is stored.
    pub(super) fn as_stored(&self, mut event: Event) -> Event {
        if self.parts().stored_payloads == StoredPayloads::Redacted {
            event.payload = redact(&event.payload);
        }
        event
    }

    /// Queues an event for the group commit and waits until it is applied.
    pub(super) async fn submit(&self, submission: Submission) -> Result<Recorded, ServiceError> {
        let submitted = self.inner.group_commit.submit(submission, self.parts().queue_timeout).await;
        submitted.unwrap_or_else(|error| {
            self.parts().metrics.failure(error.reason());
            Err(error.into())
        })
    }

    /// The result that [`Service::apply`] would have now. Nothing is committed, not even a failure.
    ///
    /// # Errors
    /// As [`Service::apply`].
    pub async fn preview(&self, event: Event) -> Result<Recorded, ServiceError> {
        let service = self.clone();
        let submission = Submission { event: Arc::new(event), recording: Recording::First };
        self.on_runtime(async move { Ok(service.run_alone(&submission, Ending::Rollback).await?.recorded) }).await
    }

    /// Applies a batch of the group commit, and answers each of its events.
    pub(super) async fn apply_batch(&self, mut batch: Vec<Entry>) {
        batch.retain(Entry::claim);
        if batch.is_empty() {
            return;
        }
        // Older events of a subscription first, so that none becomes stale because of its place in the batch.
        batch.sort_by(|one, other| order(&one.submission).cmp(&order(&other.submission)));
        let submissions: Vec<_> = batch.iter().map(|entry| &entry.submission).collect();
        let answers = Answers::none_yet(self.parts().stripe.is_some());
        let attempt = self.attempt(&submissions, &answers, Sharing::Batch, Ending::Commit);
        let attempt = AssertUnwindSafe(self.within(ATTEMPT_LIMIT, attempt)).catch_unwind().await;
        match attempt {
            Ok(Ok(attempted)) => {
                let mut releasing = Vec::new();
                for (entry, attempted) in batch.into_iter().zip(attempted) {
                    match attempted {
                        Attempted::Applied(applied) if applied.releases.is_empty() => self.finish(entry, applied),
                        Attempted::Applied(applied) => releasing.push((entry, applied)),
                        Attempted::GoesAlone => self.start_alone(entry),
                    }
                }
                self.finish_releasing(releasing);
            }
            Ok(Err(AttemptError::Pool(error))) => {
                for entry in batch {
                    self.parts().metrics.failure(FailureReason::Database);
                    entry.answer.send(Err(AttemptError::Pool(error.clone()).into())).ok();
                }
            }
            // One event's failure, or panic, must not fail the others.
            failed => {
                // The answer to a COMMIT may be lost; alone each event is a duplicate then, which releases nothing.
                batch.iter().for_each(|entry| self.release_around(&entry.submission.event));
                if let Ok(Err(error)) = failed {
                    let error = anyhow::Error::from(error);
                    log::debug!("a batch of {} events is applied one by one: {error:#}", batch.len());
                }
                batch.into_iter().for_each(|entry| self.start_alone(entry));
            }
        }
    }

    /// Applies one event in a transaction and a task of its own, because it may wait for a lock or for Stripe. It is
    /// cancelled when its submitter has gone.
    fn start_alone(&self, mut entry: Entry) {
        let service = self.clone();
        self.parts().runtime.spawn(classified(async move {
            let submission = entry.submission.clone();
            let result = tokio::select! {
                result = AssertUnwindSafe(service.run_alone(&submission, Ending::Commit)).catch_unwind() => result,
                () = entry.answer.closed() => {
                    service.release_around(&submission.event);
                    return;
                }
            };
            match result.unwrap_or(Err(AttemptError::Panicked)) {
                Ok(applied) => {
                    // For one that is applied again, a second attempt after a lost answer is no duplicate.
                    if submission.recording != Recording::First && applied.recorded != Recorded::First(Outcome::Parked)
                    {
                        service.release_around(&submission.event);
                    }
                    service.finish_releasing(vec![(entry, applied)]);
                }
                Err(error) => {
                    let error = service.record_failed(&submission.event, error).await;
                    entry.answer.send(Err(error)).ok();
                }
            }
        }));
    }

    /// Counts and logs an event that is committed, and answers its submitter.
    fn finish(&self, entry: Entry, applied: Applied) {
        // It may be that the answer to the COMMIT of an attempt was lost, and that nothing was released after it.
        if applied.recorded == Recorded::Duplicate {
            self.release_around(&entry.submission.event);
        }
        self.count(&entry.submission, applied.recorded);
        // What there is to log of a parked event was logged when it arrived.
        let is_parked_still =
            applied.recorded == Recorded::First(Outcome::Parked) && entry.submission.recording != Recording::First;
        if !is_parked_still {
            self.log_notes(&applied.notes);
        }
        entry.answer.send(Ok(applied.recorded)).ok();
    }

    /// [`Service::finish`] for events that parked ones may have waited for. These are applied first, unless that takes
    /// long.
    fn finish_releasing(&self, finished: Vec<(Entry, Applied)>) {
        if finished.is_empty() {
            return;
        }
        let service = self.clone();
        self.parts().runtime.spawn(async move {
            let awaited = finished.iter().flat_map(|(_, applied)| &applied.releases).cloned().collect();
            let has_parked = service.with_parked(awaited).await;
            for (entry, mut applied) in finished {
                applied.releases.retain(|release| has_parked.contains(release));
                let releases = std::mem::take(&mut applied.releases);
                if releases.is_empty() {
                    service.finish(entry, applied);
                    continue;
                }
                let service = service.clone();
                tokio::spawn(async move {
                    service.release_before_answer(releases).await;
                    service.finish(entry, applied);
                });
            }
        });
    }

    /// Applies one event in a transaction of its own: again after a conflict, over another connection, or with Stripe's
    /// answer, and never with a call to the network inside of the transaction.
    async fn run_alone(&self, submission: &Submission, ending: Ending) -> Result<Applied, AttemptError> {
        let completed;
        let submission = match self.with_all_items(&submission.event).await? {
            Some(event) => {
                completed = Submission { event: Arc::new(event), ..submission.clone() };
                &completed
            }
            None => submission,
        };
        // Events of one customer would wait for each other's locks, each with a connection.
        let mut turn = Some(self.turn_of(&submission.event).await?);
        let mut answers = Answers::none_yet(self.parts().stripe.is_some());
        let (mut conflicts, mut questions, mut was_reconnected) = (0, 0, false);
        loop {
            let waiting = self.parts().metrics.waiting();
            let permit = tokio::time::timeout(self.parts().queue_timeout, self.inner.turns.connection());
            let permit = permit.await.map_err(|_| AttemptError::Queue)?;
            drop(waiting);
            let alone = [submission];
            let attempt = self.attempt(&alone, &answers, Sharing::Alone, ending);
            let attempted = self.within(ATTEMPT_LIMIT, attempt).await;
            drop(permit);
            let error = match attempted.map(|mut attempted| attempted.pop()) {
                Ok(Some(Attempted::Applied(applied))) => return Ok(applied),
                Ok(_) => return Err(AttemptError::Handler(HandlerError::GoesAlone)),
                Err(error) => error,
            };
            match (error.class(), error) {
                (_, AttemptError::Handler(HandlerError::NeedsStripe(question))) => {
                    if questions == MAX_QUESTIONS {
                        return Err(AttemptError::TooManyQuestions);
                    }
                    questions += 1;
                    // Another event of the customer may go on meanwhile.
                    turn.take();
                    self.ask(question, &mut answers).await?;
                    turn = Some(self.turn_of(&submission.event).await?);
                }
                (Class::Conflict, _) if conflicts < MAX_CONFLICTS => {
                    conflicts += 1;
                    tokio::time::sleep(jitter(conflicts)).await;
                }
                // A connection of the pool may have died while it was idle, or been opened on what is a standby now.
                (Class::Connection, _) if !was_reconnected => was_reconnected = true,
                (_, error) => {
                    // The first attempt may have committed, and only its answer have been lost.
                    if was_reconnected {
                        self.release_around(&submission.event);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Runs one transaction over these events. It returns the result of each, or nothing of any was committed.
    async fn attempt(
        &self,
        submissions: &[&Submission],
        answers: &Answers,
        sharing: Sharing,
        ending: Ending,
    ) -> Result<Vec<Attempted>, AttemptError> {
        // The connection is dropped together with this future. If it outlived the future, its next user would be in this
        // transaction.
        let mut conn = self.fast_connection().await?;
        conn.first_error().take();
        let ctx = Context { policy: &self.parts().policy, answers, sharing };
        let mut open = OpenTransaction { conn: &mut conn, is_open: true };
        let result = self.in_transaction(open.conn, submissions, ctx, ending).await;
        let error = match result {
            Ok(attempted) => {
                open.is_open = false;
                return Ok(attempted);
            }
            Err(error) => error,
        };
        let server = open.conn.first_error().take();
        open.is_open = open.conn.batch_execute("ROLLBACK").await.is_err();
        drop(open);
        match error {
            TransactionError::AlreadyRecorded => self.see_duplicate(&mut conn, submissions).await,
            TransactionError::Handler(HandlerError::Database(source)) => {
                let error = AttemptError::of(source, server);
                if error.class() == Class::Connection {
                    conn.retire_all();
                    // A session that began on a standby stays read-only. Ignore the error: we want the session closed.
                    writes::end_session(&mut conn).await.ok();
                }
                Err(error)
            }
            TransactionError::Handler(error) => Err(AttemptError::Handler(error)),
        }
    }

    /// The transaction: load, decide, write.
    async fn in_transaction(
        &self,
        conn: &mut Conn,
        submissions: &[&Submission],
        ctx: Context<'_>,
        ending: Ending,
    ) -> Result<Vec<Attempted>, TransactionError> {
        let begin = match ctx.sharing {
            Sharing::Batch => BEGIN_BATCH,
            Sharing::Alone => BEGIN_ALONE,
        };
        // BEGIN is sent first and not waited for, so that it shares a round trip with the load.
        let (begun, loaded) = {
            let conn = &*conn;
            join(async { (&mut &*conn).batch_execute(begin).await }, Work::load(conn, ctx, submissions)).await
        };
        begun?;
        let mut work = loaded?;
        let mut attempted = Vec::with_capacity(submissions.len());
        for submission in submissions {
            attempted.push(self.handle(conn, &mut work, ctx, submission).await?);
        }
        if work.is_empty() {
            conn.batch_execute("ROLLBACK").await?;
            return Ok(attempted);
        }
        // PostgreSQL answers COMMIT of a failed transaction with a rollback and no error. In such a transaction the
        // statements of `write` fail, so that an event whose handler ignored an error does not count as applied.
        work.write(conn).await?;
        conn.batch_execute(if ending == Ending::Commit { "COMMIT" } else { "ROLLBACK" }).await?;
        Ok(attempted)
    }

    /// Has one event handled.
    async fn handle(
        &self,
        conn: &mut Conn,
        work: &mut Work,
        ctx: Context<'_>,
        submission: &Submission,
    ) -> Result<Attempted, HandlerError> {
        let event = &submission.event;
        if submission.recording == Recording::First && work.is_known(event)? {
            return Ok(Attempted::Applied(Applied::duplicate()));
        }
        match self.parts().handlers.handle(conn, work, ctx, event).await {
            Ok(handled) => {
                work.record(submission, &handled);
                let recorded = Recorded::First(handled.outcome);
                // A parked event that stays parked must not release itself again and again.
                let is_parked_still = handled.outcome == Outcome::Parked && submission.recording != Recording::First;
                let releases = if is_parked_still { Vec::new() } else { handled.releases };
                Ok(Attempted::Applied(Applied { recorded, notes: handled.notes, releases }))
            }
            // Nothing of the event was written, so the batch can commit without it. Alone, it is retried or fails.
            Err(error) if ctx.sharing == Sharing::Batch && !matches!(error, HandlerError::Database(_)) => {
                Ok(Attempted::GoesAlone)
            }
            Err(error) => Err(error),
        }
    }

    /// The database refused an idempotency row. Of a batch each event goes alone; alone, the event is a duplicate once its
    /// row has been seen, since a trigger of the application's can raise the same violation.
    async fn see_duplicate(
        &self,
        conn: &mut Conn,
        submissions: &[&Submission],
    ) -> Result<Vec<Attempted>, AttemptError> {
        let [submission] = submissions else {
            return Ok(submissions.iter().map(|_| Attempted::GoesAlone).collect());
        };
        if !events::exists(conn, &submission.event.id).await? {
            return Err(AttemptError::FalseDuplicate);
        }
        Ok(vec![Attempted::Applied(Applied::duplicate())])
    }

    /// Waits for the turn of an event that goes alone.
    async fn turn_of(&self, event: &Event) -> Result<Option<MutexGuard<'_, ()>>, AttemptError> {
        let _waiting = self.parts().metrics.waiting();
        let turn = self.inner.turns.take(event);
        tokio::time::timeout(self.parts().queue_timeout, turn).await.map_err(|_| AttemptError::Queue)
    }

    /// Asks Stripe, with no transaction open.
    async fn ask(&self, question: Question, answers: &mut Answers) -> Result<(), AttemptError> {
        let Some(stripe) = &self.parts().stripe else {
            return Err(AttemptError::Handler(HandlerError::NeedsStripe(question)));
        };
        let scope = &question.scope;
        let answer = match &question.subject {
            Subject::Subscription(id) => stripe.subscription(id, scope.clone()).await,
            Subject::Features(customer) => {
                stripe.active_entitlements(customer, scope).await.map(|listed| listed.map(Value::Array))
            }
        };
        let answer = answer.map_err(|source| AttemptError::Stripe { subject: question.subject.clone(), source })?;
        answers.note(question, answer);
        Ok(())
    }

    /// A connection for the delivery path: not checked, since an attempt is run again over another one if it is closed.
    async fn fast_connection(&self) -> Result<Pooled, AttemptError> {
        let _waiting = self.parts().metrics.waiting();
        self.parts().pool.get().await.map_err(AttemptError::Pool)
    }

    /// A connection that has just answered. If one does not, all that were opened before now are dropped, and another is
    /// taken; after two of these, one that was not asked.
    pub(super) async fn connection(&self) -> Result<Pooled, AttemptError> {
        let mut conn = self.fast_connection().await?;
        for _ in 1..MAX_CLOSED {
            let answer = self.parts().pool.until_outage(conn.batch_execute("SELECT 1")).await;
            match answer.map_err(AttemptError::GivenUp)? {
                Ok(()) => break,
                Err(error) => {
                    log::debug!("a connection to the database is closed, opening another: {error}");
                    conn.retire_all();
                    conn = self.fast_connection().await?;
                }
            }
        }
        uses(conn.first_error());
        Ok(conn)
    }
}

impl Applied {
    fn duplicate() -> Self {
        Self { recorded: Recorded::Duplicate, notes: Vec::new(), releases: Vec::new() }
    }
}

/// Why a transaction is rolled back.
enum TransactionError {
    Handler(HandlerError),
    AlreadyRecorded,
}

impl From<HandlerError> for TransactionError {
    fn from(error: HandlerError) -> Self {
        Self::Handler(error)
    }
}

impl From<diesel::result::Error> for TransactionError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Handler(HandlerError::Database(error))
    }
}

impl From<WriteError> for TransactionError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::AlreadyRecorded => Self::AlreadyRecorded,
            WriteError::Database(error) => error.into(),
        }
    }
}

/// Keeps a connection out of the pool if its transaction is given up, by a submitter that is gone or by a time limit. The
/// server notices that the connection is closed, and rolls back.
struct OpenTransaction<'a> {
    conn: &'a mut Pooled,
    is_open: bool,
}

impl Drop for OpenTransaction<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let conn: &mut Conn = self.conn;
            <Conn as AsyncConnection>::TransactionManager::transaction_manager_status_mut(conn).set_in_error();
        }
    }
}

/// The sort key of the events of a batch.
fn order(submission: &Submission) -> impl Ord + '_ {
    (submission.event.subscription_id.as_deref(), submission.event.created)
}

/// A random pause, longer after each conflict, so that the same transactions do not meet again.
pub(super) fn jitter(conflicts: u32) -> Duration {
    Duration::from_millis(rand::rng().random_range(0..5_u64 << conflicts))
}
