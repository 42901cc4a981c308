//! Events: what became of them, and applying one again.

use actix_web::HttpResponse;
use actix_web::web::{Data, Path, Query};
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use super::accounts::check_text;
use super::auth::Admin;
use super::responses::{Event, Events, Recorded, Status};
use super::{ApiError, State, openapi, request_id};
use crate::db::listing::Filter;
use crate::service::{Replayed, ServiceError};

const DEFAULT_LIMIT: u8 = 20;

/// The query of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only events of this type.
    #[param(nullable = false, min_length = 1, max_length = 255)]
    r#type: Option<String>,
    /// Only events of which this became.
    #[param(nullable = false, inline)]
    status: Option<Status>,
    /// Only events about this customer.
    #[param(nullable = false, min_length = 1, max_length = 255)]
    customer: Option<String>,
    /// Only events about this subscription.
    #[param(nullable = false, min_length = 1, max_length = 255)]
    subscription: Option<String>,
    /// Only events that concerned this account of ours.
    #[param(nullable = false, value_type = Option<Uuid>)]
    account: Option<String>,
    /// The most events to answer.
    #[param(nullable = false, value_type = Option<u8>, minimum = 1, maximum = 100, default = 20)]
    limit: Option<String>,
    /// Only events that come behind this one in the list: the last id of the page before.
    #[param(nullable = false, min_length = 1, max_length = 255)]
    starting_after: Option<String>,
}

/// `GET /events`.
#[utoipa::path(
    get, path = "/events", tag = "events", operation_id = "events",
    summary = "Events, newest first, those that have only ever failed too",
    params(ListQuery),
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "A page of events", body = Events),
        openapi::InvalidRequest, openapi::AdminsOnly, openapi::Failures,
    ),
)]
pub async fn list(
    _: Admin,
    query: Result<Query<ListQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    let limit = limit(query.limit.as_deref())?;
    let account = match &query.account {
        None => None,
        Some(id) => Some(Uuid::try_parse(id).map_err(|_| ApiError::InvalidRequest("`account` is no UUID".to_owned()))?),
    };
    for (name, text) in [
        ("type", &query.r#type),
        ("customer", &query.customer),
        ("subscription", &query.subscription),
        ("starting_after", &query.starting_after),
    ] {
        text.as_deref().map_or(Ok(()), |text| check_text(name, text, 1))?;
    }
    let filter = Filter {
        event_type: query.r#type,
        status: query.status.map(|status| status.as_str().to_owned()),
        customer: query.customer,
        subscription: query.subscription,
        account,
    };
    let page = state.service.events(filter, query.starting_after, limit).await.map_err(ApiError::of_request)?;
    let page = page.ok_or_else(|| ApiError::InvalidRequest("`starting_after` is no event's id".to_owned()))?;
    Ok(HttpResponse::Ok().json(Events::from(page)))
}

/// The size of a list's page.
pub(super) fn limit(given: Option<&str>) -> Result<u8, ApiError> {
    match given.map(str::parse::<u8>) {
        None => Ok(DEFAULT_LIMIT),
        Some(Ok(limit @ 1..=100)) => Ok(limit),
        Some(_) => Err(ApiError::InvalidRequest("`limit` must be a whole number from 1 to 100".to_owned())),
    }
}

/// `GET /events/{id}`.
#[utoipa::path(
    get, path = "/events/{id}", tag = "events", operation_id = "event",
    summary = "An event, with its failures and its payload",
    params(("id" = String, Path, description = "The event's id")),
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "The event", body = Event),
        openapi::NotFound, openapi::AdminsOnly, openapi::Failures,
    ),
)]
pub async fn show(_: Admin, id: Path<String>, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let view = state.service.event(event_id(id)?).await.map_err(ApiError::of_request)?;
    let view = view.ok_or(ApiError::NotFound("event with this id"))?;
    Ok(HttpResponse::Ok().json(Event::from(view)))
}

/// `POST /events/{id}/replay`.
#[utoipa::path(
    post, path = "/events/{id}/replay", tag = "events", operation_id = "replayEvent",
    summary = "Apply a failed or parked event again",
    description = "Takes the same path as a delivery: an event that is recorded already, and not parked, is not run \
                   again.",
    params(("id" = String, Path, description = "The event's id")),
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "It is recorded, now or before", body = Recorded),
        openapi::NotFound, openapi::AdminsOnly, openapi::EventFailures,
    ),
)]
pub async fn replay(_: Admin, id: Path<String>, state: Data<State>) -> Result<HttpResponse, ApiError> {
    match replay_and_log(&state, event_id(id)?).await? {
        Replayed::NotFound => Err(ApiError::NotFound("event with this id")),
        Replayed::AlreadyRecorded => {
            Ok(HttpResponse::Ok().json(Recorded { applied: false, outcome: "duplicate".to_owned() }))
        }
        Replayed::Now(outcome) => Ok(HttpResponse::Ok().json(Recorded { applied: true, outcome })),
    }
}

/// Replays an event, and logs what came of it once.
pub(super) async fn replay_and_log(state: &State, id: String) -> Result<Replayed, ApiError> {
    let request_id = request_id::current();
    match state.service.replay(id.clone()).await {
        Ok(replayed) => {
            if let Replayed::Now(outcome) = &replayed {
                log::info!(event_id = id, outcome = outcome.as_str(), request_id; "replay");
            }
            Ok(replayed)
        }
        Err(error) => {
            log::log!(error.log_level(log::Level::Error), event_id = id, request_id; "replay failed: {}", error.chain());
            Err(match error {
                ServiceError::Unavailable(_) => ApiError::Unavailable,
                ServiceError::Failed(_) => ApiError::EventFailed,
            })
        }
    }
}

/// PostgreSQL's text cannot hold a NUL, so neither can an id.
fn event_id(id: Path<String>) -> Result<String, ApiError> {
    let id = id.into_inner();
    if id.contains('\0') { Err(ApiError::NotFound("event with this id")) } else { Ok(id) }
}
