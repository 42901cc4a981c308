//! The client of Stripe's API, for the reads that subledger makes. Never called while a transaction is open.
//!
//! Source: <https://docs.stripe.com/api>.

mod endpoints;
mod limits;
mod list;
mod object;
mod pauses;
mod retry;
mod scope;
mod shared;
mod whole;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use serde_json::Value;
use thiserror::Error;

pub use endpoints::{Dated, Endpoint, EndpointError, NewEndpoint, PayloadForm};

use limits::Limits;
pub use list::{Fetched, List, Pages};
pub use object::Resource;
use pauses::{Pauses, Target, target};
pub use scope::Scope;
use shared::Waiting;

use super::jsonb;
use crate::secret::Secret;

/// Where Stripe's API is.
pub const DEFAULT_BASE: &str = "https://api.stripe.com";

/// The API version of every call and of the endpoints that `setup` makes, so that a change of the account's default version changes no answer.
///
/// Source: <https://docs.stripe.com/api/versioning>.
pub const API_VERSION: &str = "2026-10-28.endive";

/// Reads a second where nothing else is configured: less than half of what Stripe allows a live account, so that the
/// application's own calls have room beside ours.
///
/// Source: <https://docs.stripe.com/rate-limits>.
pub const DEFAULT_READS_PER_SECOND: u32 = 40;

/// The largest answer that is read, in bytes. A page of 100 subscriptions with 20 items each has about 4 MB.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// A call that returned no usable answer.
#[derive(Clone, Debug, Error)]
pub enum ApiError {
    /// No connection, or no answer in time.
    #[error("Stripe's API did not answer")]
    Transport(#[source] Arc<reqwest::Error>),
    /// An answer that is not JSON, or a list without a list's members.
    #[error("the answer of Stripe's API cannot be read")]
    Unreadable(#[source] Arc<serde_json::Error>),
    /// An answer larger than a client takes.
    #[error("the answer of Stripe's API is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    /// JSON, but not the object that was asked for.
    #[error("Stripe's API answered with {} instead of {expected}", found.as_deref().unwrap_or("something that is no object of Stripe's"))]
    Unexpected {
        /// Type and id of the object that was asked for.
        expected: String,
        /// The type of the object in the answer, and its id if the type is the expected one.
        found: Option<String>,
        /// Whether the answer is an object of Stripe's of another type.
        is_other_type: bool,
    },
    /// A list whose next page is missing or was there before.
    #[error("a list of Stripe's API ended before its last page")]
    BrokenList,
    /// A status other than success and 404.
    #[error("Stripe's API answered {status}")]
    Status {
        /// The answer's status.
        status: StatusCode,
        /// The pause that it asks for.
        retry_after: Option<Duration>,
    },
    /// The limit on calls is reached, and too many calls are waiting already.
    #[error("too many calls to Stripe's API are waiting")]
    Busy,
}

/// What became of a call, for the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// A success, with JSON.
    Ok,
    /// 404.
    NotFound,
    /// 429.
    RateLimited,
    /// Any other status.
    Error,
    /// A success, but not JSON or too large.
    Unreadable,
    /// No connection, or no answer in time.
    Unreachable,
    /// The caller stopped waiting for the answer.
    Abandoned,
    /// Not sent: too many calls were waiting.
    Busy,
}

impl RequestOutcome {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ok,
        Self::NotFound,
        Self::RateLimited,
        Self::Error,
        Self::Unreadable,
        Self::Unreachable,
        Self::Abandoned,
        Self::Busy,
    ];

    /// The metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NotFound => "not_found",
            Self::RateLimited => "rate_limited",
            Self::Error => "error",
            Self::Unreadable => "unreadable",
            Self::Unreachable => "unreachable",
            Self::Abandoned => "abandoned",
            Self::Busy => "busy",
        }
    }

    fn of(result: &Result<Value, ApiError>) -> Self {
        match result {
            Ok(_) => Self::Ok,
            Err(ApiError::Status { status: StatusCode::NOT_FOUND, .. }) => Self::NotFound,
            Err(ApiError::Status { status: StatusCode::TOO_MANY_REQUESTS, .. }) => Self::RateLimited,
            Err(ApiError::Status { .. }) => Self::Error,
            Err(ApiError::Transport(_)) => Self::Unreachable,
            Err(ApiError::Busy) => Self::Busy,
            Err(_) => Self::Unreadable,
        }
    }
}

