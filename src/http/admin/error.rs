//! How a page fails: for people as HTML that says what to do, for programs in the form of every other error; with the
//! contract's status codes for both.

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER};
use actix_web::{HttpResponse, ResponseError};
use askama::Template;
use thiserror::Error;

use super::login::LoginForm;
use super::page::{Here, Page, html};
use crate::http::ApiError;

/// Why there is no page.
#[derive(Debug, Error)]
pub enum PageError {
    /// 401, or 403 for a form that has gone stale.
    #[error("log in")]
    Login(Box<LoginForm>),
    /// 403.
    #[error("the form is not of this session")]
    StaleForm,
    /// 400.
    #[error("the form cannot be read")]
    NotThisForm,
    /// 405, with the methods that the page takes.
    #[error("the page does not take this method")]
    MethodNotAllowed(&'static str),
    /// Whatever can go wrong elsewhere too.
    #[error(transparent)]
    Api(#[from] ApiError),
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    page: Page,
    heading: &'a str,
    message: &'a str,
    is_unconfigured: bool,
}

impl PageError {
    fn words(&self) -> (&'static str, &'static str) {
        match self {
            Self::Login(_) => ("Log in", "Log in with the admin token."),
            Self::StaleForm => (
                "That form is out of date",
                "It was not sent from a page of your present session, so nothing was changed. Go back, load the page \
                 again, and repeat what you did.",
            ),
            Self::NotThisForm => ("That form cannot be read", "Nothing was changed."),
            Self::Api(ApiError::ForeignOrigin) => (
                "That form came from another origin",
                "Nothing was changed. If this is your own form, a proxy in front of subledger does not pass on the Host \
                 header: set it, or X-Forwarded-Host, to the host that the browser sees.",
            ),
            Self::Api(ApiError::Forbidden) => ("Nobody can log in yet", "No admin token is configured."),
            Self::Api(ApiError::NotFound(_)) => (
                "There is no such page",
                "The address may be mistyped, or what was there has been pruned. The search above takes any id.",
            ),
            Self::MethodNotAllowed(_) => ("That is not how this page is asked for", "Nothing was changed."),
            Self::Api(ApiError::Unavailable) => (
                "The database does not answer",
                "Events are not lost: Stripe gets an error and delivers them again, for up to three days. Load this \
                 page again in a moment.",
            ),
            Self::Api(ApiError::PayloadTooLarge(_)) => ("That form is too large", "Nothing was changed."),
            Self::Api(ApiError::RequestTimeout) => ("That form did not arrive in time", "Nothing was changed."),
            Self::Api(_) => ("Something went wrong", "What happened is in the log."),
        }
    }
}

impl PageError {
    /// The answer to a program, which does not accept HTML.
    pub fn for_programs(&self) -> HttpResponse {
        match self {
            Self::Login(_) => ApiError::Unauthorized.error_response(),
            Self::StaleForm => ApiError::WrongCsrfToken.error_response(),
            Self::NotThisForm => ApiError::InvalidRequest(self.to_string()).error_response(),
            Self::MethodNotAllowed(allowed) => with_allowed(ApiError::MethodNotAllowed.error_response(), allowed),
            Self::Api(error) => error.error_response(),
        }
    }
}

fn with_allowed(mut response: HttpResponse, allowed: &'static str) -> HttpResponse {
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

impl ResponseError for PageError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Login(form) => form.status(),
            Self::StaleForm => StatusCode::FORBIDDEN,
            Self::NotThisForm => StatusCode::BAD_REQUEST,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Api(error) => error.status_code(),
        }
    }

    fn error_response(&self) -> HttpResponse {
        if let Self::Login(form) = self {
            return form.response();
        }
        let (heading, message) = self.words();
        let is_unconfigured = matches!(self, Self::Api(ApiError::Forbidden));
        let page = Page::new(heading, Here::Elsewhere);
        let mut response = html(self.status_code(), &ErrorPage { page, heading, message, is_unconfigured });
        if let Self::Api(error) = self {
            // What the error says to programs (to come again, to close the connection) holds here too.
            for name in [RETRY_AFTER, CONNECTION] {
                if let Some(value) = error.error_response().headers().get(&name) {
                    response.headers_mut().insert(name, HeaderValue::clone(value));
                }
            }
        }
        match self {
            Self::MethodNotAllowed(allowed) => with_allowed(response, allowed),
            _ => response,
        }
    }
}

/// For every path below `/admin` that is none of ours.
pub async fn not_found() -> Result<HttpResponse, PageError> {
    Err(ApiError::NotFound("such page").into())
}

/// For every method that a page does not take; it takes `allowed`.
pub async fn method_not_allowed(allowed: &'static str) -> Result<HttpResponse, PageError> {
    Err(PageError::MethodNotAllowed(allowed))
}
