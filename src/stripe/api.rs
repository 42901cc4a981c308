//! Stripe's API, as far as subledger calls it. Never called while a transaction is open.
//!
//! Source: <https://docs.stripe.com/api>.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{StatusCode, Url};
use serde_json::Value;
use thiserror::Error;

use crate::secret::Secret;

/// Where Stripe's API is.
pub const DEFAULT_BASE: &str = "https://api.stripe.com";

/// A call that brought no answer to go by.
#[derive(Debug, Error)]
pub enum ApiError {
    /// No connection, no answer in time, or not JSON.
    #[error("Stripe's API did not answer")]
    Transport(#[source] reqwest::Error),
    /// An answer other than success and 404.
    #[error("Stripe's API answered {0}")]
    Status(StatusCode),
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

    /// The subscription as it is now; `None` where Stripe answers 404. `GET /v1/subscriptions/{id}`.
    ///
    /// # Errors
    /// [`ApiError`] on any other failure.
    pub async fn subscription(&self, id: &str, connect_account: Option<&str>) -> Result<Option<Value>, ApiError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v1", "subscriptions", id]);
        }
        let mut request = self.http.get(url).bearer_auth(self.key.expose());
        if let Some(account) = connect_account {
            request = request.header("Stripe-Account", account);
        }
        let response = request.send().await.map_err(|error| ApiError::Transport(error.without_url()))?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                response.json().await.map(Some).map_err(|error| ApiError::Transport(error.without_url()))
            }
            status => Err(ApiError::Status(status)),
        }
    }
}
