//! Changes of subscriptions, page by page or as server-sent events.
//!
//! Source: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use actix_web::http::Method;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::{Bytes, Data, Query};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::auth::Admin;
use super::limits::{client_gone, touch};
use super::{ApiError, State, openapi};
use crate::db::changes::Change;
use crate::service::{ChangePage, ChangeReader};

const DEFAULT_LIMIT: u16 = 100;

/// The longest that an answer may be held, in seconds.
const MAX_WAIT_SECS: u64 = 30;

/// A stream on which nothing happens says so after this time, so that nobody between takes it for dead.
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);

/// The pause after an error of the database in a stream.
const ERROR_PAUSE: Duration = Duration::from_secs(2);

/// Where a browser names the last change that it got.
const LAST_EVENT_ID: &str = "last-event-id";

/// The query of a page of changes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Only changes with larger ids: `next` of the page before.
    #[param(nullable = false, value_type = Option<i64>, minimum = 0, default = 0)]
    after: Option<String>,
    /// The most changes to answer.
    #[param(nullable = false, value_type = Option<u16>, minimum = 1, maximum = 1000, default = 100)]
    limit: Option<String>,
    /// Only changes of this account.
    #[param(nullable = false, value_type = Option<Uuid>)]
    account: Option<String>,
    /// Seconds to wait for a change if there is none yet.
    #[param(nullable = false, value_type = Option<u8>, minimum = 0, maximum = 30, default = 0)]
    wait: Option<String>,
}

/// The query of the stream.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// Only changes with larger ids. `Last-Event-ID` goes before it.
    #[param(nullable = false, value_type = Option<i64>, minimum = 0, default = 0)]
    after: Option<String>,
    /// Only changes of this account.
    #[param(nullable = false, value_type = Option<Uuid>)]
    account: Option<String>,
}

/// Some changes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChangeList)]
pub struct Changes {
    /// Oldest first.
    data: Vec<Change>,
    /// The `after` to go on with.
    #[schema(pattern = "^[0-9]+$")]
    next: String,
    /// Whether there are more already.
    has_more: bool,
}

impl From<ChangePage> for Changes {
    fn from(ChangePage { changes, next, has_more }: ChangePage) -> Self {
        Self { data: changes, next: next.to_string(), has_more }
    }
}

/// `GET /api/v1/changes`.
#[utoipa::path(
    get, path = "/api/v1/changes", tag = "changes", operation_id = "changes",
    summary = "Changes of subscriptions, oldest first",
    description = "Only changes that no running transaction can still precede: who goes on from `next` misses none.",
    params(PageQuery),
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "A page of changes", body = Changes),
        openapi::InvalidRequest, openapi::AdminsOnly, openapi::Failures,
    ),
)]
pub async fn list(
    _: Admin,
    request: HttpRequest,
    query: Result<Query<PageQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    let after = id("after", query.after.as_deref())?.unwrap_or(0);
    let limit = number("limit", query.limit.as_deref(), DEFAULT_LIMIT.into(), 1, 1_000)?;
    let wait = number("wait", query.wait.as_deref(), 0, 0, MAX_WAIT_SECS)?;
    let limit = u16::try_from(limit).unwrap_or(DEFAULT_LIMIT);
    let mut reader = state.service.change_reader(after, account(query.account.as_deref())?, limit);
    let deadline = Instant::now() + Duration::from_secs(wait);
    let mut page = reader.read().await.map_err(ApiError::of_request)?;
    while page.changes.is_empty() && !reader.is_closed() {
        tokio::select! {
            () = reader.wait() => {}
            () = tokio::time::sleep_until(deadline) => break,
            () = client_gone(&request) => break,
        }
        page = reader.read().await.map_err(ApiError::of_request)?;
    }
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(Changes::from(page)))
}

