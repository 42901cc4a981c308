//! Figures for Prometheus.

use actix_web::HttpResponse;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::Data;

use super::auth::Admin;
use super::{ApiError, State, openapi, request_id};

/// Prometheus's own text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /metrics`.
#[utoipa::path(
    get, path = "/metrics", tag = "health", operation_id = "metrics",
    summary = "Figures for Prometheus, in its text format",
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "Every metric", body = String, content_type = "text/plain"),
        openapi::AdminsOnly, openapi::Internal,
    ),
)]
pub async fn show(_: Admin, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let service = &state.service;
    // Without an answer the last figure stays.
    if let Err(error) = service.pending_changes().await {
        let level = error.log_level(log::Level::Warn);
        log::log!(level, request_id = request_id::current(); "cannot count the pending changes: {}", error.chain());
    }
    let text = service.metrics().text(service.pool_figures()).map_err(|error| {
        log::error!(request_id = request_id::current(); "the metrics cannot be written: {error}");
        ApiError::Internal
    })?;
    Ok(HttpResponse::Ok().insert_header((CONTENT_TYPE, TEXT_FORMAT)).body(text))
}
