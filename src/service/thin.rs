//! Thin notifications: finds the event that a notification stands for, or fetches its object, and applies that. Stripe
//! is called between transactions only.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use super::error::AttemptError;
use super::{Recorded, Service, ServiceError};
use crate::db::notifications;
use crate::handlers::{Outcome, Recording, Submission};
use crate::stripe::api::{ApiError, Client, Fetched, Resource, Scope};
use crate::stripe::thin::{Notification, Related, is_plain_id};
use crate::stripe::{Event, InvalidPayload};

/// How long all calls for one notification may take together: Stripe waits for the answer.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why the event of a notification is not there to apply.
#[derive(Debug, Error)]
pub(super) enum ThinError {
    #[error("STRIPE_SECRET_KEY is not set, and a thin event does not contain what happened")]
    NoKey,
    #[error("cannot read {what} from Stripe")]
    Api {
        what: String,
        #[source]
        source: ApiError,
    },
    #[error("Stripe did not answer within {} s in all", DEADLINE.as_secs())]
    Deadline,
    #[error("{0:?} is not an id of Stripe's")]
    NotAnId(String),
    #[error("the notification names neither a snapshot event nor an object")]
    NamesNothing,
    #[error("objects of the type {0:?} cannot be read for this event")]
    UnknownType(String),
    #[error("Stripe has no {0}")]
    Missing(String),
    #[error("Stripe answered with another object than the notification names")]
    OtherType(#[source] ApiError),
    #[error("Stripe's answer is not an event")]
    NotAnEvent(#[from] InvalidPayload),
}

impl ThinError {
    /// Whether the cause lies outside of the event, so that a later delivery may succeed.
    pub(super) fn is_unavailability(&self) -> bool {
        matches!(self, Self::NoKey | Self::Api { .. } | Self::Deadline | Self::NotAnEvent(_))
    }
}

/// What a notification stands for.
enum Resolved {
    /// An event that is recorded already.
    Recorded(String),
    /// An event to apply.
    Event(Box<Event>),
}

impl Service {
    /// Applies a delivery once: an event, or what a thin notification stands for.
    ///
    /// # Errors
    /// As [`Service::apply`]. What a notification stands for is fetched first; if that fails, a row in `event_failures`
    /// names the notification.
    pub async fn deliver(&self, event: Event) -> Result<Recorded, ServiceError> {
        let may_act = self.parts().policy.mode.allows(event.livemode);
        if may_act && event.is_handled_notification() {
            self.deliver_notification(event, None).await
        } else {
            self.apply(event).await
        }
    }

    /// Applies an event that is stored as a failure of `id`. If `id` is not the event's own, it is a notification.
    pub(super) async fn deliver_stored(&self, id: &str, mut event: Event) -> Result<Recorded, ServiceError> {
        if event.lacks_object() {
            return self.deliver_notification(event, None).await;
        }
        if event.notification.is_some() || event.id != id {
            event.notification_id = Some(id.to_owned());
        }
        self.apply_and_note(event, Recording::First).await
    }

    /// Applies a notification that was recorded as ignored. If it stands for an event of another id, its own row stays.
    pub(super) async fn deliver_ignored_notification(&self, event: Event) -> Result<Recorded, ServiceError> {
        if !self.parts().policy.mode.allows(event.livemode) {
            return Ok(Recorded::Duplicate);
        }
        self.deliver_notification(event, Some(Outcome::Ignored)).await
    }

    /// `former`: the outcome with which the notification itself is recorded, if it is.
    async fn deliver_notification(&self, event: Event, former: Option<Outcome>) -> Result<Recorded, ServiceError> {
        let id = event.id.clone();
        let service = self.clone();
        let resolved = self.on_runtime(async move {
            let resolved = service.resolve(&event, former.is_some()).await;
            match resolved {
                Ok(Resolved::Recorded(event_id)) => {
                    service.note(&event.id, &event_id).await?;
                    service.metrics().event(&event.event_type, Recorded::Duplicate.as_str());
                    Ok(None)
                }
                Ok(Resolved::Event(resolved)) => Ok(Some(resolved)),
                Err(error) => Err(service.record_failed(&event, error).await),
            }
        });
        let Some(event) = resolved.await? else {
            return Ok(Recorded::Duplicate);
        };
        let recording = match former {
            Some(former) if event.id == id => Recording::Again(former.as_str().to_owned()),
            _ => Recording::First,
        };
        self.apply_and_note(*event, recording).await
    }

    /// Applies an event, and notes its notification. Should the process end in between, the notification comes again
    /// and finds its event recorded.
    async fn apply_and_note(&self, event: Event, recording: Recording) -> Result<Recorded, ServiceError> {
        let (id, notification_id) = (event.id.clone(), event.notification_id.clone());
        let recorded = self.submit(Submission { event: Arc::new(self.as_stored(event)), recording }).await?;
        if let Some(notification_id) = notification_id {
            let service = self.clone();
            self.on_runtime(async move { service.note(&notification_id, &id).await }).await?;
        }
        Ok(recorded)
    }

    async fn note(&self, notification_id: &str, event_id: &str) -> Result<(), ServiceError> {
        let mut conn = self.connection().await?;
        notifications::record(&mut conn, notification_id, event_id).await?;
        Ok(())
    }

    /// Finds what a notification stands for: the snapshot event, or else the object as it is now.
    /// `is_again`: the notification itself is recorded, which makes it no duplicate.
    async fn resolve(&self, event: &Event, is_again: bool) -> Result<Resolved, AttemptError> {
        let named = event.notification.clone().unwrap_or_default();
        if let Some(recorded) = self.recorded(event, &named, is_again).await? {
            return Ok(Resolved::Recorded(recorded));
        }
        let stripe = self.parts().stripe.as_ref().ok_or(ThinError::NoKey)?;
        let fetched = tokio::time::timeout(DEADLINE, self.fetch(stripe, event, named, is_again));
        fetched.await.unwrap_or_else(|_| Err(ThinError::Deadline.into()))
    }

    /// The event that is recorded for a notification already.
    async fn recorded(
        &self,
        event: &Event,
        named: &Notification,
        is_again: bool,
    ) -> Result<Option<String>, AttemptError> {
        let mut conn = self.connection().await?;
        let own_id = (!is_again).then_some(event.id.as_str());
        let event_ids: Vec<_> = own_id.into_iter().chain(named.snapshot_event.as_deref()).collect();
        Ok(notifications::recorded_event(&mut conn, &event.id, &event_ids).await?)
    }

    async fn fetch(
        &self,
        stripe: &Client,
        event: &Event,
        named: Notification,
        is_again: bool,
    ) -> Result<Resolved, AttemptError> {
        let scope = event.scope();
        let mut named = named;
        if named.snapshot_event.is_none() {
            let found = thin_event(stripe, &event.id, &scope).await?;
            named = Notification { snapshot_event: found.snapshot_event, related: named.related.or(found.related) };
            if let Some(recorded) = self.recorded(event, &named, is_again).await? {
                return Ok(Resolved::Recorded(recorded));
            }
        }
        if let Some(id) = &named.snapshot_event
            && let Some(snapshot) = snapshot_event(stripe, id, &scope, &event.id).await?
        {
            return Ok(Resolved::Event(Box::new(snapshot)));
        }
        let object = related_object(stripe, named.related, event.wanted_resource(), &scope).await?;
        Ok(Resolved::Event(Box::new(event.with_object(&object).map_err(ThinError::from)?)))
    }
}

/// What the notification's event at Stripe names.
async fn thin_event(stripe: &Client, id: &str, scope: &Scope) -> Result<Notification, ThinError> {
    let found =
        stripe.thin_event(plain(id)?, scope).await.map_err(|source| api_error(format!("event {id}"), source))?;
    Ok(found.as_ref().map(Notification::of_thin_event).unwrap_or_default())
}

/// The snapshot event, as if it had been delivered; `None` if Stripe has none.
async fn snapshot_event(
    stripe: &Client,
    id: &str,
    scope: &Scope,
    notification_id: &str,
) -> Result<Option<Event>, ThinError> {
    let found = stripe.event(plain(id)?, scope).await.map_err(|source| api_error(format!("event {id}"), source))?;
    let Some(found) = found else { return Ok(None) };
    let mut event = Event::parse(&Fetched::one(found).read_in(scope).verified())?;
    event.notification_id = Some(notification_id.to_owned());
    Ok(Some(event))
}

/// The object as it is now, from a path made of its type and its id.
async fn related_object(
    stripe: &Client,
    related: Option<Related>,
    wanted: Option<Resource>,
    scope: &Scope,
) -> Result<Value, ThinError> {
    let Some(Related { object_type: Some(object_type), id: Some(id) }) = related else {
        return Err(ThinError::NamesNothing);
    };
    let resource = Resource::named(&object_type).filter(|resource| Some(*resource) == wanted);
    let resource = resource.ok_or(ThinError::UnknownType(object_type))?;
    let what = format!("{} {}", resource.object_type(), plain(&id)?);
    match stripe.resource(resource, &id, scope).await {
        Ok(Some(object)) => Ok(object),
        Ok(None) => Err(ThinError::Missing(what)),
        Err(source) => Err(api_error(what, source)),
    }
}

fn plain(id: &str) -> Result<&str, ThinError> {
    if is_plain_id(id) { Ok(id) } else { Err(ThinError::NotAnId(id.to_owned())) }
}

fn api_error(what: String, source: ApiError) -> ThinError {
    match source {
        ApiError::Unexpected { is_other_type: true, .. } => ThinError::OtherType(source),
        source => ThinError::Api { what, source },
    }
}
