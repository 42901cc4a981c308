//! One event: what became of it and why, its payload, its subscription's story; and putting it right.

use std::io;

use actix_web::http::StatusCode;
use actix_web::web::{Data, Path, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use chrono::Utc;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::accounts::{AccountRow, account_label};
use super::error::PageError;
use super::events;
use super::format::{Badge, EventRow, When, account_path, encode, event_path, search_path};
use super::page::{Done, Here, Notice, Page, Viewer, form, html, see_other};
use crate::http::events::replay_and_log;
use crate::http::{ApiError, State};
use crate::service::{AccountChange, EventView, Linked, Replayed, Story};

#[derive(Template)]
#[template(path = "event.html")]
struct EventPage {
    page: Page,
    notice: Option<Notice>,
    event: EventRow,
    status: String,
    api_version: Option<String>,
    connect_account: Option<String>,
    livemode: bool,
    /// Its name, or its id if it has none, and its page.
    account: Option<(String, String)>,
    customer: Option<(String, String)>,
    subscription: Option<(String, String)>,
    json_path: String,
    /// Whether it waits for its customer to be linked, rather than for its subscription.
    can_link: bool,
    attempts: Vec<(When, String)>,
    payload: Option<Shown>,
    story: Vec<EventRow>,
    story_path: Option<String>,
}

/// `GET /admin/events/{id}`.
pub async fn show(
    viewer: Viewer,
    id: Path<String>,
    done: Result<Query<Done>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let view = find(&state, id.into_inner()).await?;
    let linked = match &view.event.customer_id {
        None => None,
        Some(id) => state.service.account_of_customer(id.clone()).await.map_err(ApiError::of_request)?,
    };
    let account = match view.event.account_id.or(linked) {
        None => None,
        Some(id) => {
            let name = state.service.account_name(id).await.map_err(ApiError::of_request)?;
            Some((account_label(id, name.unwrap_or_default()), account_path(id)))
        }
    };
    let story = match &view.event.subscription_id {
        None => None,
        Some(id) => Some(state.service.story_of_subscription(id.clone()).await.map_err(ApiError::of_request)?),
    };
    let done = done.map(Query::into_inner).unwrap_or_default();
    let template = event_page(viewer, &view, account, linked, story.as_ref(), &done);
    Ok(html(StatusCode::OK, &template))
}

async fn find(state: &State, id: String) -> Result<EventView, PageError> {
    // PostgreSQL's text cannot hold a NUL, so nothing is stored under such an id.
    let view = match id.contains('\0') {
        true => None,
        false => state.service.event(id).await.map_err(ApiError::of_request)?,
    };
    Ok(view.ok_or(ApiError::NotFound("event with this id"))?)
}

fn event_page(
    viewer: Viewer,
    view: &EventView,
    account: Option<(String, String)>,
    linked: Option<Uuid>,
    story: Option<&Story>,
    done: &Done,
) -> EventPage {
    let (event, now) = (&view.event, Utc::now());
    let row = |event| EventRow::new(event, now);
    let story_events = story.map(|story| story.events.as_slice()).unwrap_or_default();
    let is_this = |row: EventRow| EventRow { is_here: row.id == event.id, ..row };
    EventPage {
        page: viewer.page(format!("{} {}", event.type_, event.id), Here::Events),
        notice: notice(done, &event.status),
        event: row(event),
        status: event.status.clone(),
        api_version: event.api_version.clone(),
        connect_account: event.connect_account.clone(),
        livemode: event.livemode,
        account,
        customer: event.customer_id.as_ref().map(|id| (id.clone(), search_path(id))),
        subscription: event.subscription_id.as_ref().map(|id| (id.clone(), search_path(id))),
        json_path: format!("/events/{}", encode(&event.id)),
        can_link: event.status == "parked" && event.customer_id.is_some() && linked.is_none(),
        attempts: view.failures.iter().map(|one| (When::new(one.failed_at, now), one.error.clone())).collect(),
        payload: view.payload.as_deref().map(Shown::of),
        story: story_events.iter().map(row).map(is_this).collect(),
        story_path: story
            .filter(|story| story.is_cut)
            .and(event.subscription_id.as_deref())
            .map(events::path_of_subscription),
    }
}

/// The most that a page shows of a payload, in bytes.
const SHOWN_BYTES: usize = 256 << 10;

/// A payload, or its beginning.
struct Shown {
    text: String,
    is_cut: bool,
}

impl Shown {
    /// With lines and indents. As it was received if it is no JSON, or if the indents would make it too large: those
    /// of a deeply nested one take a hundred times its size.
    fn of(payload: &str) -> Self {
        let mut pretty = Bounded(Vec::new());
        let value: Result<Value, _> = serde_json::from_str(payload);
        let text = match value.and_then(|value| serde_json::to_writer_pretty(&mut pretty, &value)) {
            Ok(()) => String::from_utf8_lossy(&pretty.0).into_owned(),
            Err(_) => payload.to_owned(),
        };
        let mut end = text.len().min(SHOWN_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self { is_cut: end < text.len(), text: text[..end].to_owned() }
    }
}

/// Takes no more than the page shows.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > SHOWN_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says what was done, in words that only the event's real status makes: anyone can write a link with a query.
fn notice(done: &Done, status: &str) -> Option<Notice> {
    let (tone, text) = match (done.done.as_str(), status) {
        ("replayed", "parked") => {
            ("parked", "Replayed: it is still parked, since what it waits for is not there.".to_owned())
        }
        ("replayed", status @ ("applied" | "stale" | "ignored")) => {
            ("applied", format!("Replayed: the event is {status}."))
        }
        ("failed", "failed" | "parked") => {
            ("failed", "The replay failed. Why stands under Failed attempts, or in the log.".to_owned())
        }
        ("unchanged", "applied" | "stale" | "ignored") => {
            ("ignored", "Nothing to do: the event had been recorded before.".to_owned())
        }
        ("linked", status) => ("applied", format!("The customer is linked; the event is {status}.")),
        ("no-account", _) => ("failed", "There is no account with that id, so nothing was linked.".to_owned()),
        ("taken", _) => ("failed", "The customer is linked to another account already.".to_owned()),
        _ => return None,
    };
    Some(Notice { tone, text })
}

#[derive(Deserialize)]
struct ReplayFields {
    #[serde(default)]
    csrf: String,
}

/// `POST /admin/events/{id}/replay`.
pub async fn replay(
    viewer: Viewer,
    id: Path<String>,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let ReplayFields { csrf } = form(&request, payload, &state).await?;
    viewer.check(&csrf)?;
    let id = find(&state, id.into_inner()).await?.event.id;
    let done = match replay_and_log(&state, id.clone()).await {
        Ok(Replayed::NotFound) => return Err(ApiError::NotFound("event with this id").into()),
        Ok(Replayed::AlreadyRecorded) => "unchanged",
        Ok(Replayed::Now(_)) => "replayed",
        Err(_) => "failed",
    };
    Ok(see_other(&format!("{}?done={done}", event_path(&id))))
}

/// How many accounts are offered to choose from.
const OFFERED: u8 = 10;

/// The page that asks which account to link a customer to.
#[derive(Template)]
#[template(path = "link.html")]
struct LinkPage {
    page: Page,
    customer: String,
    event_path: String,
    accounts: Vec<AccountRow>,
    has_more: bool,
    text: String,
}

/// The query of that page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Wanted {
    account: String,
}

/// `GET /admin/events/{id}/link`: names the accounts that were asked for, and asks back before linking.
pub async fn choose_account(
    viewer: Viewer,
    id: Path<String>,
    wanted: Result<Query<Wanted>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let event = find(&state, id.into_inner()).await?.event;
    let wanted = wanted.map(Query::into_inner).unwrap_or_default();
    let text = wanted.account.replace(char::is_control, "").trim().to_owned();
    let (Some(customer), false) = (event.customer_id, text.is_empty()) else {
        return Ok(see_other(&event_path(&event.id)));
    };
    let found = state.service.accounts(Some(text.clone()), None, OFFERED).await.map_err(ApiError::of_request)?;
    let (accounts, has_more) = found.map_or((Vec::new(), false), |page| (page.accounts, page.has_more));
    let template = LinkPage {
        page: viewer.page("Link a customer", Here::Events),
        customer,
        event_path: event_path(&event.id),
        accounts: accounts.iter().map(AccountRow::new).collect(),
        has_more,
        text,
    };
    Ok(html(StatusCode::OK, &template))
}

#[derive(Deserialize)]
struct LinkFields {
    #[serde(default)]
    csrf: String,
    account: String,
}

/// `POST /admin/events/{id}/link`: links the event's customer to an account, which applies what was parked for it.
pub async fn link(
    viewer: Viewer,
    id: Path<String>,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let LinkFields { csrf, account } = form(&request, payload, &state).await?;
    viewer.check(&csrf)?;
    let event = find(&state, id.into_inner()).await?.event;
    let account = Uuid::try_parse(account.trim()).ok();
    let linked = match (account, event.customer_id) {
        (Some(id), customer @ Some(_)) => {
            let change = AccountChange { id, name: None, customer };
            state.service.change_account(change).await.map_err(ApiError::of_request)?
        }
        _ => Linked::NotFound,
    };
    let done = match linked {
        Linked::Done(_) => "linked",
        Linked::NotFound | Linked::IdTaken => "no-account",
        Linked::CustomerTaken => "taken",
    };
    Ok(see_other(&format!("{}?done={done}", event_path(&event.id))))
}

/// `GET` of what takes only forms: someone logged in again on the way.
pub async fn back(id: Path<String>) -> HttpResponse {
    see_other(&event_path(&id))
}

impl EventPage {
    fn can_replay(&self) -> bool {
        matches!(self.status.as_str(), "failed" | "parked")
    }

    fn badge(&self) -> &Badge {
        &self.event.badge
    }
}
