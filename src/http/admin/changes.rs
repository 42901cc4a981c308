//! Changes: what has yet to be pushed to the application and why, and the history of an account.

use actix_web::http::StatusCode;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

use super::error::PageError;
use super::format::{When, account_path, event_path};
use super::page::{Here, Page, Viewer, form, html, see_other};
use crate::db::change_push::Queue;
use crate::db::changes::Change;
use crate::http::{ApiError, State};
use crate::service::PendingChanges;

#[derive(Template)]
#[template(path = "changes.html")]
struct ChangesPage {
    page: Page,
    /// `None` without `CHANGES_URL`.
    pending: Option<i64>,
    failing: Vec<FailingQueue>,
}

/// An account whose changes were refused.
struct FailingQueue {
    account: Uuid,
    path: String,
    next_change_id: i64,
    attempts: i32,
    error: String,
    next_attempt: When,
}

/// A change in the history of an account.
pub struct ChangeRow {
    pub at: When,
    pub kinds: String,
    pub subscription: Option<String>,
    pub event: Option<(String, String)>,
    /// Each changed column, before and after.
    pub columns: Vec<(String, String, String)>,
}

impl ChangeRow {
    /// Rows of the history, in the order of `changes`.
    pub fn all(changes: &[Change], now: DateTime<Utc>) -> Vec<Self> {
        changes.iter().map(|change| Self::new(change, now)).collect()
    }

    fn new(change: &Change, now: DateTime<Utc>) -> Self {
        Self {
            at: When::new(change.changed_at, now),
            kinds: change.kinds.join(", ").replace('_', " "),
            subscription: change.stripe_subscription_id.clone(),
            event: change.event_id.as_ref().map(|id| (event_path(id), id.clone())),
            columns: columns(change),
        }
    }
}

/// The columns that changed; none for a first row, where all of them did.
fn columns(change: &Change) -> Vec<(String, String, String)> {
    let (Some(before), Some(after)) = (change.before.as_ref(), change.after.as_object()) else { return Vec::new() };
    let text = |value: Option<&serde_json::Value>| match value {
        None | Some(serde_json::Value::Null) => "–".to_owned(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    after
        .iter()
        .filter(|(name, value)| before.get(name.as_str()) != Some(value))
        .map(|(name, value)| (name.clone(), text(before.get(name.as_str())), text(Some(value))))
        .collect()
}

/// `GET /admin/changes`.
pub async fn show(viewer: Viewer, state: Data<State>) -> Result<HttpResponse, PageError> {
    let pending = state.service.pending_changes().await.map_err(ApiError::of_request)?;
    let now = Utc::now();
    let total = pending.as_ref().map(|pending| pending.total.changes);
    let failing = pending.map(|PendingChanges { failing, .. }| failing).unwrap_or_default();
    let template = ChangesPage {
        page: viewer.page("Changes", Here::Elsewhere),
        pending: total,
        failing: failing.into_iter().map(|queue| failing_queue(queue, now)).collect(),
    };
    Ok(html(StatusCode::OK, &template))
}

fn failing_queue(queue: Queue, now: DateTime<Utc>) -> FailingQueue {
    FailingQueue {
        account: queue.account_id,
        path: account_path(queue.account_id),
        next_change_id: queue.next_change_id,
        attempts: queue.attempts,
        error: queue.last_error.unwrap_or_default(),
        next_attempt: When::new(queue.next_attempt_at, now),
    }
}

#[derive(Deserialize)]
struct RetryFields {
    #[serde(default)]
    csrf: String,
}

/// `POST /admin/changes/retry`: tries everything that is pending again at once.
pub async fn retry(
    viewer: Viewer,
    request: HttpRequest,
    payload: Payload,
    state: Data<State>,
) -> Result<HttpResponse, PageError> {
    let RetryFields { csrf } = form(&request, payload, &state).await?;
    viewer.check(&csrf)?;
    state.service.retry_changes(None).await.map_err(ApiError::of_request)?;
    Ok(see_other("/admin/changes"))
}

/// `GET /admin/changes/retry` leads back to the page that the form stands on.
pub async fn back() -> HttpResponse {
    see_other("/admin/changes")
}

/// What the front page says of the push, if there is something to say.
pub async fn warning(state: &State) -> Option<String> {
    let pending = state.service.pending_changes().await.ok()??.total;
    (pending.failing_accounts > 0).then(|| {
        format!(
            "CHANGES_URL refused changes of {} accounts; {} changes are pending: see /admin/changes.",
            pending.failing_accounts, pending.changes
        )
    })
}
