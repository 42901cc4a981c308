//! Reports events: metrics, log lines, and rows in `event_failures`.

use std::time::Duration;

use super::Service;
use super::apply::Recorded;
use super::error::{AttemptError, Class, ServiceError};
use crate::db::failures;
use crate::handlers::{Note, Outcome, Recording, Submission};
use crate::metrics::RefusedReason;
use crate::stripe::Event;

/// How long recording a failure may take: Stripe waits for the answer.
const RECORDING_LIMIT: Duration = Duration::from_secs(3);

impl Service {
    /// Counts an event that is committed.
    pub(super) fn count(&self, submission: &Submission, recorded: Recorded) {
        self.parts().metrics.event(&submission.event.event_type, recorded.as_str());
        if let Recorded::First(outcome) = recorded {
            self.inner.room.note(false);
            if submission.recording != Recording::First && outcome != Outcome::Parked {
                let event = &submission.event;
                log::info!(
                    event_id = event.id.as_str(), event_type = event.event_type.as_str(),
                    subscription = event.subscription_id.as_deref().unwrap_or_default(),
                    customer = event.customer_id.as_deref().unwrap_or_default(), outcome = outcome.as_str();
                    "applied a recorded event again"
                );
            }
        }
    }

    /// Records a failed attempt in a transaction of its own, and returns the error for the submitter.
    pub(super) async fn record_failed(&self, event: &Event, error: AttemptError) -> ServiceError {
        if error.may_have_committed() {
            self.release_around(event);
        }
        self.parts().metrics.failure(error.reason());
        if error.class() == Class::DiskFull {
            self.inner.room.note(true);
        }
        let was_not_begun = error.is_before_begin();
        let error = ServiceError::from(error);
        if was_not_begun {
            return error;
        }
        match self.record_failure(event, &error.chain()).await {
            Ok(()) => error,
            Err(second) => {
                let second = ServiceError::from(second);
                log::log!(
                    second.log_level(log::Level::Error),
                    "cannot record the failure of event {}: {}",
                    event.id,
                    second.chain()
                );
                match (error, second) {
                    // The database is read-only, full or shutting down, which is not the event's fault.
                    (ServiceError::Failed(cause), ServiceError::Unavailable(_)) => ServiceError::Unavailable(cause),
                    (error, _) => error,
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

    /// Logs and counts the notes of an event that is committed.
    pub(super) fn log_notes(&self, notes: &[Note]) {
        for note in notes {
            match note {
                Note::UndecidedTie { event_id, subscription_id } => {
                    self.parts().metrics.undecided_tie();
                    log::warn!(
                        "event {event_id}: a state of {subscription_id} of the same second could be older or newer; \
                         took this one"
                    );
                }
                Note::AccountConflict { event_id, belongs_to, names } => log::warn!(
                    "event {event_id}: conflict: the checkout names account {names}, but belongs to account \
                     {belongs_to}"
                ),
                Note::CustomerConflict { event_id, account_of_customer, account_of_customer_account } => log::warn!(
                    "event {event_id}: conflict: its customer is linked to account {account_of_customer}, its customer \
                     account to account {account_of_customer_account}; took the former"
                ),
                Note::FeaturesIncomplete { event_id, customer_id } => log::warn!(
                    "event {event_id}: customer {customer_id} has more features than the event lists; without \
                     STRIPE_SECRET_KEY only those are stored"
                ),
                Note::OtherMode { event_id, livemode } => {
                    self.parts().metrics.refused_event(RefusedReason::Mode);
                    let mode = if *livemode { "live" } else { "test" };
                    log::warn!("event {event_id} is a {mode}-mode event and was ignored; see STRIPE_MODE");
                }
                Note::UntrustedName { event_id, connect_account } => {
                    self.parts().metrics.refused_event(RefusedReason::Connect);
                    log::warn!(
                        "event {event_id}: ignored the account that an object of connected account {connect_account} \
                         names; see TRUST_CONNECT_METADATA"
                    );
                }
            }
        }
    }
}