/// Called with the outcome of each call.
type Observer = Box<dyn Fn(RequestOutcome) + Send + Sync>;

/// A client of Stripe's API. Clones share its limits.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: Arc<Secret>,
    common: Arc<Common>,
}

/// What all clones of a client share.
struct Common {
    limits: Limits,
    pauses: Pauses,
    waiting: Waiting,
    observer: OnceLock<Observer>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that calls `base` with `key`; each call ends after `timeout`, connecting included.
    ///
    /// # Errors
    /// If the machine's root certificates cannot be loaded.
    pub fn new(base: Url, key: Secret, timeout: Duration) -> Result<Self, reqwest::Error> {
        Self::with_rate(base, key, timeout, DEFAULT_READS_PER_SECOND)
    }

    /// [`Client::new`] with a rate of its own.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_rate(base: Url, key: Secret, timeout: Duration, reads_per_second: u32) -> Result<Self, reqwest::Error> {
        // A redirect would take the key's answer from a place that nobody configured.
        let http = reqwest::Client::builder()
            .user_agent(concat!("subledger/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let limits = Limits::per_second(reads_per_second);
        let common =
            Common { limits, pauses: Pauses::default(), waiting: Waiting::default(), observer: OnceLock::new() };
        Ok(Self { http, base, key: Arc::new(key), common: Arc::new(common) })
    }

    /// The host that is called, for the log.
    pub fn host(&self) -> &str {
        self.base.host_str().unwrap_or_default()
    }

    /// Has `observer` called with the outcome of each call from now on. Only the first observer counts.
    pub fn observe(&self, observer: impl Fn(RequestOutcome) + Send + Sync + 'static) {
        self.common.observer.get_or_init(|| Box::new(observer));
    }

    /// One call, within the limits: `GET` of the path's segments.
    async fn get(&self, scope: &Scope, path: &[&str], query: &[(&str, String)]) -> Result<Value, ApiError> {
        let _permit = self.admit(&target(scope, path)).await?;
        self.call(scope, path, query).await
    }

    /// Waits for the target's pause, and then for the limits: a call that pauses takes no other's place.
    async fn admit(&self, target: &Target) -> Result<limits::Permit, ApiError> {
        self.common.pauses.wait(target).await;
        let admitted = self.common.limits.admit().await;
        if admitted.is_err() {
            self.count(RequestOutcome::Busy);
        }
        admitted
    }

    fn count(&self, outcome: RequestOutcome) {
        if let Some(observer) = self.common.observer.get() {
            observer(outcome);
        }
    }

    /// One call that has been admitted.
    async fn call(&self, scope: &Scope, path: &[&str], query: &[(&str, String)]) -> Result<Value, ApiError> {
        let mut counted = Counted { client: self, outcome: RequestOutcome::Abandoned };
        let result = self.send(scope, path, query).await;
        counted.outcome = RequestOutcome::of(&result);
        if let Err(ApiError::Status { status: StatusCode::TOO_MANY_REQUESTS, retry_after }) = &result {
            self.common.pauses.begin(target(scope, path), *retry_after);
        }
        result
    }

    async fn send(&self, scope: &Scope, path: &[&str], query: &[(&str, String)]) -> Result<Value, ApiError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let mut request = self.http.get(url).query(query).bearer_auth(self.key.expose());
        request = request.header("Stripe-Version", API_VERSION);
        if let Some((name, value)) = scope.header() {
            request = request.header(name, value);
        }
        let response = request.send().await.map_err(transport)?;
        let status = response.status();
        if !status.is_success() {
            return Err(ApiError::Status { status, retry_after: retry_after(response.headers()) });
        }
        let body = body(response).await?;
        let text = String::from_utf8_lossy(&body);
        serde_json::from_str(&jsonb::fit(&text)).map_err(|error| ApiError::Unreadable(Arc::new(error)))
    }
}

/// Counts a call when it ends, also if it is dropped before its answer.
struct Counted<'a> {
    client: &'a Client,
    outcome: RequestOutcome,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.client.count(self.outcome);
    }
}

fn transport(error: reqwest::Error) -> ApiError {
    ApiError::Transport(Arc::new(error.without_url()))
}

async fn body(mut response: Response) -> Result<Vec<u8>, ApiError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(transport)? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(ApiError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Stripe gives it in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
