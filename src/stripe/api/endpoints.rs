//! The webhook endpoints of a Stripe account, and the events that Stripe could not deliver to them.
//!
//! Sources: <https://docs.stripe.com/api/webhook_endpoints>, <https://docs.stripe.com/api/v2/core/event_destinations>,
//! <https://docs.stripe.com/api/events/list>.

use std::collections::HashMap;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use reqwest::header::DATE;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::{API_VERSION, ApiError, Client, Fetched};
use crate::secret::Secret;
use crate::stripe::trust::Mode;
use crate::stripe::{json, jsonb};

/// The metadata that marks an endpoint as one that `subledger setup` made.
const MANAGED_BY: (&str, &str) = ("managed_by", "subledger");

/// The metadata that marks an endpoint as one for events of connected accounts: Stripe does not return `connect`.
const FOR_CONNECT: (&str, &str) = ("subledger_connect", "true");

/// The most objects that Stripe returns on one page. An account may have 16 endpoints.
const PAGE_LIMIT: &str = "100";

/// The most pages of undelivered events that are read.
const MAX_UNDELIVERED_PAGES: usize = 5;

/// What an endpoint is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadForm {
    /// Whole events with their object.
    Snapshot,
    /// Notifications that name an object.
    Thin,
}

/// A webhook endpoint, or an event destination that is a webhook endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `we_…` or `ed_…`.
    pub id: String,
    /// Where events are posted.
    pub url: String,
    /// Whether Stripe sends it anything.
    pub is_enabled: bool,
    /// The event types that it is sent; `*` is all of them.
    pub types: Vec<String>,
    /// The version of the events' shape; `None` is the account's default version.
    pub api_version: Option<String>,
    /// Whether it belongs to live mode.
    pub livemode: bool,
    /// When it was made.
    pub created: Option<DateTime<Utc>>,
    /// Whether `subledger setup` made it.
    pub is_managed: bool,
    /// Whether `subledger setup` made it for events of connected accounts.
    pub is_for_connect: bool,
    /// What it is sent.
    pub form: PayloadForm,
}

/// A new endpoint.
#[derive(Clone, Copy, Debug)]
pub struct NewEndpoint<'a> {
    /// Where events are to be posted.
    pub url: &'a str,
    /// The event types.
    pub types: &'a [&'a str],
    /// Whether it is for events of connected accounts.
    pub is_for_connect: bool,
}

/// A call that Stripe refused, in Stripe's words, or that failed otherwise.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// An answer other than success.
    #[error("Stripe's API answered {status} {message}")]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// Stripe's explanation.
        message: String,
    },
    /// No usable answer.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// An answer, and when Stripe gave it.
