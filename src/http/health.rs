//! Whether all is well, for load balancers and for people.

use actix_web::web::Data;
use actix_web::{HttpResponse, Responder};
use serde::Serialize;
use utoipa::ToSchema;

use super::State;
use crate::service::DatabaseState;

/// How the service is. Only with `ok` everywhere can events be applied.
#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
pub struct HealthView {
    /// `ok` or `unavailable`.
    #[schema(pattern = "^(ok|unavailable)$")]
    status: &'static str,
    /// `ok` or `unavailable`.
    #[schema(pattern = "^(ok|unavailable)$")]
    database: &'static str,
    /// `current`, `pending`, or `unknown` while the database does not answer.
    #[schema(pattern = "^(current|pending|unknown)$")]
    migrations: &'static str,
    version: &'static str,
}

/// The process serves.
#[derive(Serialize, ToSchema)]
pub struct Liveness {
    #[schema(pattern = "^ok$")]
    status: &'static str,
    version: &'static str,
}

/// `GET /health`: 503 with the failing part named while events cannot be applied.
#[utoipa::path(
    get, path = "/health", tag = "health", operation_id = "health",
    summary = "Whether events can be applied",
    responses(
        (status = OK, description = "All is well", body = HealthView),
        (status = SERVICE_UNAVAILABLE, description = "The database is away or takes no writes, or a migration is pending", body = HealthView),
    ),
)]
pub async fn ready(state: Data<State>) -> impl Responder {
    let (mut response, status, database, migrations) = match state.service.database_state().await {
        DatabaseState::Ok => (HttpResponse::Ok(), "ok", "ok", "current"),
        DatabaseState::MigrationPending => (HttpResponse::ServiceUnavailable(), "unavailable", "ok", "pending"),
        DatabaseState::Unwritable => (HttpResponse::ServiceUnavailable(), "unavailable", "unavailable", "current"),
        DatabaseState::Away => (HttpResponse::ServiceUnavailable(), "unavailable", "unavailable", "unknown"),
    };
    response.json(HealthView { status, database, migrations, version: env!("CARGO_PKG_VERSION") })
}

/// `GET /health/live`: 200 while the process serves.
#[utoipa::path(
    get, path = "/health/live", tag = "health", operation_id = "live",
    summary = "Whether the process serves",
    responses((status = OK, description = "It does", body = Liveness)),
)]
pub async fn live() -> impl Responder {
    HttpResponse::Ok().json(Liveness { status: "ok", version: env!("CARGO_PKG_VERSION") })
}
