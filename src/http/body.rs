//! Reading a request's body: bounded in bytes before it is buffered, and in time.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::{Bytes, Payload};

use super::ApiError;

/// The whole body, exactly as it was sent.
///
/// # Errors
/// `PayloadTooLarge`, `RequestTimeout`, or `InvalidRequest` where the body breaks off.
pub async fn read(request: &HttpRequest, payload: Payload, limit: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::PayloadTooLarge(limit));
    }
    match tokio::time::timeout(timeout, payload.to_bytes_limited(limit)).await {
        Err(_) => Err(ApiError::RequestTimeout),
        Ok(Err(_)) => Err(ApiError::PayloadTooLarge(limit)),
        Ok(Ok(Err(error))) => Err(ApiError::InvalidRequest(format!("the body cannot be read: {error}"))),
        Ok(Ok(Ok(body))) => Ok(body),
    }
}
