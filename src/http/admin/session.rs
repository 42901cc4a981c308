//! The cookies of the page: of a session, and of a browser that was shown the login form. Both hold random keys; nothing
//! in them comes from the admin token.

use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::COOKIE;
use subtle::ConstantTimeEq;

use crate::service::SessionId;

/// How many cookies of one name are looked at. A browser sends one; two if a parent domain or a path has its own.
const MAX_COOKIES: usize = 4;

/// What a cookie is good for. One kind is never taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Names a session, which the database knows.
    Admin,
    /// Ties a login form to the browser that it was shown to. Nothing is stored.
    Login,
}

impl Purpose {
    fn cookie_name(self) -> &'static str {
        match self {
            Self::Admin => "subledger_session",
            Self::Login => "subledger_login",
        }
    }

    /// How long the cookie is valid.
    pub fn lifetime(self) -> Duration {
        Duration::from_secs(12 * 3_600)
    }

    fn path(self) -> &'static str {
        match self {
            Self::Admin => "/",
            Self::Login => "/admin",
        }
    }
}

/// A session, or a browser that was shown the login form.
#[derive(Clone, Debug)]
pub struct Session {
    purpose: Purpose,
    id: SessionId,
    csrf_token: String,
}

impl Session {
    /// The session with this id.
    pub fn new(purpose: Purpose, id: SessionId) -> Self {
        let csrf_token = hex::encode(id.hmac(format!("{} CSRF token", purpose.cookie_name()).as_bytes()));
        Self { purpose, id, csrf_token }
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The token that each form of this session must contain.
    pub fn csrf_token(&self) -> &str {
        &self.csrf_token
    }

    /// Whether a form contains the token. Takes the same time for every guess of the same length.
    pub fn csrf_matches(&self, given: &[u8]) -> bool {
        self.csrf_token.as_bytes().ct_eq(given).into()
    }

    /// The value of the `Set-Cookie` header that starts it.
    pub fn set_cookie(&self, is_secure: bool) -> String {
        set_cookie(self.purpose, &self.id.to_hex(), self.purpose.lifetime().as_secs(), is_secure)
    }
}

/// The value of the `Set-Cookie` header that makes a browser forget its cookie.
pub fn forget_cookie(purpose: Purpose, is_secure: bool) -> String {
    set_cookie(purpose, "", 0, is_secure)
}

fn set_cookie(purpose: Purpose, value: &str, max_age: u64, is_secure: bool) -> String {
    let (name, path) = (purpose.cookie_name(), purpose.path());
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{name}={value}; Path={path}; Max-Age={max_age}; HttpOnly; SameSite=Strict{secure}")
}

/// The well-formed ids among the first cookies of this purpose in the request.
pub fn cookies(request: &HttpRequest, purpose: Purpose) -> impl Iterator<Item = SessionId> {
    let headers = request.headers().get_all(COOKIE).filter_map(|header| header.to_str().ok());
    headers
        .flat_map(|header| header.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(name, _)| *name == purpose.cookie_name())
        .take(MAX_COOKIES)
        .filter_map(|(_, value)| SessionId::parse(value))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn a_csrf_token_belongs_to_its_session_and_purpose() {
        let [one, other] = [SessionId::random(), SessionId::random()].map(|id| Session::new(Purpose::Admin, id));
        assert!(one.csrf_matches(one.csrf_token().as_bytes()));
        assert!(!one.csrf_matches(other.csrf_token().as_bytes()) && !one.csrf_matches(b""));
        let form = Session::new(Purpose::Login, one.id());
        assert!(!form.csrf_matches(one.csrf_token().as_bytes()));
        assert!(!one.csrf_token().contains(&one.id().to_hex()));
    }

    #[test]
    fn only_a_few_cookies_are_looked_at() {
        let id = SessionId::random();
        let good = format!("subledger_session={}", id.to_hex());
        let found = |before: usize| {
            let header = format!("{}{good}", "subledger_session=wrong; ".repeat(before));
            cookies(&TestRequest::default().insert_header((COOKIE, header)).to_http_request(), Purpose::Admin)
                .collect::<Vec<_>>()
        };
        assert_eq!(found(MAX_COOKIES - 1), [id]);
        assert_eq!(found(MAX_COOKIES), []);
    }
}
