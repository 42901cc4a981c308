//! Whether all is well, for load balancers and for people.

use actix_web::web::Data;
use actix_web::{HttpResponse, Responder};
use serde_json::json;

use super::State;
use crate::service::DatabaseState;

/// `GET /health`: 503 with the failing part named while events cannot be applied.
pub async fn ready(state: Data<State>) -> impl Responder {
    let (mut response, status, database, migrations) = match state.service.database_state().await {
        DatabaseState::Ok => (HttpResponse::Ok(), "ok", "ok", "current"),
        DatabaseState::MigrationPending => (HttpResponse::ServiceUnavailable(), "unavailable", "ok", "pending"),
        DatabaseState::Away => (HttpResponse::ServiceUnavailable(), "unavailable", "unavailable", "unknown"),
    };
    response.json(json!({
        "status": status,
        "database": database,
        "migrations": migrations,
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// `GET /health/live`: 200 while the process serves.
pub async fn live() -> impl Responder {
    HttpResponse::Ok().json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}
