//! Logging in with the admin token, and out.

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, SET_COOKIE, WWW_AUTHENTICATE};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use serde::Deserialize;

use super::error::PageError;
use super::page::{Here, Page, Viewer, form, html, is_secure, see_other};
use super::session::{Purpose, Session, cookies, forget_cookie};
use crate::http::auth::check_origin;
use crate::http::{ApiError, State};
use crate::service::SessionId;

/// The page that asks for the admin token.
#[derive(Debug)]
pub struct LoginForm {
    /// Ties the form to the browser that it was shown to.
    session: Session,
    is_secure: bool,
    /// Where to go then.
    next: String,
    status: StatusCode,
    message: Option<&'static str>,
    /// The browser came by a link on another site, and such a request brings no cookie of SameSite=Strict. Loaded once
    /// more, by this page, it does: who is logged in sees what the link led to.
    reload: bool,
}

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage<'a> {
    page: Page,
    csrf: &'a str,
    next: &'a str,
    message: Option<&'static str>,
}

impl LoginForm {
    /// For a request that is not an admin's; leads back to it.
    pub fn for_request(request: &HttpRequest) -> PageError {
        let next = request.uri().path_and_query().map_or("/admin", |path| path.as_str());
        let is_cross_site = request.headers().get("sec-fetch-site").is_some_and(|site| site == "cross-site");
        let form = Self::new(request, next, StatusCode::UNAUTHORIZED, None);
        form.map_or_else(PageError::from, |form| PageError::Login(Box::new(Self { reload: is_cross_site, ..form })))
    }

    fn again(request: &HttpRequest, next: &str, status: StatusCode, message: &'static str) -> PageError {
        let form = Self::new(request, next, status, Some(message));
        form.map_or_else(PageError::from, |form| PageError::Login(Box::new(form)))
    }

    fn new(
        request: &HttpRequest,
        next: &str,
        status: StatusCode,
        message: Option<&'static str>,
    ) -> Result<Self, ApiError> {
        let state = request.app_data::<Data<State>>().ok_or(ApiError::Internal)?;
        if state.admin_token.is_none() {
            return Err(ApiError::Forbidden);
        }
        // A browser keeps its key, so that the forms in all its tabs stay valid.
        let id = cookies(request, Purpose::Login).next().unwrap_or_else(SessionId::random);
        Ok(Self {
            session: Session::new(Purpose::Login, id),
            is_secure: is_secure(request),
            next: own_path(next).to_owned(),
            status,
            message,
            reload: false,
        })
    }

    /// 401, or 403 where the form had gone stale.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The page.
    pub fn response(&self) -> HttpResponse {
        let page = Page { reload: self.reload, ..Page::new("Log in", Here::Elsewhere) };
        let csrf = self.session.csrf_token();
        let mut response = html(self.status, &LoginPage { page, csrf, next: &self.next, message: self.message });
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Ok(cookie) = self.session.set_cookie(self.is_secure).parse() {
            headers.append(SET_COOKIE, cookie);
        }
        response
    }
}

#[derive(Deserialize)]
struct LoginFields {
    token: String,
    csrf: String,
    #[serde(default)]
    next: String,
}

/// `POST /admin/login`.
pub async fn log_in(request: HttpRequest, payload: Payload, state: Data<State>) -> Result<HttpResponse, PageError> {
    let token = state.admin_token.as_ref().ok_or(ApiError::Forbidden)?;
    check_origin(&request)?;
    let LoginFields { token: given, csrf, next } = form(&request, payload, &state).await?;
    let is_ours =
        cookies(&request, Purpose::Login).any(|id| Session::new(Purpose::Login, id).csrf_matches(csrf.as_bytes()));
    if !is_ours {
        let message = "This form had gone stale, or your browser keeps no cookies. Enter the token once more.";
        return Err(LoginForm::again(&request, &next, StatusCode::FORBIDDEN, message));
    }
    // Terminals and mail add a space or a line's end to what is copied.
    if !token.matches(given.trim().as_bytes()) {
        log::warn!("a login to the page was refused");
        return Err(LoginForm::again(&request, &next, StatusCode::UNAUTHORIZED, "That is not the admin token."));
    }
    let is_secure = is_secure(&request);
    let id = state.service.start_session(token, Purpose::Admin.lifetime()).await.map_err(ApiError::of_request)?;
    let session = Session::new(Purpose::Admin, id);
    let mut response = see_other(own_path(&next));
    for cookie in [session.set_cookie(is_secure), forget_cookie(Purpose::Login, is_secure)] {
        let cookie = cookie.parse().map_err(|_| ApiError::Internal)?;
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    Ok(response)
}

#[derive(Deserialize)]
struct LogoutFields {
    #[serde(default)]
    csrf: String,
}

/// `POST /admin/logout`.
pub async fn log_out(
    viewer: Viewer,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let LogoutFields { csrf } = form(&request, payload, &state).await?;
    viewer.check(&csrf)?;
    let token = state.admin_token.as_ref().ok_or(ApiError::Forbidden)?;
    if let Some(session) = viewer.session() {
        state.service.end_session(token, session.id()).await.map_err(ApiError::of_request)?;
    }
    let mut response = see_other("/admin");
    let cookie = forget_cookie(Purpose::Admin, is_secure(&request)).parse().map_err(|_| ApiError::Internal)?;
    response.headers_mut().append(SET_COOKIE, cookie);
    Ok(response)
}

/// `GET` of what takes only forms: someone loaded the answer again.
pub async fn back() -> HttpResponse {
    see_other("/admin")
}

/// `next` where it is a path of this page's, else its front.
fn own_path(next: &str) -> &str {
    let is_own = next.strip_prefix("/admin").is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']));
    if is_own && next.bytes().all(|byte| byte.is_ascii_graphic()) { next } else { "/admin" }
}

#[cfg(test)]
mod tests {
    use super::own_path;

    #[test]
    fn a_login_leads_nowhere_else() {
        for own in ["/admin", "/admin/events?type=a%20b", "/admin?x"] {
            assert_eq!(own_path(own), own);
        }
        for foreign in
            ["", "/", "//evil.test", "https://evil.test/admin", "/admin.evil.test", "/admin/\r\nX: y", "/administrator"]
        {
            assert_eq!(own_path(foreign), "/admin", "{foreign}");
        }
    }
}
