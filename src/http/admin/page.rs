//! What all pages share: who looks at them, their frame, their headers, their stylesheet, and reading a form.

use std::pin::Pin;
use std::sync::LazyLock;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{self, ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::web::{Payload, Query};
use actix_web::{Error, FromRequest, HttpRequest, HttpResponse, HttpResponseBuilder};
use askama::Template;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::error::PageError;
use super::login::LoginForm;
use super::session::Session;
use crate::http::auth::{Identity, identify};
use crate::http::{ApiError, State, limits};

const STYLE: &str = include_str!("style.css");

/// Tells one stylesheet from the next, so that browsers may keep it.
static STYLE_VERSION: LazyLock<String> = LazyLock::new(|| hex::encode(&Sha256::digest(STYLE)[..6]));

/// The largest form that is taken, in bytes.
const FORM_LIMIT: usize = 8 * 1024;

/// No script, no style and no picture but our own; no frame around us; no form that leads elsewhere.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; \
         base-uri 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Middleware: adds the security headers to every answer, errors too, and gives programs their errors as JSON.
///
/// # Errors
/// Only those of the service that it wraps.
pub async fn protect(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let is_for_people = request.headers().get(header::ACCEPT).is_some_and(accepts_html);
    let mut response = next.call(request).await?.map_into_boxed_body();
    if !is_for_people && let Some(answer) = response.response().error().and_then(answer_for_programs) {
        response = response.into_response(answer);
    }
    let headers: &mut HeaderMap = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

fn accepts_html(accept: &HeaderValue) -> bool {
    accept.as_bytes().windows(b"text/html".len()).any(|part| part.eq_ignore_ascii_case(b"text/html"))
}

fn answer_for_programs(error: &Error) -> Option<HttpResponse> {
    error.as_error::<PageError>().map(PageError::for_programs)
}

/// `GET /admin/style.css`.
pub async fn style() -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/css; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, "public, max-age=31536000, immutable"))
        .body(STYLE)
}

/// Where in the page one is, for the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    Overview,
    Events,
    Accounts,
    Elsewhere,
}

/// The frame around every page.
pub struct Page {
    pub title: String,
    pub here: Here,
    /// The session's token, for forms; `None` where nobody is logged in by cookie.
    pub csrf: Option<String>,
    /// What stands in the search box.
    pub query: String,
    /// Whether the browser is to load the page once more by itself.
    pub reload: bool,
    pub style_version: &'static str,
    pub version: &'static str,
}

impl Page {
    /// A frame for nobody in particular.
    pub fn new(title: impl Into<String>, here: Here) -> Self {
        Self {
            title: title.into(),
            here,
            csrf: None,
            query: String::new(),
            reload: false,
            style_version: &STYLE_VERSION,
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// Proof that a page's request is an admin's.
#[derive(Debug)]
pub struct Viewer {
    /// `None` where the request brought the admin token itself.
    session: Option<Session>,
}

impl Viewer {
    /// The frame of a page for this viewer.
    pub fn page(&self, title: impl Into<String>, here: Here) -> Page {
        let csrf = self.session.as_ref().map(|session| session.csrf_token().to_owned());
        Page { csrf, ..Page::new(title, here) }
    }

    /// The session; `None` if the request brought the admin token itself.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Refuses a form that does not contain the session's CSRF token: another site may have made it.
    ///
    /// # Errors
    /// `StaleForm`.
    pub fn check(&self, csrf: &str) -> Result<(), PageError> {
        // Whoever sends the token itself is no browser that is being abused.
        let is_ours = self.session.as_ref().is_none_or(|session| session.csrf_matches(csrf.as_bytes()));
        if is_ours { Ok(()) } else { Err(PageError::StaleForm) }
    }
}

impl FromRequest for Viewer {
    type Error = PageError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, PageError>>>>;

    fn from_request(request: &HttpRequest, _: &mut dev::Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            match identify(&request).await {
                Ok(Identity::Token) => Ok(Self { session: None }),
                Ok(Identity::Session(session)) => Ok(Self { session: Some(session) }),
                Err(ApiError::Unauthorized) => Err(LoginForm::for_request(&request)),
                Err(error) => Err(error.into()),
            }
        })
    }
}

/// The query after a form was sent: what was done.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Done {
    pub done: String,
}

/// The result of a form that was sent.
pub struct Notice {
    pub tone: &'static str,
    pub text: String,
}

/// An answer of this page.
pub fn html(status: StatusCode, template: &impl Template) -> HttpResponse {
    match template.render() {
        Ok(text) => HttpResponseBuilder::new(status).content_type("text/html; charset=utf-8").body(text),
        Err(error) => {
            log::error!("a page cannot be rendered: {error}");
            HttpResponse::InternalServerError().finish()
        }
    }
}

/// Leads the browser to `path`, which must be one of ours, with GET.
pub fn see_other(path: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((header::LOCATION, path)).finish()
}

/// A form that was sent.
///
/// # Errors
/// Where it is too large, too slow, or not this form.
pub async fn form<T: DeserializeOwned>(request: &HttpRequest, payload: Payload, state: &State) -> Result<T, PageError> {
    let body = limits::read(request, payload, FORM_LIMIT, state.body_timeout).await?;
    // A form is encoded as a query is.
    let text = std::str::from_utf8(&body).map_err(|_| PageError::NotThisForm)?;
    Query::from_query(text).map(Query::into_inner).map_err(|_| PageError::NotThisForm)
}

/// Whether the browser came by https, as far as this server or a proxy before it says.
pub fn is_secure(request: &HttpRequest) -> bool {
    request.connection_info().scheme() == "https"
}
