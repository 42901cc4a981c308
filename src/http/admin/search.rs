//! The search: takes any id and leads to where it belongs.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Query};
use askama::Template;
use serde::Deserialize;

use super::error::PageError;
use super::events;
use super::format::{account_path, encode, event_path};
use super::page::{Here, Page, Viewer, html, see_other};
use crate::http::{ApiError, State};
use crate::service::Found;

/// The query of a search.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SearchQuery {
    q: String,
}

#[derive(Template)]
#[template(path = "search.html")]
struct SearchPage {
    page: Page,
}

/// `GET /admin/search`.
pub async fn show(
    viewer: Viewer,
    query: Result<Query<SearchQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let query = query.map(Query::into_inner).unwrap_or_default();
    let id = query.q.replace(|c: char| c.is_control() || c.is_whitespace(), "");
    if id.is_empty() {
        return Ok(see_other("/admin/events"));
    }
    let path = match state.service.search(id.clone()).await.map_err(ApiError::of_request)? {
        Some(Found::Event(id)) => event_path(&id),
        Some(Found::Account(account)) => account_path(account),
        Some(Found::Subscription { account, id }) => format!("{}#{}", account_path(account), encode(&id)),
        Some(Found::EventsOfCustomer) => events::path_of_customer(&id),
        Some(Found::EventsOfSubscription) => events::path_of_subscription(&id),
        None => {
            let page = Page { query: id, ..viewer.page("Nothing found", Here::Elsewhere) };
            return Ok(html(StatusCode::NOT_FOUND, &SearchPage { page }));
        }
    };
    Ok(see_other(&path))
}
