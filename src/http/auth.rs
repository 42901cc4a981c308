//! Who is an admin.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::header::AUTHORIZATION;
use actix_web::web::Data;
use actix_web::{FromRequest, HttpRequest};

use super::{ApiError, State};

/// Proof that a request is an admin's. An endpoint that takes it answers no one else.
#[derive(Clone, Copy, Debug)]
pub struct Admin;

impl FromRequest for Admin {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(authorize(request))
    }
}

fn authorize(request: &HttpRequest) -> Result<Admin, ApiError> {
    let state = request.app_data::<Data<State>>().ok_or(ApiError::Internal)?;
    let token = state.admin_token.as_ref().ok_or(ApiError::Forbidden)?;
    let given = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes()).unwrap_or_default();
    let scheme = b"bearer ";
    // The scheme's name is matched without regard to case (RFC 9110, section 11.1).
    let is_bearer = given.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    if is_bearer && token.matches(&given[scheme.len()..]) { Ok(Admin) } else { Err(ApiError::Unauthorized) }
}
