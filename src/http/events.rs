//! One event: what became of it, and applying it again.

use actix_web::HttpResponse;
use actix_web::web::{Data, Path};
use serde_json::json;

use super::auth::Admin;
use super::{ApiError, State, views};
use crate::service::{Replayed, ServiceError};

/// `GET /events/{id}`.
pub async fn show(_: Admin, id: Path<String>, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let view = state.service.event(id.into_inner()).await.map_err(ApiError::of_request)?;
    let view = view.ok_or(ApiError::NotFound("event with this id"))?;
    Ok(HttpResponse::Ok().json(views::event(&view)))
}

/// `POST /events/{id}/replay`.
pub async fn replay(_: Admin, id: Path<String>, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let id = id.into_inner();
    match state.service.replay(id.clone()).await {
        Ok(Replayed::NotFound) => Err(ApiError::NotFound("event with this id")),
        Ok(Replayed::AlreadyRecorded) => Ok(HttpResponse::Ok().json(json!({"applied": false, "outcome": "duplicate"}))),
        Ok(Replayed::Now(outcome)) => {
            log::info!(event_id = id, outcome; "replay");
            Ok(HttpResponse::Ok().json(json!({"applied": true, "outcome": outcome})))
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
