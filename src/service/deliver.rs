//! One delivery of one event: the idempotency row and the change in one transaction.

use std::sync::Arc;
use std::time::Duration;

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use super::transaction::{AttemptError, Work, WorkError};
use super::{Service, ServiceError};
use crate::db::record;
use crate::db::{Conn, events, failures};
use crate::handlers::{Context, Handle, HandlerError, Handlers, Note, Outcome};
use crate::metrics::FailureReason;
use crate::stripe::Event;
use crate::stripe::redact::{StoredPayloads, redact};

/// How long recording a failure may take: Stripe waits for the answer.
const RECORDING_LIMIT: Duration = Duration::from_secs(3);

/// What a delivery came to. Whatever it is, it is on disk.
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

/// The long way of a delivery: insert the idempotency row, handle the event, record the outcome.
pub(super) struct Delivery<'a, H> {
    pub(super) event: &'a Event,
    pub(super) handler: &'a H,
}

impl<H: Handle> Work for Delivery<'_, H> {
    type Output = (Recorded, Vec<Note>);

    async fn run(&self, conn: &mut Conn, ctx: Context<'_>) -> Result<Self::Output, WorkError<Self::Output>> {
        // The outcome is not known yet; the last statement sets it.
        match record::insert(conn, self.event, Outcome::Ignored.as_str()).await {
            Err(error) if is_duplicate(&error) => {
                return Err(WorkError::Done((Recorded::Duplicate, Vec::new())));
            }
            inserted => inserted?,
        };
        let handled = self.handler.handle(conn, ctx, self.event).await?;
        // PostgreSQL answers COMMIT of a failed transaction with a rollback and no error. This statement fails in
        // one, so that a handler that swallowed an error cannot make the event look applied.
        match events::set_outcome(conn, &self.event.id, handled.outcome.as_str(), handled.account_id).await? {
            1 => Ok((Recorded::First(handled.outcome), handled.notes)),
            _ => Err(HandlerError::Gone("the idempotency row").into()),
        }
    }
}

/// Asked of the statement's error alone that records the event: a handler's own unique violation is a failure.
pub(super) fn is_duplicate(error: &DieselError) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, information)
        if information.constraint_name() == Some(record::PRIMARY_KEY))
}

impl Service {
    /// Applies a delivered event once.
    ///
    /// # Errors
    /// [`ServiceError`]: nothing is known to be committed but, where the database could take it, a row in
    /// `event_failures`.
    pub async fn apply(&self, event: Event) -> Result<Recorded, ServiceError> {
        self.apply_with(event, Handlers).await
    }

    /// [`Service::apply`] with other handlers than ours.
    ///
    /// # Errors
    /// As [`Service::apply`].
    pub async fn apply_with<H>(&self, event: Event, handler: H) -> Result<Recorded, ServiceError>
    where
        H: Handle + Send + 'static,
    {
        let event = Arc::new(self.as_stored(event));
        let short = match handler.shortcut(&self.parts.plans, &event) {
            Some(shortcut) => self.at_once(&event, shortcut).await,
            None => Ok(None),
        };
        if let Ok(Some(recorded)) = short {
            return Ok(recorded);
        }
        let service = self.clone();
        let result = self.on_runtime(async move {
            let done = match short {
                Err(error) if !error.may_pass() => Err(error),
                _ => service.run(&Delivery { event: &event, handler: &handler }).await,
            };
            let (recorded, notes) = match done {
                Ok(done) => done,
                Err(error) => return Err(service.failed(&event, error).await),
            };
            // In the task: it has committed, whether or not anybody waits for it still.
            service.count(&event, recorded);
            service.tell(&notes);
            Ok(recorded)
        });
        result.await.inspect_err(|error| {
            if error.is_of_the_task() {
                self.parts.metrics.failure(FailureReason::Handler);
            }
        })
    }

    /// The event with the payload in the form in which it is stored.
    fn as_stored(&self, mut event: Event) -> Event {
        if self.parts.stored_payloads == StoredPayloads::Redacted {
            event.payload = redact(&event.payload);
        }
        event
    }

    /// Counts what is now committed.
    pub(super) fn count(&self, event: &Event, recorded: Recorded) {
        self.parts.metrics.event(&event.event_type, recorded.as_str());
        if matches!(recorded, Recorded::First(_)) {
            self.room.note(false);
        }
    }

    /// Records a failed attempt, in a transaction of its own, and says how it failed.
    pub(super) async fn failed(&self, event: &Event, error: AttemptError) -> ServiceError {
        self.parts.metrics.failure(error.reason());
        if error.is_for_want_of_room() {
            self.room.note(true);
        }
        let was_not_begun = matches!(error, AttemptError::Pool(_) | AttemptError::Turn);
        let error = ServiceError::from(error);
        if was_not_begun {
            return error;
        }
        match self.record_failure(event, &error.chain()).await {
            Ok(()) => error,
            // A database that cannot even take this (read-only, full, shutting down) is not the event's fault.
            Err(second) => {
                log::error!("cannot record the failure of event {}: {:#}", event.id, anyhow::Error::from(second));
                match error {
                    ServiceError::Failed(cause) | ServiceError::Unavailable(cause) => ServiceError::Unavailable(cause),
                }
            }
        }
    }

    async fn record_failure(&self, event: &Event, error: &str) -> Result<(), AttemptError> {
        let recording = async {
            let mut conn = self.connection().await?;
            failures::insert(&mut conn, event, error).await?;
            Ok(())
        };
        tokio::time::timeout(RECORDING_LIMIT, recording).await.unwrap_or(Err(AttemptError::TimedOut))
    }

    /// Tells the admin what is now committed.
    pub(super) fn tell(&self, notes: &[Note]) {
        for note in notes {
            match note {
                Note::UndecidedTie { event_id, subscription_id } => {
                    self.parts.metrics.undecided_tie();
                    log::warn!(
                        "event {event_id}: a state of {subscription_id} of the same second could be older or newer; \
                         took this one"
                    );
                }
                Note::AccountConflict { event_id, belongs_to, names } => log::warn!(
                    "event {event_id}: conflict: the checkout names account {names}, but belongs to account \
                     {belongs_to}"
                ),
                Note::WokenFailed { event_id, error } => {
                    self.parts.metrics.failure(FailureReason::Handler);
                    log::error!("parked event {event_id} failed: {error}");
                }
                Note::Woken { event_id, event_type, outcome } => {
                    log::info!("parked event {event_id} {event_type}: {}", outcome.as_str());
                }
            }
        }
    }
}
