//! The accounts, newest first, by name or any id.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Query};
use askama::Template;
use chrono::Utc;
use serde::Deserialize;
use uuid::Uuid;

use super::error::PageError;
use super::format::{Badge, When, account_path, encode};
use super::page::{Here, Page, Viewer, html};
use crate::http::{ApiError, State};
use crate::service::AccountView;

/// How many accounts a page has.
const PAGE_ACCOUNTS: u8 = 50;

/// The query of the list. An empty field asks for nothing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ListQuery {
    q: String,
    starting_after: String,
}

#[derive(Template)]
#[template(path = "accounts.html")]
struct AccountsPage {
    page: Page,
    q: String,
    problem: Option<&'static str>,
    rows: Vec<AccountRow>,
    is_later_page: bool,
    first_path: String,
    older_path: Option<String>,
}

/// An account in a list.
pub struct AccountRow {
    pub id: Uuid,
    pub name: String,
    pub path: String,
    pub customers: Vec<String>,
    badge: Badge,
    plan: Option<String>,
    created: When,
}

impl AccountRow {
    pub fn new(view: &AccountView) -> Self {
        let (account, entitlement) = (&view.account, &view.entitlement);
        Self {
            id: account.id,
            name: account_label(account.id, account.name.clone()),
            path: account_path(account.id),
            customers: view.customers.clone(),
            badge: Badge::of_entitlement(entitlement.entitled),
            plan: entitlement.plan.clone(),
            created: When::new(account.created_at, Utc::now()),
        }
    }
}

/// The account's name, or its id if it has none.
pub fn account_label(id: Uuid, name: String) -> String {
    if name.trim().is_empty() { id.to_string() } else { name }
}

/// `GET /admin/accounts`.
pub async fn show(
    viewer: Viewer,
    query: Result<Query<ListQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let ListQuery { q, starting_after } = query.map(Query::into_inner).unwrap_or_default();
    // PostgreSQL's text cannot hold a NUL.
    let q = q.replace(char::is_control, "").trim().to_owned();
    let after = (!starting_after.is_empty()).then(|| Uuid::try_parse(&starting_after)).transpose();
    let found = match after {
        Err(_) => None,
        Ok(after) => {
            let text = (!q.is_empty()).then(|| q.clone());
            state.service.accounts(text, after, PAGE_ACCOUNTS).await.map_err(ApiError::of_request)?
        }
    };
    let problem = found.is_none().then_some("The account that the list was to go on from does not exist.");
    let (accounts, has_more) = found.map_or((Vec::new(), false), |page| (page.accounts, page.has_more));
    let rows: Vec<_> = accounts.iter().map(AccountRow::new).collect();
    let template = AccountsPage {
        page: viewer.page("Accounts", Here::Accounts),
        first_path: path(&q, None),
        older_path: rows.last().filter(|_| has_more).map(|row| path(&q, Some(row.id))),
        is_later_page: !starting_after.is_empty(),
        q,
        problem,
        rows,
    };
    let status = if problem.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    Ok(html(status, &template))
}

/// This list, from behind an account or from its start.
fn path(q: &str, after: Option<Uuid>) -> String {
    let q = (!q.is_empty()).then(|| format!("q={}", encode(q)));
    let after = after.map(|id| format!("starting_after={id}"));
    let query: Vec<_> = [q, after].into_iter().flatten().collect();
    if query.is_empty() { "/admin/accounts".to_owned() } else { format!("/admin/accounts?{}", query.join("&")) }
}
