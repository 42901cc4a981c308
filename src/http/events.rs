//! One event: what became of it, and applying it again.

use actix_web::HttpResponse;
use actix_web::web::{Data, Path, Query};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::auth::Admin;
use super::{ApiError, State, views};
use crate::db::listing::Filter;
use crate::service::{Replayed, ServiceError};

/// The statuses that can be asked for.
const STATUSES: [&str; 5] = ["applied", "stale", "ignored", "parked", "failed"];

/// The query of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    r#type: Option<String>,
    status: Option<String>,
    customer: Option<String>,
    subscription: Option<String>,
    account: Option<String>,
    limit: Option<String>,
    starting_after: Option<String>,
}

/// `GET /events`.
pub async fn list(
    _: Admin,
    query: Result<Query<ListQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    if query.status.as_deref().is_some_and(|status| !STATUSES.contains(&status)) {
        return Err(ApiError::InvalidRequest(format!("`status` must be one of {}", STATUSES.join(", "))));
    }
    let limit = limit(query.limit.as_deref())?;
    let account = match &query.account {
        None => None,
        Some(id) => Some(Uuid::try_parse(id).map_err(|_| ApiError::InvalidRequest("`account` is no UUID".to_owned()))?),
    };
    let filter = Filter {
        event_type: query.r#type,
        status: query.status,
        customer: query.customer,
        subscription: query.subscription,
        account,
    };
    let page = state.service.events(filter, query.starting_after, limit).await.map_err(ApiError::of_request)?;
    let page = page.ok_or_else(|| ApiError::InvalidRequest("`starting_after` is no event's id".to_owned()))?;
    Ok(HttpResponse::Ok().json(views::events(&page)))
}

fn limit(given: Option<&str>) -> Result<u8, ApiError> {
    match given.map(str::parse::<u8>) {
        None => Ok(20),
        Some(Ok(limit @ 1..=100)) => Ok(limit),
        Some(_) => Err(ApiError::InvalidRequest("`limit` must be a whole number from 1 to 100".to_owned())),
    }
}

/// `GET /events/{id}`.
pub async fn show(_: Admin, id: Path<String>, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let view = state.service.event(id.into_inner()).await.map_err(ApiError::of_request)?;
    let view = view.ok_or(ApiError::NotFound("event with this id"))?;
    Ok(HttpResponse::Ok().json(views::event(&view)))
}

/// `POST /events/{id}/replay`.
pub async fn replay(_: Admin, id: Path<String>, state: Data<State>) -> Result<HttpResponse, ApiError> {
    match replay_and_log(&state, id.into_inner()).await? {
        Replayed::NotFound => Err(ApiError::NotFound("event with this id")),
        Replayed::AlreadyRecorded => Ok(HttpResponse::Ok().json(json!({"applied": false, "outcome": "duplicate"}))),
        Replayed::Now(outcome) => Ok(HttpResponse::Ok().json(json!({"applied": true, "outcome": outcome}))),
    }
}

/// Replays an event, and logs what came of it once.
pub(super) async fn replay_and_log(state: &State, id: String) -> Result<Replayed, ApiError> {
    match state.service.replay(id.clone()).await {
        Ok(replayed) => {
            if let Replayed::Now(outcome) = &replayed {
                log::info!(event_id = id, outcome = outcome.as_str(); "replay");
            }
            Ok(replayed)
        }
        Err(error) => {
            log::error!(event_id = id; "replay failed: {}", error.chain());
            Err(match error {
                ServiceError::Unavailable(_) => ApiError::Unavailable,
                ServiceError::Failed(_) => ApiError::EventFailed,
            })
        }
    }
}
