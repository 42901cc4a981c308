//! Applying again what is stored: a parked event, or one that has only ever failed.

use super::deliver::Recorded;
use super::transaction::{Work, WorkError};
use super::{Service, ServiceError};
use crate::db::{Conn, events, failures, notifications};
use crate::handlers::{self, Context, Note, Waiting};
use crate::stripe::Event;
use crate::stripe::signature::Verified;

/// What a replay came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// There is no such event.
    NotFound,
    /// It was applied, or judged otherwise, before; nothing changed.
    AlreadyRecorded,
    /// This is what became of it.
    Now(String),
}

/// The work of replaying a parked event: wake it, and whatever else waits for the same.
struct Wake<'a> {
    event: &'a Event,
}

impl Work for Wake<'_> {
    type Output = (Replayed, Vec<Note>);

    async fn run(&self, conn: &mut Conn, ctx: Context<'_>) -> Result<Self::Output, WorkError<Self::Output>> {
        let mut notes = Vec::new();
        let mut waiting =
            self.event.named_account_ids.iter().fold(Waiting::of(self.event), |waiting, &id| waiting.and_account(id));
        handlers::wake(conn, ctx, &mut waiting, &mut notes).await?;
        let replayed = match events::find(conn, &self.event.id).await? {
            Some((outcome, _)) => Replayed::Now(outcome),
            None => Replayed::NotFound,
        };
        Ok((replayed, notes))
    }
}

impl Service {
    /// Applies a failed or parked event again, through the same path as a delivery.
    ///
    /// # Errors
    /// As [`Service::apply`].
    pub async fn replay(&self, id: String) -> Result<Replayed, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let mut conn = service.connection().await?;
            let id = notifications::event_of(&mut conn, &id).await?.unwrap_or(id);
            let recorded = events::find(&mut conn, &id).await?;
            let failed = if recorded.is_none() { failures::payload(&mut conn, &id).await? } else { None };
            drop(conn);
            match (recorded, failed) {
                (Some((outcome, payload)), _) if outcome == "parked" => service.wake(stored(payload)?).await,
                (Some(_), _) => Ok(Replayed::AlreadyRecorded),
                (None, Some(payload)) => match service.deliver_stored(&id, stored(payload)?).await? {
                    Recorded::First(outcome) => Ok(Replayed::Now(outcome.as_str().to_owned())),
                    Recorded::Duplicate => Ok(Replayed::AlreadyRecorded),
                },
                (None, None) => Ok(Replayed::NotFound),
            }
        })
        .await
    }

    async fn wake(&self, event: Event) -> Result<Replayed, ServiceError> {
        match self.run(&Wake { event: &event }).await {
            Ok((replayed, notes)) => {
                self.tell(&notes);
                // It could be placed, failed, and stays parked; the failure is recorded.
                let failure = notes.into_iter().find_map(|note| match note {
                    Note::WokenFailed { event_id, error } if event_id == event.id => Some(error),
                    _ => None,
                });
                failure.map_or(Ok(replayed), |error| Err(ServiceError::Failed(anyhow::Error::msg(error))))
            }
            Err(error) => Err(self.failed(&event, error).await),
        }
    }
}

/// An event from our own tables, where only verified ones are.
fn stored(payload: String) -> Result<Event, ServiceError> {
    Event::parse(&Verified::from_own_tables(payload))
        .map_err(|error| ServiceError::Failed(anyhow::Error::new(error).context("the stored payload is no event")))
}
