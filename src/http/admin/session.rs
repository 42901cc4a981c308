//! Sessions: a cookie that says until when its bearer is an admin, signed with a key that comes from the admin token.
//!
//! Nothing is stored. A session survives a restart, and dies with its time or when the token changes.

use actix_web::HttpRequest;
use actix_web::http::header::COOKIE;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::secret::Secret;

/// What a cookie is good for. One kind is never taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its bearer has shown the admin token.
    Admin,
    /// Its bearer was shown the login form; it ties the form to the browser.
    Login,
}

impl Purpose {
    fn cookie_name(self) -> &'static str {
        match self {
            Self::Admin => "subledger_session",
            Self::Login => "subledger_login",
        }
    }

    /// How long it lasts.
    pub fn lifetime(self) -> TimeDelta {
        TimeDelta::hours(12)
    }

    fn path(self) -> &'static str {
        match self {
            Self::Admin => "/",
            Self::Login => "/admin",
        }
    }
}

/// A session whose cookie is ours and has not expired.
#[derive(Clone)]
pub struct Session {
    purpose: Purpose,
    value: String,
    csrf_token: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session(…)")
    }
}

impl Session {
    /// A new session.
    pub fn start(token: &Secret, purpose: Purpose, now: DateTime<Utc>) -> Self {
        let expires = (now + purpose.lifetime()).timestamp();
        let claim = format!("{expires}.{}", hex::encode(rand::random::<[u8; 16]>()));
        let seal = seal(token, purpose, &claim);
        Self::of(token, purpose, format!("{claim}.{seal}"))
    }

    /// The session of a cookie's value; `None` where it is forged, expired, or of another purpose or token.
    pub fn read(token: &Secret, purpose: Purpose, value: &str, now: DateTime<Utc>) -> Option<Self> {
        let (claim, given) = value.rsplit_once('.')?;
        if !is_same(seal(token, purpose, claim).as_bytes(), given.as_bytes()) {
            return None;
        }
        let expires: i64 = claim.split_once('.')?.0.parse().ok()?;
        (now.timestamp() < expires).then(|| Self::of(token, purpose, value.to_owned()))
    }

    fn of(token: &Secret, purpose: Purpose, value: String) -> Self {
        let csrf_token = hmac_hex(token, "csrf", &value);
        Self { purpose, value, csrf_token }
    }

    /// What a form of this session must bring along.
    pub fn csrf_token(&self) -> &str {
        &self.csrf_token
    }

    /// Whether a form brought it. Takes the same time for every guess of the same length.
    pub fn csrf_matches(&self, given: &[u8]) -> bool {
        is_same(self.csrf_token.as_bytes(), given)
    }

    /// The value of the `Set-Cookie` header that starts it.
    pub fn set_cookie(&self, is_secure: bool) -> String {
        set_cookie(self.purpose, &self.value, self.purpose.lifetime().num_seconds(), is_secure)
    }
}

/// The value of the `Set-Cookie` header that makes a browser forget its cookie.
pub fn forget_cookie(purpose: Purpose, is_secure: bool) -> String {
    set_cookie(purpose, "", 0, is_secure)
}

fn set_cookie(purpose: Purpose, value: &str, max_age: i64, is_secure: bool) -> String {
    let (name, path) = (purpose.cookie_name(), purpose.path());
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{name}={value}; Path={path}; Max-Age={max_age}; HttpOnly; SameSite=Strict{secure}")
}

/// Every cookie of this purpose that the request brings, whether good or not.
pub fn cookies(request: &HttpRequest, purpose: Purpose) -> impl Iterator<Item = &str> {
    let headers = request.headers().get_all(COOKIE).filter_map(|header| header.to_str().ok());
    headers
        .flat_map(|header| header.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(name, _)| *name == purpose.cookie_name())
        .map(|(_, value)| value)
}

fn seal(token: &Secret, purpose: Purpose, claim: &str) -> String {
    hmac_hex(token, purpose.cookie_name(), claim)
}

/// HMAC-SHA256 over `text`, with a key of its own for each `label`, so that no value of one kind is one of another.
fn hmac_hex(token: &Secret, label: &str, text: &str) -> String {
    let key = hmac(token.expose().as_bytes(), format!("subledger {label} key").as_bytes());
    hex::encode(hmac(&key, text.as_bytes()))
}

fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes a key of any length"),
    };
    mac.update(text);
    mac.finalize().into_bytes().into()
}

fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).unwrap()
    }

    #[test]
    fn a_session_lasts_its_time_and_is_good_for_one_purpose_and_one_token() {
        let token = Secret::new("token");
        let session = Session::start(&token, Purpose::Admin, at(1_000));
        let read = |token: &Secret, purpose, second| Session::read(token, purpose, &session.value, at(second));
        let end = 1_000 + 12 * 3_600;
        let same = read(&token, Purpose::Admin, end - 1).unwrap();
        assert_eq!(same.csrf_token(), session.csrf_token());
        assert!(read(&token, Purpose::Admin, end).is_none());
        assert!(read(&token, Purpose::Login, 1_001).is_none());
        assert!(read(&Secret::new("other"), Purpose::Admin, 1_001).is_none());
    }

    #[test]
    fn what_was_not_made_here_is_no_session() {
        let token = Secret::new("token");
        let value = Session::start(&token, Purpose::Admin, at(1_000)).value;
        let later = value.replacen(value.split('.').next().unwrap(), "99999999999", 1);
        let cut = &value[..value.len() - 1];
        for forged in [later.as_str(), cut, "", ".", "..", "99999999999.00.", "9.9.9"] {
            assert!(Session::read(&token, Purpose::Admin, forged, at(1_001)).is_none(), "{forged}");
        }
    }

    #[test]
    fn a_csrf_token_belongs_to_its_session() {
        let token = Secret::new("token");
        let [one, other] = [1_000, 1_000].map(|second| Session::start(&token, Purpose::Admin, at(second)));
        assert!(one.csrf_matches(one.csrf_token().as_bytes()));
        assert!(!one.csrf_matches(other.csrf_token().as_bytes()));
        assert!(!one.csrf_matches(b""));
        assert_ne!(one.csrf_token(), one.value.rsplit_once('.').unwrap().1);
    }
}
