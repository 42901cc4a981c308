//! Stripe's lists: newest first, a page at a time, patiently.
//!
//! Source: <https://docs.stripe.com/api/pagination>.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::retry::patiently;
use super::{ApiError, Client};
use crate::stripe::json;
use crate::stripe::signature::Verified;

/// The most that Stripe puts on a page.
const PAGE_LIMIT: &str = "100";

/// A list of Stripe's.
#[derive(Clone, Copy, Debug)]
pub enum List<'a> {
    /// `GET /v1/events`, which reach back 30 days.
    Events {
        /// The types to list; Stripe takes at most 20.
        types: &'a [&'a str],
        /// Nothing older than this; its second is included.
        since: Option<DateTime<Utc>>,
        /// Nothing younger than this; its second is included.
        until: Option<DateTime<Utc>>,
    },
    /// `GET /v1/subscriptions`, those that have ended too.
    Subscriptions,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Fetched>,
    has_more: bool,
}

/// The pages of a list, one after the other.
///
/// A page hangs on the id of the last object before it, and not on its second: what is of one second on two pages is
/// neither lost nor listed twice, and what is new meanwhile moves nothing.
#[derive(Debug)]
pub struct Pages<'a> {
    client: &'a Client,
    list: List<'a>,
    connect_account: Option<&'a str>,
    after: Option<String>,
    is_at_end: bool,
}

/// An object as Stripe's API gave it to us, over TLS and to our key: its origin is proved.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Fetched(Value);

impl Fetched {
    /// The object.
    pub fn object(&self) -> &Value {
        &self.0
    }

    /// Its id.
    pub fn id(&self) -> Option<&str> {
        self.0.get("id").and_then(Value::as_str).filter(|id| json::is_id(id))
    }

    /// An event of `connect_account`: a list of a connected account's own events does not say whose they are.
    #[must_use]
    pub fn of_account(mut self, connect_account: Option<&str>) -> Self {
        if let (Some(account), Some(event)) = (connect_account, self.0.as_object_mut()) {
            event.entry("account").or_insert_with(|| account.into());
        }
        self
    }

    /// The bytes from which an event can be made.
    pub fn verified(&self) -> Verified {
        Verified::from_stripes_api(self.0.to_string())
    }
}

impl Client {
    /// The pages of `list`, as `connect_account` sees it or, without one, as the key's own account does.
    pub fn pages<'a>(&'a self, list: List<'a>, connect_account: Option<&'a str>) -> Pages<'a> {
        Pages { client: self, list, connect_account, after: None, is_at_end: false }
    }

    /// [`Client::subscription`], patiently.
    ///
    /// # Errors
    /// [`ApiError`], after several attempts where it may pass.
    pub async fn subscription_patiently(
        &self,
        id: &str,
        connect_account: Option<&str>,
    ) -> Result<Option<Value>, ApiError> {
        patiently(|| self.subscription(id, connect_account)).await
    }
}

impl Pages<'_> {
    /// The next page, newest objects first; `None` after the last one.
    ///
    /// # Errors
    /// [`ApiError`], after several attempts where it may pass.
    pub async fn next(&mut self) -> Result<Option<Vec<Fetched>>, ApiError> {
        if self.is_at_end {
            return Ok(None);
        }
        let (path, query) = self.request();
        let answer = patiently(|| self.client.get(&path, &query, self.connect_account)).await?;
        let page: Page = serde_json::from_value(answer).map_err(ApiError::Unreadable)?;
        let last = page.data.last().and_then(Fetched::id).map(str::to_owned);
        // A list that does not come forward has no end either.
        self.is_at_end = !page.has_more || last.is_none() || last == self.after;
        self.after = last;
        Ok(Some(page.data))
    }

    fn request(&self) -> ([&'static str; 1], Vec<(&'static str, String)>) {
        let mut query = vec![("limit", PAGE_LIMIT.to_owned())];
        query.extend(self.after.iter().map(|id| ("starting_after", id.clone())));
        match self.list {
            List::Events { types, since, until } => {
                query.extend(since.map(|since| ("created[gte]", since.timestamp().to_string())));
                query.extend(until.map(|until| ("created[lte]", until.timestamp().to_string())));
                query.extend(types.iter().map(|&name| ("types[]", name.to_owned())));
                (["events"], query)
            }
            List::Subscriptions => {
                query.push(("status", "all".to_owned()));
                (["subscriptions"], query)
            }
        }
    }
}
