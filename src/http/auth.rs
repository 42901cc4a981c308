//! Who is an admin: whoever sends the admin token, or the cookie of a session that was started with it.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::Method;
use actix_web::http::header::AUTHORIZATION;
use actix_web::web::Data;
use actix_web::{FromRequest, HttpRequest};
use chrono::Utc;

use super::admin::session::{self, Purpose, Session};
use super::{ApiError, State};

/// Where a request that changes something names its session's token.
const CSRF_HEADER: &str = "x-csrf-token";

/// Proof that a request is an admin's. An endpoint that takes it answers no one else.
///
/// A browser sends a cookie along whoever made the request. So a request that changes something, and of which the
/// browser says that another site made it, must also name the session's CSRF token, in the header `X-CSRF-Token`, which
/// no foreign page knows. Browsers that do not say so still keep a `SameSite=Strict` cookie from foreign requests.
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
    match identify(request)? {
        Identity::Session(session) if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            let header = |name| request.headers().get(name).map(|value| value.as_bytes());
            let is_foreign = header("sec-fetch-site").is_some_and(|site| !matches!(site, b"same-origin" | b"none"));
            let is_named = header(CSRF_HEADER).map(|given| session.csrf_matches(given));
            if is_named.unwrap_or(!is_foreign) { Ok(Admin) } else { Err(ApiError::CsrfTokenMissing) }
        }
        Identity::Session(_) | Identity::Token => Ok(Admin),
    }
}

/// By what an admin is known.
pub(super) enum Identity {
    /// The admin token itself.
    Token,
    /// The cookie of a session.
    Session(Session),
}

/// Who sent a request. Whether it may change something is not judged here.
///
/// # Errors
/// `Forbidden` where no token is configured, `Unauthorized` where neither token nor cookie is right.
pub(super) fn identify(request: &HttpRequest) -> Result<Identity, ApiError> {
    let state = request.app_data::<Data<State>>().ok_or(ApiError::Internal)?;
    let token = state.admin_token.as_ref().ok_or(ApiError::Forbidden)?;
    if let Some(given) = bearer(request) {
        return if token.matches(given) { Ok(Identity::Token) } else { Err(ApiError::Unauthorized) };
    }
    session::cookies(request, Purpose::Admin)
        .find_map(|value| Session::read(token, Purpose::Admin, value, Utc::now()))
        .map(Identity::Session)
        .ok_or(ApiError::Unauthorized)
}

fn bearer(request: &HttpRequest) -> Option<&[u8]> {
    let given = request.headers().get(AUTHORIZATION)?.as_bytes();
    let scheme = b"bearer ";
    // The scheme's name is matched without regard to case (RFC 9110, section 11.1).
    let is_bearer = given.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    is_bearer.then(|| &given[scheme.len()..])
}