/// `GET /api/v1/changes/stream`.
#[utoipa::path(
    get, path = "/api/v1/changes/stream", tag = "changes", operation_id = "changeStream",
    summary = "Changes of subscriptions as server-sent events",
    description = "Each event's `data` is a change, its `id` the change's. It does not end by itself; resume it with \
                   `Last-Event-ID`.",
    params(
        StreamQuery,
        ("Last-Event-ID" = Option<i64>, Header, nullable = false, minimum = 0,
         description = "The last change that was received"),
    ),
    security(("bearer" = []), ("cookie" = [])),
    responses(
        (status = OK, description = "The changes", body = String, content_type = "text/event-stream"),
        openapi::InvalidRequest, openapi::AdminsOnly, openapi::Internal,
    ),
)]
pub async fn stream(
    _: Admin,
    request: HttpRequest,
    query: Result<Query<StreamQuery>, actix_web::Error>,
    state: Data<State>,
) -> Result<HttpResponse, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::InvalidRequest(error.to_string()))?;
    let after = id("after", query.after.as_deref())?;
    let last = request.headers().get(LAST_EVENT_ID).map(|value| value.to_str().unwrap_or("not a number"));
    let after = id("Last-Event-ID", last.filter(|last| !last.is_empty()))?.or(after).unwrap_or(0);
    let account = account(query.account.as_deref())?;
    let mut response = HttpResponse::Ok();
    response
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-store"))
        // nginx would collect the events otherwise.
        .insert_header(("X-Accel-Buffering", "no"));
    if *request.method() == Method::HEAD {
        return Ok(response.finish());
    }
    let reader = state.service.change_reader(after, account, DEFAULT_LIMIT);
    Ok(response.streaming(events(Streaming { reader, request, queued: VecDeque::new(), is_begun: false })))
}

/// A stream of changes under way.
struct Streaming {
    reader: ChangeReader,
    request: HttpRequest,
    queued: VecDeque<Change>,
    is_begun: bool,
}

/// Server-sent events, one for each change. Made as the client takes them, a page in memory at most.
fn events(streaming: Streaming) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(streaming, |mut streaming| async move {
        // A connection whose client takes something is not idle; one whose client takes nothing is closed in time.
        touch(&streaming.request);
        let text = streaming.next().await?;
        Some((Ok(Bytes::from(text)), streaming))
    })
}

impl Streaming {
    /// The next event, or a comment when there is none for a while; `None` when the process stops.
    async fn next(&mut self) -> Option<String> {
        if !std::mem::replace(&mut self.is_begun, true) {
            // The head is sent with the first bytes.
            return Some(": changes follow\n\n".to_owned());
        }
        let deadline = Instant::now() + COMMENT_INTERVAL;
        loop {
            if self.reader.is_closed() {
                return None;
            }
            if let Some(change) = self.queued.pop_front() {
                return Some(event(&change));
            }
            match self.reader.read().await {
                Ok(page) => self.queued.extend(page.changes),
                Err(error) => {
                    log::log!(error.log_level(log::Level::Warn), "a stream of changes waits: {}", error.chain());
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
            if self.queued.is_empty() {
                tokio::select! {
                    () = self.reader.wait() => {}
                    () = tokio::time::sleep_until(deadline) => return Some(": nothing new\n\n".to_owned()),
                }
            }
        }
    }
}

fn event(change: &Change) -> String {
    // JSON of one line.
    let data = serde_json::to_string(change).unwrap_or_default();
    format!("id: {}\ndata: {data}\n\n", change.id)
}

fn id(name: &str, given: Option<&str>) -> Result<Option<i64>, ApiError> {
    let Some(text) = given else { return Ok(None) };
    let id = text.parse().ok().filter(|id: &i64| *id >= 0);
    let id = id.ok_or_else(|| ApiError::InvalidRequest(format!("`{name}` must be the id of a change, or 0")))?;
    Ok(Some(id))
}

fn number(name: &str, given: Option<&str>, default: u64, least: u64, most: u64) -> Result<u64, ApiError> {
    let Some(text) = given else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| ApiError::InvalidRequest(format!("`{name}` must be a whole number from {least} to {most}")))
}

fn account(given: Option<&str>) -> Result<Option<Uuid>, ApiError> {
    let Some(text) = given else { return Ok(None) };
    Uuid::try_parse(text).map(Some).map_err(|_| ApiError::InvalidRequest("`account` is no UUID".to_owned()))
}
