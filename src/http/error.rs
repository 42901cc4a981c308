//! Every error that a client can get, and the one form that all of them have.

use actix_web::http::StatusCode;
use actix_web::http::header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

use super::request_id;
use crate::service::ServiceError;
use crate::stripe::InvalidPayload;
use crate::stripe::signature::SignatureError;

/// Seconds after which a client that was turned away for want of something may come again.
const RETRY_AFTER_SECS: u32 = 5;

/// Every error, on every path.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorView {
    error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
struct ErrorDetail {
    /// What happened, for programs.
    code: &'static str,
    /// What happened, for people. Of a 5xx it says nothing internal.
    message: String,
}

/// An answer that is no success. What it displays is what the client reads.
#[derive(Debug, Error)]
pub enum ApiError {
    /// 400.
    #[error("{0}")]
    InvalidSignature(#[from] SignatureError),
    /// 400.
    #[error("{0}")]
    InvalidPayload(#[from] InvalidPayload),
    /// 400.
    #[error("{0}")]
    InvalidRequest(String),
    /// 401.
    #[error("the admin token is absent or wrong")]
    Unauthorized,
    /// 403.
    #[error("no ADMIN_TOKEN is configured, so nobody is an admin")]
    Forbidden,
    /// 403.
    #[error("a page of another origin may not change anything with this session")]
    ForeignOrigin,
    /// 403.
    #[error("the form does not contain the CSRF token of this session")]
    WrongCsrfToken,
    /// 404.
    #[error("there is no {0}")]
    NotFound(&'static str),
    /// 405.
    #[error("the path does not take this method")]
    MethodNotAllowed,
    /// 408.
    #[error("the body did not arrive in time")]
    RequestTimeout,
    /// 409.
    #[error("{0}")]
    Conflict(&'static str),
    /// 413.
    #[error("the body is larger than {0} bytes")]
    PayloadTooLarge(usize),
    /// 500.
    #[error("the event was not applied; deliver it again")]
    EventFailed,
    /// 500.
    #[error("something went wrong")]
    Internal,
    /// 503.
    #[error("temporarily unavailable; try again")]
    Unavailable,
}

impl ApiError {
    /// The error's code and status.
    fn kind(&self) -> (&'static str, StatusCode) {
        match self {
            Self::InvalidSignature(_) => ("invalid_signature", StatusCode::BAD_REQUEST),
            Self::InvalidPayload(_) => ("invalid_payload", StatusCode::BAD_REQUEST),
            Self::InvalidRequest(_) => ("invalid_request", StatusCode::BAD_REQUEST),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED),
            Self::Forbidden | Self::ForeignOrigin | Self::WrongCsrfToken => ("forbidden", StatusCode::FORBIDDEN),
            Self::NotFound(_) => ("not_found", StatusCode::NOT_FOUND),
            Self::MethodNotAllowed => ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED),
            Self::RequestTimeout => ("request_timeout", StatusCode::REQUEST_TIMEOUT),
            Self::Conflict(_) => ("conflict", StatusCode::CONFLICT),
            Self::PayloadTooLarge(_) => ("payload_too_large", StatusCode::PAYLOAD_TOO_LARGE),
            Self::EventFailed => ("event_failed", StatusCode::INTERNAL_SERVER_ERROR),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// The answer to an admin whose request failed in the service; logs the cause.
    pub fn of_request(error: ServiceError) -> Self {
        let level = error.log_level(log::Level::Error);
        log::log!(level, request_id = request_id::current(); "a request failed: {}", error.chain());
        match error {
            ServiceError::Unavailable(_) => Self::Unavailable,
            ServiceError::Failed(_) => Self::Internal,
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.kind().1
    }

    fn error_response(&self) -> HttpResponse {
        let (code, status) = self.kind();
        let mut response = HttpResponseBuilder::new(status);
        match self {
            Self::Unavailable => response.insert_header((RETRY_AFTER, RETRY_AFTER_SECS)),
            Self::Unauthorized => response.insert_header((WWW_AUTHENTICATE, "Bearer")),
            // What is left of the body is not read.
            Self::PayloadTooLarge(_) | Self::RequestTimeout => response.insert_header((CONNECTION, "close")),
            _ => &mut response,
        };
        response.json(ErrorView { error: ErrorDetail { code, message: self.to_string() } })
    }
}

/// For every path that is none of ours.
pub async fn not_found() -> Result<HttpResponse, ApiError> {
    Err(ApiError::NotFound("such path"))
}
