//! Runs one piece of work in one transaction: again after a conflict, again with Stripe's answer, and never with a
//! call to the network inside.

use std::time::Duration;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use rand::RngExt;
use thiserror::Error;

use super::thin::ThinError;
use super::{ATTEMPT_LIMIT, Service, watched};
use crate::db::Conn;
use crate::db::pool::{PoolGetError, Pooled};
use crate::db::writes;
use crate::handlers::{Answers, Context, HandlerError, Question};
use crate::metrics::FailureReason;
use crate::stripe::api::ApiError;

/// How often a transaction that lost against another is run again.
const MAX_CONFLICTS: u32 = 6;

/// How many questions one transaction may put to Stripe. Only a customer with a heap of parked events comes near.
const MAX_QUESTIONS: usize = 100;

/// What is done in one transaction. Run again from the start after a conflict, so it keeps no state.
pub(super) trait Work: Sync {
    /// What it brings.
    type Output: Send;

    /// Changes rows. It does not commit.
    fn run(
        &self,
        conn: &mut Conn,
        ctx: Context<'_>,
    ) -> impl Future<Output = Result<Self::Output, WorkError<Self::Output>>> + Send;
}

/// Why a transaction is rolled back.
#[derive(Debug, Error)]
pub(super) enum WorkError<T> {
    /// There is nothing to do, and this is the answer.
    #[error("nothing to do")]
    Done(T),
    /// The work failed, or needs to be run again.
    #[error(transparent)]
    Handler(#[from] HandlerError),
}

impl<T> From<DieselError> for WorkError<T> {
    fn from(error: DieselError) -> Self {
        Self::Handler(error.into())
    }
}

/// Why an attempt brought nothing. Nothing of it was committed, unless the answer to the commit was lost or too late.
#[derive(Debug, Error)]
pub(super) enum AttemptError {
    #[error("no connection to the database")]
    Pool(#[source] PoolGetError),
    #[error("the events before it take too long")]
    Turn,
    #[error("the database did not answer in time")]
    TimedOut,
    #[error("the task that delivered it died")]
    Died,
    #[error("the connection to the database was lost")]
    Lost(#[source] HandlerError),
    #[error("the database is read-only")]
    ReadOnly(#[source] HandlerError),
    #[error("cannot ask Stripe for {subscription_id}")]
    Stripe {
        subscription_id: String,
        #[source]
        source: ApiError,
    },
    #[error("the event of the notification cannot be fetched")]
    Thin(#[from] ThinError),
    #[error("Stripe had to be asked too often")]
    TooManyQuestions,
    #[error(transparent)]
    Handler(#[from] HandlerError),
}

impl From<DieselError> for AttemptError {
    fn from(error: DieselError) -> Self {
        Self::Handler(error.into())
    }
}

impl AttemptError {
    /// Whether the cause lies outside of the event.
    pub(super) fn is_unavailability(&self) -> bool {
        match self {
            Self::Handler(HandlerError::Database(DieselError::DatabaseError(
                DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                _,
            ))) => true,
            Self::Handler(error) => is_conflict(error) || is_full(error),
            Self::Thin(error) => error.is_unavailability(),
            Self::Died => false,
            _ => true,
        }
    }

    /// Whether another attempt may go well at once: after a conflict, or over another connection. The pool hands out
    /// connections unchecked; one that died while idle is no reason to fail, nor is one that was opened while the
    /// database was read-only.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Lost(_) | Self::ReadOnly(_) => true,
            Self::Handler(error) => is_conflict(error),
            _ => false,
        }
    }

    /// Whether the database has no room left.
    pub(super) fn is_for_want_of_room(&self) -> bool {
        matches!(self, Self::Handler(error) if is_full(error))
    }

    /// Where an admin has to look.
    pub(super) fn reason(&self) -> FailureReason {
        match self {
            Self::Pool(_) | Self::Lost(_) | Self::ReadOnly(_) => FailureReason::Database,
            Self::TimedOut | Self::Turn => FailureReason::Timeout,
            Self::Thin(_) if self.is_unavailability() => FailureReason::Stripe,
            Self::Thin(_) => FailureReason::Handler,
            Self::Stripe { .. } | Self::TooManyQuestions | Self::Handler(HandlerError::NeedsStripe(_)) => {
                FailureReason::Stripe
            }
            Self::Handler(error) if is_canceled(error) => FailureReason::Timeout,
            Self::Handler(_) if self.is_unavailability() => FailureReason::Database,
            Self::Handler(_) | Self::Died => FailureReason::Handler,
        }
    }
}

/// Whether one of the session's time limits ended the statement. 57014 and 55P03 have no kind of their own in diesel.
fn is_canceled(error: &HandlerError) -> bool {
    matches!(error, HandlerError::Database(DieselError::DatabaseError(DatabaseErrorKind::Unknown, information))
        if information.message().starts_with("canceling statement due to"))
}

/// Whether the disk is full. 53100 has no kind of its own in diesel; a table that cannot grow brings this hint.
fn is_full(error: &HandlerError) -> bool {
    matches!(error, HandlerError::Database(DieselError::DatabaseError(DatabaseErrorKind::Unknown, information))
        if information.hint() == Some("Check free disk space.")
            || information.message().ends_with("No space left on device"))
}

/// Whether another transaction was in the way: run again, this one may succeed.
fn is_conflict(error: &HandlerError) -> bool {
    match error {
        HandlerError::Database(DieselError::DatabaseError(DatabaseErrorKind::SerializationFailure, _)) => true,
        // 40P01 has no kind of its own in diesel.
        HandlerError::Database(DieselError::DatabaseError(DatabaseErrorKind::Unknown, information)) => {
            information.message() == "deadlock detected"
        }
        _ => false,
    }
}

/// A random pause, longer after each conflict, so that the same transactions do not meet again.
fn jitter(conflicts: u32) -> Duration {
    Duration::from_millis(rand::rng().random_range(0..5_u64 << conflicts))
}

/// Tells a failed statement from a connection that was lost. A connection that the server has ended (a restart, an
/// admin) reports an error like any other first, and only its next use shows that it is gone.
pub(super) async fn judge(error: HandlerError, conn: &mut Conn) -> AttemptError {
    let is_of_the_database = matches!(error, HandlerError::Database(_));
    if is_of_the_database && (conn.is_broken() || conn.batch_execute("SELECT 1").await.is_err()) {
        // Not for the pool either where it is alive: it is in a transaction that could not be ended.
        watched::give_up(conn);
        return AttemptError::Lost(error);
    }
    let is_read_only = |error: &HandlerError| {
        matches!(error, HandlerError::Database(DieselError::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, _)))
    };
    if is_read_only(&error) {
        // Not for the pool: the session would be read-only for as long as it lives. That it is gone is the aim.
        writes::end_session(conn).await.ok();
        return AttemptError::ReadOnly(error);
    }
    AttemptError::Handler(error)
}

impl Service {
    /// Runs `work` in a transaction of its own until it commits, or fails of itself.
    pub(super) async fn run<W: Work>(&self, work: &W) -> Result<W::Output, AttemptError> {
        let mut answers = Answers::none_yet(self.parts.stripe.is_some());
        let mut conflicts = 0;
        let mut was_lost = false;
        loop {
            let error = match tokio::time::timeout(ATTEMPT_LIMIT, self.attempt(work, &answers)).await {
                Err(_) => return Err(AttemptError::TimedOut),
                Ok(Ok(output)) => return Ok(output),
                Ok(Err(error)) => error,
            };
            match error {
                AttemptError::Handler(HandlerError::NeedsStripe(question)) => {
                    if answers.count() >= MAX_QUESTIONS {
                        return Err(AttemptError::TooManyQuestions);
                    }
                    self.ask(question, &mut answers).await?;
                }
                AttemptError::Handler(error) if is_conflict(&error) && conflicts < MAX_CONFLICTS => {
                    conflicts += 1;
                    tokio::time::sleep(jitter(conflicts)).await;
                }
                AttemptError::Lost(_) | AttemptError::ReadOnly(_) if !was_lost => was_lost = true,
                error => return Err(error),
            }
        }
    }

    async fn attempt<W: Work>(&self, work: &W, answers: &Answers) -> Result<W::Output, AttemptError> {
        let ctx = Context { plans: &self.parts.plans, answers };
        // Taken within the future that may be dropped: a connection that outlived its transaction's future would
        // take part in the dead transaction.
        let mut conn = self.connection().await?;
        let result = conn.transaction(async |conn| work.run(conn, ctx).await).await;
        match result {
            Ok(output) | Err(WorkError::Done(output)) => Ok(output),
            Err(WorkError::Handler(error)) => Err(judge(error, &mut conn).await),
        }
    }

    pub(super) async fn connection(&self) -> Result<Pooled, AttemptError> {
        let _waiting = self.parts.metrics.waiting();
        self.parts.pool.get_owned().await.map_err(AttemptError::Pool)
    }

    /// Asks Stripe, with no transaction open.
    async fn ask(&self, question: Question, answers: &mut Answers) -> Result<(), AttemptError> {
        let Some(stripe) = &self.parts.stripe else {
            return Err(HandlerError::NeedsStripe(question).into());
        };
        let answer = stripe
            .subscription(&question.subscription_id, question.scope.clone())
            .await
            .map_err(|source| AttemptError::Stripe { subscription_id: question.subscription_id.clone(), source })?;
        answers.note(question, answer);
        Ok(())
    }
}
