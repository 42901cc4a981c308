//! Authorizes admins: by the admin token, or by the cookie of a session that was started with it.

use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::Method;
use actix_web::http::header::{AUTHORIZATION, ORIGIN};
use actix_web::web::Data;
use actix_web::{FromRequest, HttpRequest};
use url::Url;

use super::admin::session::{self, Purpose, Session};
use super::{ApiError, State, limits};

/// Proof that a request is an admin's. An endpoint that takes it answers no one else.
#[derive(Clone, Copy, Debug)]
pub struct Admin {
    /// Whether a session's cookie authorized the request, which a browser sends along whoever made the request.
    pub by_cookie: bool,
}

impl FromRequest for Admin {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            identify(&request).await.map(|identity| Self { by_cookie: matches!(identity, Identity::Session(_)) })
        })
    }
}

/// The credentials of an admin.
#[derive(Debug)]
pub(super) enum Identity {
    /// The admin token itself.
    Token,
    /// The cookie of a session.
    Session(Session),
}

/// Identifies the admin who sent a request.
///
/// A browser sends a cookie whoever made the request. So a request that changes something must not come from another
/// origin if it is authorized by a cookie.
///
/// # Errors
/// `Forbidden` if no token is configured, `Unauthorized` if neither token nor cookie is right, `ForeignOrigin`, and
/// `Unavailable` if the database cannot be asked for the session.
pub(super) async fn identify(request: &HttpRequest) -> Result<Identity, ApiError> {
    let state = request.app_data::<Data<State>>().ok_or(ApiError::Internal)?;
    let token = state.admin_token.as_ref().ok_or(ApiError::Forbidden)?;
    if let Some(given) = bearer(request) {
        if !token.matches(given) {
            return Err(ApiError::Unauthorized);
        }
        limits::trust(request);
        return Ok(Identity::Token);
    }
    let ids: Vec<_> = session::cookies(request, Purpose::Admin).collect();
    if ids.is_empty() {
        return Err(ApiError::Unauthorized);
    }
    let found = state.service.find_session(token, ids).await.map_err(ApiError::of_request)?;
    let session = found.map(|id| Session::new(Purpose::Admin, id)).ok_or(ApiError::Unauthorized)?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        check_origin(request)?;
    }
    limits::trust(request);
    Ok(Identity::Session(session))
}

/// Refuses a request that a page of another origin made, as far as the browser says.
///
/// # Errors
/// `ForeignOrigin`.
pub(super) fn check_origin(request: &HttpRequest) -> Result<(), ApiError> {
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let is_foreign_site = header("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"));
    let is_foreign_origin = header(ORIGIN.as_str()).is_some_and(|origin| {
        let info = request.connection_info();
        !is_own_origin(origin, info.scheme(), info.host())
    });
    if is_foreign_site || is_foreign_origin { Err(ApiError::ForeignOrigin) } else { Ok(()) }
}

/// Whether an `Origin` names the host and port that the request was sent to. A server behind a proxy that ends TLS may
/// see `http` where the browser sees `https`, so that the scheme alone is no difference; the reverse is one.
fn is_own_origin(origin: &str, scheme: &str, host: &str) -> bool {
    let Ok(origin) = Url::parse(origin) else { return false };
    let Ok(own) = Url::parse(&format!("{}://{host}", origin.scheme())) else { return false };
    let is_downgrade = scheme == "https" && origin.scheme() != "https";
    origin.has_host()
        && !is_downgrade
        && origin.host() == own.host()
        && origin.port_or_known_default() == own.port_or_known_default()
}

fn bearer(request: &HttpRequest) -> Option<&[u8]> {
    let given = request.headers().get(AUTHORIZATION)?.as_bytes();
    let scheme = b"bearer ";
    // The scheme's name is matched without regard to case (RFC 9110, section 11.1).
    let is_bearer = given.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    is_bearer.then(|| &given[scheme.len()..])
}

#[cfg(test)]
mod tests {
    use super::is_own_origin;

    #[test]
    fn another_host_port_or_a_lower_scheme_is_a_foreign_origin() {
        for (origin, scheme, host) in [
            ("http://127.0.0.1:8080", "http", "127.0.0.1:8080"),
            ("https://admin.test", "https", "admin.test"),
            ("https://admin.test", "http", "admin.test"),
            ("https://ADMIN.test", "http", "admin.test:443"),
            ("http://[::1]:8080", "http", "[::1]:8080"),
        ] {
            assert!(is_own_origin(origin, scheme, host), "{origin}");
        }
        for (origin, scheme, host) in [
            ("null", "http", "127.0.0.1:8080"),
            ("", "http", "127.0.0.1:8080"),
            ("http://127.0.0.1:8081", "http", "127.0.0.1:8080"),
            ("http://localhost:8080", "http", "127.0.0.1:8080"),
            ("http://admin.test", "https", "admin.test"),
            ("https://evil.test", "https", "admin.test"),
            ("https://admin.test.evil.test", "https", "admin.test"),
            ("file:///x", "http", "127.0.0.1:8080"),
        ] {
            assert!(!is_own_origin(origin, scheme, host), "{origin}");
        }
    }
}
