//! The search: leads from any id or an account's name to the page it belongs to.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Query};
use askama::Template;
use serde::Deserialize;

use super::error::PageError;
use super::events;
use super::format::{account_path, count, encode, event_path};
use super::page::{Here, Page, Viewer, html, see_other};
use super::paging::path_of_position;
use crate::http::{ApiError, State};
use crate::service::{Found, ITEM_SEARCH_DEPTH, MAX_NAMED_ACCOUNTS, NAME_SEARCH_DEPTH};

/// The longest text that is searched for. Stripe's ids have up to 255 characters.
const MAX_CHARS: usize = 255;

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
    /// The accounts that match; empty if nothing was found.
    accounts: Vec<AccountLink>,
    has_more: bool,
    max_accounts: usize,
    name_search_depth: String,
    item_search_depth: String,
    is_filling: bool,
}

struct AccountLink {
    path: String,
    id: String,
    name: String,
}

/// `GET /admin/search`.
pub async fn show(
    viewer: Viewer,
    query: Result<Query<SearchQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let query = query.map(Query::into_inner).unwrap_or_default();
    let text = normalized(&query.q);
    if text.is_empty() {
        return Ok(see_other("/admin/events"));
    }
    let (title, accounts, has_more, is_filling) =
        match state.service.search(text.clone()).await.map_err(ApiError::of_request)? {
            Found::Event(id) => return Ok(see_other(&event_path(&id))),
            Found::Account(account) => return Ok(see_other(&account_path(account))),
            Found::Subscription { account, id, position } => {
                return Ok(see_other(&format!("{}#{}", path_of_position(account, position), encode(&id))));
            }
            Found::EventsOfCustomer => return Ok(see_other(&events::path_of_customer(&text))),
            Found::EventsOfSubscription => return Ok(see_other(&events::path_of_subscription(&text))),
            Found::Accounts { accounts, has_more } => ("Accounts found", accounts, has_more, false),
            Found::Nothing { is_filling } => ("Nothing found", Vec::new(), false, is_filling),
        };
    let status = if accounts.is_empty() { StatusCode::NOT_FOUND } else { StatusCode::OK };
    let link = |id, name| AccountLink { path: account_path(id), id: id.to_string(), name };
    let page = SearchPage {
        page: Page { query: text, ..viewer.page(title, Here::Elsewhere) },
        accounts: accounts.into_iter().map(|account| link(account.id, account.name)).collect(),
        has_more,
        max_accounts: MAX_NAMED_ACCOUNTS,
        name_search_depth: count(NAME_SEARCH_DEPTH),
        item_search_depth: count(ITEM_SEARCH_DEPTH),
        is_filling,
    };
    Ok(html(status, &page))
}

/// Without white space around it, and without control characters: PostgreSQL's text cannot hold a NUL.
fn normalized(text: &str) -> String {
    let text = text.replace(char::is_control, "");
    text.trim().chars().take(MAX_CHARS).collect()
}
