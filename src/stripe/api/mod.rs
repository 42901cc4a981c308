//! Stripe's API, as far as subledger calls it. Never called while a transaction is open.
//!
//! Source: <https://docs.stripe.com/api>.

mod endpoints;
mod list;
mod retry;
mod whole;

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use serde_json::Value;
use thiserror::Error;

pub use endpoints::{Dated, Endpoint, EndpointError, NewEndpoint, PayloadForm};
pub use list::{Fetched, List, Pages};

use super::jsonb;
use crate::secret::Secret;

/// Where Stripe's API is.
pub const DEFAULT_BASE: &str = "https://api.stripe.com";

/// The API version of every call, and of the endpoints that `setup` makes.
pub const API_VERSION: &str = "2026-10-28.endive";

/// A call that brought no answer to go by.
#[derive(Debug, Error)]
pub enum ApiError {
    /// No connection, or no answer in time.
    #[error("Stripe's API did not answer")]
    Transport(#[source] reqwest::Error),
    /// An answer that is not what was asked for.
    #[error("Stripe's API answered what cannot be read")]
    Unreadable(#[source] serde_json::Error),
    /// An answer other than success and 404.
    #[error("Stripe's API answered {status}")]
    Status {
        /// The answer's status.
        status: StatusCode,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
}

/// A client of Stripe's API.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: Arc<Secret>,
}

impl Client {
    /// A client that calls `base` with `key`; each call ends after `timeout`, connecting included.
    ///
    /// # Errors
    /// Where the machine's root certificates cannot be loaded.
    pub fn new(base: Url, key: Secret, timeout: Duration) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("subledger/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { http, base, key: Arc::new(key) })
    }

    /// The host that is called, for the log.
    pub fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    /// The subscription as it is now, with all its items; `None` where Stripe answers 404. `GET /v1/subscriptions/{id}`.
    ///
    /// # Errors
    /// [`ApiError`] on any other failure.
    pub async fn subscription(&self, id: &str, connect_account: Option<&str>) -> Result<Option<Value>, ApiError> {
        match self.get(&["subscriptions", id], &[], connect_account).await {
            Ok(object) => self.with_all_items(object, id, connect_account).await.map(Some),
            Err(ApiError::Status { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One call: `GET /v1/…`.
    async fn get(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        connect_account: Option<&str>,
    ) -> Result<Value, ApiError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        let mut request = self.http.get(url).query(query).bearer_auth(self.key.expose());
        if let Some(account) = connect_account {
            request = request.header("Stripe-Account", account);
        }
        let transport = |error: reqwest::Error| ApiError::Transport(error.without_url());
        let response = request.send().await.map_err(transport)?;
        let status = response.status();
        if !status.is_success() {
            return Err(ApiError::Status { status, retry_after: retry_after(response.headers()) });
        }
        let text = response.text().await.map_err(transport)?;
        serde_json::from_str(&jsonb::fit(&text)).map_err(ApiError::Unreadable)
    }
}

/// Stripe gives it in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
