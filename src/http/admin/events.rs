//! The list of events, newest first, with filters by type, status, customer, subscription and account.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::{Data, Query};
use askama::Template;
use chrono::Utc;
use serde::Deserialize;
use uuid::Uuid;

use super::chart::STATUSES;
use super::error::PageError;
use super::format::{EventRow, encode};
use super::page::{Here, Page, Viewer, html};
use crate::db::listing::Filter;
use crate::http::{ApiError, State};
use crate::stripe::NAMED_TYPES;

/// The number of events of a page.
const PAGE_EVENTS: u8 = 50;

/// The query of the list, as the form sends it. An empty field is no filter.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ListQuery {
    r#type: String,
    status: String,
    customer: String,
    subscription: String,
    account: String,
    starting_after: String,
}

#[derive(Template)]
#[template(path = "events.html")]
struct EventsPage {
    page: Page,
    query: ListQuery,
    types: [&'static str; NAMED_TYPES.len()],
    statuses: [&'static str; STATUSES.len()],
    problem: Option<&'static str>,
    rows: Vec<EventRow>,
    is_filtered: bool,
    is_later_page: bool,
    first_path: String,
    older_path: Option<String>,
}

/// `GET /admin/events`.
pub async fn show(
    viewer: Viewer,
    query: Result<Query<ListQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let mut query = query.map(Query::into_inner).unwrap_or_default();
    query.trim();
    let (rows, has_more, problem) = match query.filter() {
        Err(problem) => (Vec::new(), false, Some(problem)),
        Ok(filter) => {
            let after = some(&query.starting_after);
            match state.service.events(filter, after, PAGE_EVENTS).await.map_err(ApiError::of_request)? {
                None => (Vec::new(), false, Some("The event that this page starts after no longer exists.")),
                Some(found) => {
                    let events: Vec<_> = found.events.into_iter().map(|(event, _)| event).collect();
                    (EventRow::all(&events, Utc::now()), found.has_more, None)
                }
            }
        }
    };
    let status = if problem.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
    let older = rows.last().filter(|_| has_more).map(|row| query.path(Some(&row.id)));
    let template = EventsPage {
        page: viewer.page("Events", Here::Events),
        is_filtered: query.fields().iter().any(|(_, value)| !value.is_empty()),
        is_later_page: !query.starting_after.is_empty(),
        first_path: query.path(None),
        older_path: older,
        query,
        types: NAMED_TYPES,
        statuses: STATUSES,
        problem,
        rows,
    };
    Ok(html(status, &template))
}

impl ListQuery {
    fn trim(&mut self) {
        let Self { r#type, status, customer, subscription, account, starting_after } = self;
        for field in [r#type, status, customer, subscription, account, starting_after] {
            // No id and no type contains one, and PostgreSQL's text cannot hold a NUL.
            *field = field.replace(|c: char| c.is_control() || c.is_whitespace(), "");
        }
    }

    fn fields(&self) -> [(&'static str, &str); 5] {
        [
            ("type", &self.r#type),
            ("status", &self.status),
            ("customer", &self.customer),
            ("subscription", &self.subscription),
            ("account", &self.account),
        ]
    }

    fn filter(&self) -> Result<Filter, &'static str> {
        if !self.status.is_empty() && !STATUSES.contains(&self.status.as_str()) {
            return Err("There is no such status.");
        }
        let account = some(&self.account).map(|id| Uuid::try_parse(&id)).transpose();
        Ok(Filter {
            event_type: some(&self.r#type),
            status: some(&self.status),
            customer: some(&self.customer),
            subscription: some(&self.subscription),
            account: account.map_err(|_| "An account's id is a UUID, such as 5f0c5a9e-0d2b-4b7e-9f43-6a1d2c3b4e5f.")?,
        })
    }

    /// The path of this list, starting after an event or at the newest one.
    fn path(&self, after: Option<&str>) -> String {
        let fields = self.fields().into_iter().chain(after.map(|after| ("starting_after", after)));
        let given: Vec<_> = fields
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={}", encode(value)))
            .collect();
        if given.is_empty() { "/admin/events".to_owned() } else { format!("/admin/events?{}", given.join("&")) }
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The list of a customer's events.
pub fn path_of_customer(id: &str) -> String {
    ListQuery { customer: id.to_owned(), ..ListQuery::default() }.path(None)
}

/// The list of a subscription's events.
pub fn path_of_subscription(id: &str) -> String {
    ListQuery { subscription: id.to_owned(), ..ListQuery::default() }.path(None)
}
