//! Stripe's lists: newest first, a page at a time, patiently.
//!
//! Source: <https://docs.stripe.com/api/pagination>.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::retry::patiently;
use super::{ApiError, Client};
use crate::stripe::json;
use crate::verify::Verified;

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
    },
    /// `GET /v1/subscriptions`, those that have ended too.
    Subscriptions,
}

/// One page of a list, newest first.
#[derive(Debug, Deserialize)]
pub struct Page {
    /// The objects.
    pub data: Vec<Fetched>,
    /// Whether there are older ones.
    pub has_more: bool,
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
        json::id(Some(&self.0))
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
    /// The page behind the object `starting_after`, or the first one.
    ///
    /// # Errors
    /// [`ApiError`], after several attempts where it may pass.
    pub async fn page(
        &self,
        list: List<'_>,
        starting_after: Option<&str>,
        connect_account: Option<&str>,
    ) -> Result<Page, ApiError> {
        let mut query = vec![("limit", PAGE_LIMIT.to_owned())];
        let path = match list {
            List::Events { types, since } => {
                query.extend(since.map(|since| ("created[gte]", since.timestamp().to_string())));
                query.extend(types.iter().map(|&name| ("types[]", name.to_owned())));
                ["events"]
            }
            List::Subscriptions => {
                query.push(("status", "all".to_owned()));
                ["subscriptions"]
            }
        };
        query.extend(starting_after.map(|id| ("starting_after", id.to_owned())));
        let answer = patiently(|| self.get(&path, &query, connect_account)).await?;
        serde_json::from_value(answer).map_err(ApiError::Unreadable)
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
