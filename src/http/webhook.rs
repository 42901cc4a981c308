//! The webhook: signed bytes in, an honest answer out. 200 is sent only after a commit.

use std::time::Instant;

use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use chrono::{DateTime, Utc};

use super::responses::Recorded as RecordedView;
use super::{ApiError, State, limits, openapi, request_id};
use crate::handlers::Outcome;
use crate::metrics::{FailureReason, Metrics};
use crate::service::{Recorded, ServiceError};
use crate::stripe::Event;
use crate::stripe::signature::{SignatureError, verify};

/// `POST /api/v1/webhooks/stripe`.
#[utoipa::path(
    post, path = super::WEBHOOK_PATH, tag = "webhook", operation_id = "receive",
    summary = "Where Stripe delivers events",
    description = "200 is sent only after a commit. Anything else leaves no trace of the event but a failed attempt, \
                   and is worth a retry unless it is a 400.",
    params((
        "Stripe-Signature" = String, Header, max_length = 8192,
        description = "`t=<unix seconds>,v1=<hex>`, any number of `v1`: HMAC-SHA256 over `<t>.<raw body>`, keyed with \
                       the endpoint's whole `whsec_…` secret.",
    )),
    request_body(content = openapi::StripeEvent, description = "The event, exactly the bytes that were signed"),
    responses(
        (status = OK, description = "The event is recorded, now or before", body = RecordedView),
        openapi::InvalidDelivery, openapi::BodyRefused, openapi::EventFailures,
    ),
)]
pub async fn receive(request: HttpRequest, payload: Payload, state: Data<State>) -> Result<HttpResponse, ApiError> {
    let started = Instant::now();
    let request_id = request_id::of(&request);
    let event = read(&request, payload, &state)
        .await
        .inspect_err(|error| log::warn!(request_id; "delivery refused: {error}"))?;
    let mut delivery = Delivery::new(&event, request_id, started, state.service.metrics());
    let result = tokio::select! {
        result = state.service.deliver(event) => result,
        // Dropping the other branch gives the transaction up. The next delivery finds everything as if this one had
        // never come; or is a duplicate, where the commit was under way or others shared it.
        () = limits::client_gone(&request) => return Err(ApiError::Unavailable),
    };
    delivery.end(&result);
    match result {
        Ok(recorded) => Ok(HttpResponse::Ok()
            .json(RecordedView { applied: recorded != Recorded::Duplicate, outcome: recorded.as_str().to_owned() })),
        Err(ServiceError::Unavailable(_)) => Err(ApiError::Unavailable),
        Err(ServiceError::Failed(_)) => Err(ApiError::EventFailed),
    }
}

/// The event of a delivery, once its signature is verified.
async fn read(request: &HttpRequest, payload: Payload, state: &State) -> Result<Event, ApiError> {
    let refused = |error: SignatureError| {
        state.service.metrics().refusal(error);
        ApiError::from(error)
    };
    let header = signature_header(request).map_err(refused)?;
    let body = limits::read(request, payload, state.body_limit, state.body_timeout).await?;
    let length = body.len();
    let verified = verify(header, body, &state.webhook_secrets, state.tolerance_secs, Utc::now()).map_err(refused)?;
    limits::trust(request);
    // Kept until the request is answered.
    let share = state.parsing_budget.share(length).await?;
    request.extensions_mut().insert(share);
    Ok(Event::parse(&verified)?)
}

/// The header's value. One that stands there twice is not the one that Stripe sent.
fn signature_header(request: &HttpRequest) -> Result<Option<&[u8]>, SignatureError> {
    let mut values = request.headers().get_all("stripe-signature");
    let value = values.next().map(|value| value.as_bytes());
    if values.next().is_some() { Err(SignatureError::Malformed) } else { Ok(value) }
}

/// A delivery of a signed event, of which the log and the metrics are told once, whatever ends it: also when the
/// server drops the request because its connection was reset.
struct Delivery<'a> {
    id: String,
    event_type: String,
    customer: Option<String>,
    created: Option<DateTime<Utc>>,
    request_id: String,
    started: Instant,
    arrived: DateTime<Utc>,
    metrics: &'a Metrics,
    has_ended: bool,
}

impl<'a> Delivery<'a> {
    fn new(event: &Event, request_id: String, started: Instant, metrics: &'a Metrics) -> Self {
        let (id, event_type, created) = (event.id.clone(), event.event_type.clone(), event.created);
        let customer = event.customer_id.clone();
        Self { id, event_type, customer, created, request_id, started, arrived: Utc::now(), metrics, has_ended: false }
    }

    fn end(&mut self, result: &Result<Recorded, ServiceError>) {
        self.has_ended = true;
        let (millis, Self { id, event_type, request_id, .. }) = (self.millis(), &*self);
        match result {
            Ok(recorded) => {
                self.metrics.last_event(self.arrived);
                if let (Recorded::First(_), Some(created)) = (recorded, self.created) {
                    self.metrics.lag(created, self.arrived);
                }
                let outcome = recorded.as_str();
                log::info!(event_id = id, event_type, outcome, millis, request_id; "delivery");
                if let (Recorded::First(Outcome::Parked), Some(customer)) = (recorded, &self.customer) {
                    log::info!(
                        event_id = id, customer, request_id;
                        "parked until the customer is linked to an account and, for an invoice, its subscription has a row; \
                         link it with POST /api/v1/accounts or INSERT INTO accounts (name, stripe_customer_id)"
                    );
                }
            }
            Err(error) => {
                let level = error.log_level(log::Level::Error);
                log::log!(level, event_id = id, event_type, millis, request_id; "delivery failed: {}", error.chain());
            }
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        self.metrics.handled(self.started.elapsed());
        if !self.has_ended {
            self.metrics.failure(FailureReason::ClientGone);
            let (millis, Self { id, event_type, request_id, .. }) = (self.millis(), &*self);
            log::error!(event_id = id, event_type, millis, request_id; "delivery failed: the client went away");
        }
    }
}
