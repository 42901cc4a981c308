//! Applying again what is stored: an event that is parked or was ignored, or one that has only ever failed.

use super::{Recorded, Service, ServiceError};
use crate::db::{events, failures, notifications};
use crate::handlers::Outcome;
use crate::stripe::signature::Verified;
use crate::stripe::{Event, Kind};

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

impl Service {
    /// Applies a failed, parked or ignored event again, through the same path as a delivery.
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
            let recorded = match (recorded, failed) {
                // An event that was ignored because of its mode acts once the mode is set right.
                (Some((outcome, payload)), _) => {
                    let event = stored(payload)?;
                    let is_ignored = outcome == Outcome::Ignored.as_str();
                    if is_ignored && event.lacks_object() {
                        service.deliver_ignored_notification(event).await?
                    } else if outcome == Outcome::Parked.as_str() || is_ignored && event.kind != Kind::Other {
                        service.apply_again(event, outcome).await?
                    } else {
                        Recorded::Duplicate
                    }
                }
                (None, Some(payload)) => service.deliver_stored(&id, stored(payload)?).await?,
                (None, None) => return Ok(Replayed::NotFound),
            };
            Ok(match recorded {
                Recorded::First(outcome) => Replayed::Now(outcome.as_str().to_owned()),
                Recorded::Duplicate => Replayed::AlreadyRecorded,
            })
        })
        .await
    }
}

/// An event from our own tables, where only verified ones are.
fn stored(payload: String) -> Result<Event, ServiceError> {
    Event::parse(&Verified::from_own_tables(payload))
        .map_err(|error| ServiceError::Failed(anyhow::Error::new(error).context("the stored payload is no event")))
}