#[derive(Clone, Debug)]
pub struct Dated<T> {
    /// The answer's body.
    pub body: T,
    /// The answer's `Date`, in whole seconds.
    pub date: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
struct List<T> {
    data: Vec<T>,
    #[serde(default)]
    has_more: bool,
}

#[derive(Deserialize)]
struct WebhookEndpoint {
    id: String,
    url: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    enabled_events: Vec<String>,
    #[serde(default)]
    api_version: Option<String>,
    #[serde(default)]
    livemode: bool,
    #[serde(default)]
    created: Option<i64>,
    #[serde(default)]
    metadata: Option<HashMap<String, String>>,
    /// Only of one that was made by this very call.
    #[serde(default)]
    secret: Option<String>,
}

#[derive(Deserialize)]
struct EventDestination {
    id: String,
    #[serde(default)]
    webhook_endpoint: Option<DestinationUrl>,
    #[serde(default)]
    status: String,
    #[serde(default)]
    enabled_events: Vec<String>,
    #[serde(default)]
    event_payload: String,
    #[serde(default)]
    snapshot_api_version: Option<String>,
    #[serde(default)]
    livemode: bool,
    #[serde(default)]
    created: Option<DateTime<Utc>>,
    #[serde(default)]
    metadata: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct DestinationUrl {
    url: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorDetails,
}

#[derive(Deserialize)]
struct ErrorDetails {
    #[serde(default)]
    message: String,
}

impl From<WebhookEndpoint> for Endpoint {
    fn from(endpoint: WebhookEndpoint) -> Self {
        Self {
            is_enabled: endpoint.status != "disabled",
            created: endpoint.created.and_then(json::timestamp),
            is_managed: has(endpoint.metadata.as_ref(), MANAGED_BY),
            is_for_connect: has(endpoint.metadata.as_ref(), FOR_CONNECT),
            form: PayloadForm::Snapshot,
            id: endpoint.id,
            url: endpoint.url,
            types: endpoint.enabled_events,
            api_version: endpoint.api_version,
            livemode: endpoint.livemode,
        }
    }
}

impl EventDestination {
    /// `None` for a destination that is no webhook endpoint.
    fn endpoint(self) -> Option<Endpoint> {
        Some(Endpoint {
            url: self.webhook_endpoint?.url?,
            is_enabled: self.status != "disabled",
            is_managed: has(self.metadata.as_ref(), MANAGED_BY),
            is_for_connect: has(self.metadata.as_ref(), FOR_CONNECT),
            form: if self.event_payload == "thin" { PayloadForm::Thin } else { PayloadForm::Snapshot },
            id: self.id,
            types: self.enabled_events,
            api_version: self.snapshot_api_version,
            livemode: self.livemode,
            created: self.created,
        })
    }
}

fn has(metadata: Option<&HashMap<String, String>>, (name, value): (&str, &str)) -> bool {
    metadata.and_then(|metadata| metadata.get(name)).is_some_and(|found| found == value)
}

impl Client {
    /// The mode of the key, where its prefix tells.
    pub fn mode(&self) -> Option<Mode> {
        Mode::of_key(self.key.expose())
    }

    /// The account's webhook endpoints. `GET /v1/webhook_endpoints`.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub async fn webhook_endpoints(&self) -> Result<Dated<Vec<Endpoint>>, EndpointError> {
        let query = [("limit", PAGE_LIMIT.to_owned())];
        let answer = self.exchange(Method::GET, &["v1", "webhook_endpoints"], &query, None).await?;
        let list: List<WebhookEndpoint> = read(answer.body)?;
        Ok(Dated { body: list.data.into_iter().map(Endpoint::from).collect(), date: answer.date })
    }

    /// The account's event destinations that are webhook endpoints; none where Stripe does not show them to the key.
    /// `GET /v2/core/event_destinations`.
    ///
    /// # Errors
    /// [`EndpointError`] where Stripe does not answer.
    pub async fn event_destinations(&self) -> Result<Vec<Endpoint>, EndpointError> {
        let query = [("limit", PAGE_LIMIT.to_owned()), ("include[0]", "webhook_endpoint.url".to_owned())];
        let answer = match self.exchange(Method::GET, &["v2", "core", "event_destinations"], &query, None).await {
            Err(EndpointError::Refused { status, .. }) if matches!(status.as_u16(), 400 | 401 | 403 | 404) => {
                return Ok(Vec::new());
            }
            answer => answer?,
        };
        let list: List<EventDestination> = read(answer.body)?;
        Ok(list.data.into_iter().filter_map(EventDestination::endpoint).collect())
    }

    /// Makes an endpoint with [`API_VERSION`]; returns it and its secret, which Stripe's API shows only now.
    /// `POST /v1/webhook_endpoints`.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub async fn create_webhook_endpoint(&self, new: NewEndpoint<'_>) -> Result<(Endpoint, Secret), EndpointError> {
        let mut form = vec![
            ("url", new.url.to_owned()),
            ("api_version", API_VERSION.to_owned()),
            ("description", "Made by `subledger setup`".to_owned()),
            ("metadata[managed_by]", MANAGED_BY.1.to_owned()),
        ];
        if new.is_for_connect {
            form.extend([("connect", "true".to_owned()), ("metadata[subledger_connect]", FOR_CONNECT.1.to_owned())]);
        }
        form.extend(new.types.iter().map(|&name| ("enabled_events[]", name.to_owned())));
        let answer = self.exchange(Method::POST, &["v1", "webhook_endpoints"], &form, None).await?;
        let mut made: WebhookEndpoint = read(answer.body)?;
        let secret = made.secret.take().unwrap_or_default();
        Ok((made.into(), Secret::new(secret)))
    }

