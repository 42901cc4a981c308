//! Reading a request's body: bounded in bytes before it is buffered, alone and with all others, and in time.

use std::time::Duration;

use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::{Bytes, BytesMut, Data, Payload};
use actix_web::{HttpMessage, HttpRequest};
use futures_util::StreamExt;

use super::{ApiError, State};

/// The whole body, exactly as it was sent.
///
/// # Errors
/// `PayloadTooLarge`, `RequestTimeout`, `Unavailable` where other bodies have taken the memory, or `InvalidRequest`
/// where the body breaks off.
pub async fn read(request: &HttpRequest, payload: Payload, limit: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::PayloadTooLarge(limit));
    }
    tokio::time::timeout(timeout, buffer(request, payload, limit)).await.unwrap_or(Err(ApiError::RequestTimeout))
}

async fn buffer(request: &HttpRequest, mut payload: Payload, limit: usize) -> Result<Bytes, ApiError> {
    let state = request.app_data::<Data<State>>().ok_or(ApiError::Internal)?;
    let mut share = state.body_budget.share();
    let mut body = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| ApiError::InvalidRequest(format!("the body cannot be read: {error}")))?;
        let length = body.len() + chunk.len();
        if length > limit {
            return Err(ApiError::PayloadTooLarge(limit));
        }
        if !share.cover(length) {
            return Err(ApiError::Unavailable);
        }
        body.extend_from_slice(&chunk);
    }
    // Until the request is answered: what is made of the body takes memory, too.
    request.extensions_mut().insert(share);
    Ok(body.freeze())
}
