//! Stripe's lists: newest first, a page at a time, each repeated after transient failures.
//!
//! Source: <https://docs.stripe.com/api/pagination>.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;

use super::retry::with_retries;
use super::{ApiError, Client, Scope};
use crate::stripe::json;
use crate::stripe::signature::Verified;

/// The most that Stripe puts on a page.
pub(super) const PAGE_LIMIT: &str = "100";

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

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) data: Vec<Fetched>,
    /// Stripe always says it; some stand-ins do not.
    #[serde(default)]
    has_more: bool,
}

impl Page {
    /// Reads an answer.
    ///
    /// # Errors
    /// [`ApiError::Unreadable`] if it is no list.
    pub(super) fn read(answer: Value) -> Result<Self, ApiError> {
        serde_json::from_value(answer).map_err(|error| ApiError::Unreadable(Arc::new(error)))
    }

    /// The id of the last object of this page, which stands behind the object `after`; and whether a further page follows.
    ///
    /// # Errors
    /// [`ApiError::BrokenList`] if the page announces a further one and has no object that it could follow, or repeats
    /// the object `after`. Whoever took such a list for whole would miss the rest of it.
    pub(super) fn last(&self, after: Option<&str>) -> Result<(Option<String>, bool), ApiError> {
        let last = self.data.last().and_then(Fetched::id).map(str::to_owned);
        let is_repeated = after.is_some() && self.data.iter().any(|object| object.id() == after);
        if is_repeated || (self.has_more && last.is_none()) {
            return Err(ApiError::BrokenList);
        }
        Ok((last, self.has_more))
    }
}

/// The pages of a list, one after the other.
///
/// A page hangs on the id of the last object before it, and not on its second: what is of one second on two pages is
/// neither lost nor listed twice, and what is new meanwhile moves nothing.
#[derive(Debug)]
pub struct Pages<'a> {
    client: &'a Client,
    list: List<'a>,
    scope: Scope,
    after: Option<String>,
    is_at_end: bool,
}

/// An object as Stripe's API gave it to us, over TLS and to our key: its origin is proved.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Fetched(Value);

impl Fetched {
    /// An object that was read alone.
    pub(crate) fn one(object: Value) -> Self {
        Self(object)
    }

    /// The object alone.
    pub(super) fn into_object(self) -> Value {
        self.0
    }

    /// The object.
    pub fn object(&self) -> &Value {
        &self.0
    }

    /// Its id.
    pub fn id(&self) -> Option<&str> {
        self.0.get("id").and_then(Value::as_str).filter(|id| json::is_id(id))
    }

    /// The event with the account of `scope`: events that are read on behalf of an account do not name it themselves.
    #[must_use]
    pub fn read_in(mut self, scope: &Scope) -> Self {
        let Some(event) = self.0.as_object_mut() else { return self };
        let names_account = |name| event.get(name).is_some_and(|value| !value.is_null());
        if names_account("account") || names_account("context") {
            return self;
        }
        match scope {
            Scope::Own => None,
            Scope::Account(account) => event.insert("account".to_owned(), account.as_str().into()),
            Scope::Context(context) => event.insert("context".to_owned(), context.as_str().into()),
        };
        self
    }

    /// The bytes from which an event can be made.
    pub fn verified(&self) -> Verified {
        Verified::from_stripes_api(self.0.to_string())
    }
}

impl Client {
    /// The pages of `list`, as the account of `scope` sees it.
    pub fn pages<'a>(&'a self, list: List<'a>, scope: impl Into<Scope>) -> Pages<'a> {
        Pages { client: self, list, scope: scope.into(), after: None, is_at_end: false }
    }
}

impl Pages<'_> {
    /// The pages behind the object `after`; all pages where there is none.
    #[must_use]
    pub fn starting_after(self, after: Option<String>) -> Self {
        Self { after, ..self }
    }

    /// The id of the last object that was read.
    pub fn position(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// The next page, newest objects first; `None` after the last one.
    ///
    /// # Errors
    /// [`ApiError`], after several attempts if it is transient, and of a broken list.
    pub async fn next(&mut self) -> Result<Option<Vec<Fetched>>, ApiError> {
        if self.is_at_end {
            return Ok(None);
        }
        let (path, query) = self.request();
        let answer = with_retries(|| self.client.get(&self.scope, &path, &query)).await?;
        let page = Page::read(answer)?;
        let (last, has_more) = page.last(self.after.as_deref())?;
        self.is_at_end = !has_more;
        self.after = last;
        Ok(Some(page.data))
    }

    fn request(&self) -> ([&'static str; 2], Vec<(&'static str, String)>) {
        let mut query = vec![("limit", PAGE_LIMIT.to_owned())];
        query.extend(self.after.iter().map(|id| ("starting_after", id.clone())));
        match self.list {
            List::Events { types, since, until } => {
                query.extend(since.map(|since| ("created[gte]", since.timestamp().to_string())));
                query.extend(until.map(|until| ("created[lte]", until.timestamp().to_string())));
                query.extend(types.iter().map(|&name| ("types[]", name.to_owned())));
                (["v1", "events"], query)
            }
            List::Subscriptions => {
                query.push(("status", "all".to_owned()));
                (["v1", "subscriptions"], query)
            }
        }
    }
}