    /// Enables an endpoint and sets the types that it is sent. `POST /v1/webhook_endpoints/{id}`.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub async fn update_webhook_endpoint(&self, id: &str, types: &[&str]) -> Result<(), EndpointError> {
        let mut form = vec![("disabled", "false".to_owned())];
        form.extend(types.iter().map(|&name| ("enabled_events[]", name.to_owned())));
        self.exchange(Method::POST, &["v1", "webhook_endpoints", id], &form, None).await?;
        Ok(())
    }

    /// The events of `types` since `since` that some endpoint has not answered with success, newest first; bounded.
    /// `GET /v1/events?delivery_success=false`.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub async fn undelivered_events(
        &self,
        types: &[&str],
        since: DateTime<Utc>,
    ) -> Result<Vec<Fetched>, EndpointError> {
        let mut found: Vec<Fetched> = Vec::new();
        for _ in 0..MAX_UNDELIVERED_PAGES {
            let mut query = vec![
                ("limit", PAGE_LIMIT.to_owned()),
                ("delivery_success", "false".to_owned()),
                ("created[gte]", since.timestamp().to_string()),
            ];
            query.extend(types.iter().map(|&name| ("types[]", name.to_owned())));
            let last = found.last().and_then(Fetched::id).map(str::to_owned);
            query.extend(last.map(|id| ("starting_after", id)));
            let answer = self.exchange(Method::GET, &["v1", "events"], &query, None).await?;
            let page: List<Fetched> = read(answer.body)?;
            let is_last = !page.has_more || page.data.is_empty();
            found.extend(page.data);
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    /// The subscription as it is now, and when Stripe said so; `None` where Stripe answers 404.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub async fn dated_subscription(
        &self,
        id: &str,
        connect_account: Option<&str>,
    ) -> Result<Option<Dated<Fetched>>, EndpointError> {
        match self.exchange(Method::GET, &["v1", "subscriptions", id], &[], connect_account).await {
            Err(EndpointError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            answer => {
                let answer = answer?;
                Ok(Some(Dated { body: read(answer.body)?, date: answer.date }))
            }
        }
    }

    /// One call. Parameters go into the query of a `GET` and into the body of a `POST`.
    async fn exchange(
        &self,
        method: Method,
        path: &[&str],
        params: &[(&str, String)],
        connect_account: Option<&str>,
    ) -> Result<Dated<Value>, EndpointError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let mut request = self.http.request(method.clone(), url).bearer_auth(self.key.expose());
        request = request.header("Stripe-Version", API_VERSION);
        if let Some(account) = connect_account {
            request = request.header("Stripe-Account", account);
        }
        request = if method == Method::GET { request.query(params) } else { request.form(params) };
        let transport = |error: reqwest::Error| ApiError::Transport(Arc::new(error.without_url()));
        let response = request.send().await.map_err(transport)?;
        let (status, date) = (response.status(), date(response.headers()));
        let text = response.text().await.map_err(transport)?;
        if !status.is_success() {
            let message = serde_json::from_str::<ErrorBody>(&text).map(|body| body.error.message);
            return Err(EndpointError::Refused { status, message: message.unwrap_or_default() });
        }
        let body = serde_json::from_str(&jsonb::fit(&text)).map_err(|error| ApiError::Unreadable(Arc::new(error)))?;
        Ok(Dated { body, date })
    }
}

fn date(headers: &reqwest::header::HeaderMap) -> Option<DateTime<Utc>> {
    let text = headers.get(DATE)?.to_str().ok()?;
    DateTime::parse_from_rfc2822(text).ok().map(|date| date.to_utc())
}

fn read<T: DeserializeOwned>(body: Value) -> Result<T, EndpointError> {
    Ok(serde_json::from_value(body).map_err(|error| ApiError::Unreadable(Arc::new(error)))?)
}
