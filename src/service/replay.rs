//! Applying again what is stored: an event that is parked or was ignored, or one that has only ever failed.

use std::time::Duration;

use futures_util::{Stream, stream};

use super::retry::with_retries;
use super::{Recorded, Service, ServiceError};
use crate::db::maintenance::{self, Candidate, Restriction};
use crate::db::parked::{After, beginning};
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

/// Which of the stored events to replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayable {
    /// Those that have only ever failed.
    Failed,
    /// Those that are parked.
    Parked,
}

/// A selection of stored events.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Which ones.
    pub which: Replayable,
    /// Only those of this type.
    pub event_type: Option<String>,
    /// Only those that came so long ago at most.
    pub since: Option<Duration>,
}

/// How many candidates are read at a time. Each page of failed events sorts all of them.
const PAGE: usize = 5_000;

/// A part of a selection, read page by page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Failed,
    /// All parked events but those of invoices.
    Parked,
    /// Last, since they wait for their subscription's row.
    ParkedInvoices,
}

impl Selection {
    fn restriction(&self) -> Restriction {
        let since_secs = self.since.map(|since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        Restriction { event_type: self.event_type.clone(), since_secs }
    }
}

impl Service {
    /// The stored events of a selection, a page at a time, each in the order in which they are to be replayed. Of the parked
    /// ones those that look as if they could be placed now.
    pub fn replayable(
        &self,
        selection: &Selection,
    ) -> impl Stream<Item = Result<Vec<Candidate>, ServiceError>> + use<> {
        let first = match selection.which {
            Replayable::Failed => Part::Failed,
            Replayable::Parked => Part::Parked,
        };
        let (service, restriction) = (self.clone(), selection.restriction());
        stream::try_unfold(Some((first, beginning())), move |position| {
            let (service, restriction) = (service.clone(), restriction.clone());
            async move {
                let Some((part, after)) = position else { return Ok(None) };
                let page =
                    with_retries(|| service.clone().candidates(part, restriction.clone(), after.clone())).await?;
                let next = match (page.last(), part) {
                    (Some(last), _) if page.len() == PAGE => Some((part, (last.created, last.id.clone()))),
                    (_, Part::Parked) => Some((Part::ParkedInvoices, beginning())),
                    (_, Part::Failed | Part::ParkedInvoices) => None,
                };
                Ok(Some((page, next)))
            }
        })
    }

    async fn candidates(
        self,
        part: Part,
        restriction: Restriction,
        after: After,
    ) -> Result<Vec<Candidate>, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let mut conn = service.connection().await?;
            let limit = i64::try_from(PAGE).unwrap_or(i64::MAX);
            let page = match part {
                Part::Failed => maintenance::failed_page(&mut conn, &restriction, &after, limit).await?,
                Part::Parked => maintenance::parked_page(&mut conn, false, &restriction, &after, limit).await?,
                Part::ParkedInvoices => maintenance::parked_page(&mut conn, true, &restriction, &after, limit).await?,
            };
            Ok(page)
        })
        .await
    }

    /// Events by their ids, in this order.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn candidates_by_id(&self, ids: Vec<String>) -> Result<Vec<Candidate>, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let mut conn = service.connection().await?;
            Ok(maintenance::candidates(&mut conn, &ids).await?)
        })
        .await
    }

    /// How many events of a selection of parked ones are parked, whether or not they could be placed.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn parked_count(&self, selection: &Selection) -> Result<i64, ServiceError> {
        let (service, restriction) = (self.clone(), selection.restriction());
        self.on_runtime(async move {
            let mut conn = service.connection().await?;
            Ok(maintenance::parked_count(&mut conn, &restriction).await?)
        })
        .await
    }

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
