//! The webhook: signed bytes in, an honest answer out. 200 is sent only after a commit.

use std::time::Instant;

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use chrono::Utc;
use serde_json::json;

use super::{ApiError, State, body, disconnect, request_id};
use crate::service::{Recorded, ServiceError};
use crate::stripe::Event;
use crate::verify::{SignatureError, verify};

/// `POST /api/v1/webhooks/stripe`.
pub async fn receive(request: HttpRequest, payload: Payload, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let started = Instant::now();
    let header = signature_header(&request)?;
    let body = body::read(&request, payload, state.body_limit, state.body_timeout).await?;
    let verified = verify(header, body, &state.webhook_secrets, state.tolerance_secs, Utc::now())
        .inspect_err(|error| log::warn!(request_id = request_id::of(&request); "delivery refused: {error}"))?;
    let event = Event::parse(&verified)
        .inspect_err(|error| log::warn!(request_id = request_id::of(&request); "delivery refused: {error}"))?;
    let (id, event_type) = (event.id.clone(), event.event_type.clone());
    let result = tokio::select! {
        result = state.service.apply(event) => result,
        // Dropping the other branch rolls back. The next delivery finds everything as if this one had never come.
        () = disconnect::client_gone(&request) => {
            Err(ServiceError::Unavailable(anyhow::anyhow!("the client went away")))
        }
    };
    let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let request_id = request_id::of(&request);
    match result {
        Ok(recorded) => {
            let outcome = outcome(recorded);
            log::info!(event_id = id, event_type, outcome, millis, request_id; "delivery");
            let applied = recorded != Recorded::Duplicate;
            Ok(HttpResponse::Ok().json(json!({"applied": applied, "outcome": outcome})))
        }
        Err(error) => {
            log::error!(event_id = id, event_type, millis, request_id; "delivery failed: {}", error.chain());
            Err(match error {
                ServiceError::Unavailable(_) => ApiError::Unavailable,
                ServiceError::Failed(_) => ApiError::EventFailed,
            })
        }
    }
}

/// The header's value. One that stands there twice is not the one that Stripe sent.
fn signature_header(request: &HttpRequest) -> Result<Option<&[u8]>, SignatureError> {
    let mut values = request.headers().get_all("stripe-signature");
    let value = values.next().map(|value| value.as_bytes());
    if values.next().is_some() { Err(SignatureError::Malformed) } else { Ok(value) }
}

fn outcome(recorded: Recorded) -> &'static str {
    match recorded {
        Recorded::First(outcome) => outcome.as_str(),
        Recorded::Duplicate => "duplicate",
    }
}
