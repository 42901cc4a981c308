//! Reads a list of Stripe's ahead of its consumer, so that a job need not wait for each page.

use chrono::{DateTime, Utc};
use futures_util::{Stream, stream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::stripe::api::{ApiError, Client, Fetched, List, Scope};

/// How many pages wait for the consumer, beside the one that is being read.
const WAITING: usize = 1;

/// A list, and on whose behalf it is read.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The types of events; `None` for the list of subscriptions.
    pub types: Option<Vec<&'static str>>,
    /// No event older than this; its second is included.
    pub since: Option<DateTime<Utc>>,
    /// No event younger than this; its second is included.
    pub until: Option<DateTime<Utc>>,
    /// The account that is read.
    pub scope: Scope,
}

/// A page, newest objects first.
#[derive(Debug)]
pub struct Page {
    /// The id of the object before it: the page can be read again from here. `None` for the first page.
    pub after: Option<String>,
    /// The objects.
    pub objects: Vec<Fetched>,
}

impl Listing {
    /// All subscriptions.
    pub fn of_subscriptions(scope: impl Into<Scope>) -> Self {
        Self { types: None, since: None, until: None, scope: scope.into() }
    }

    fn list(&self) -> List<'_> {
        match &self.types {
            Some(types) => List::Events { types, since: self.since, until: self.until },
            None => List::Subscriptions,
        }
    }

    /// One page, the one behind the object `after`.
    ///
    /// # Errors
    /// As [`crate::stripe::api::Pages::next`].
    pub async fn page(&self, stripe: &Client, after: Option<String>) -> Result<Option<Vec<Fetched>>, ApiError> {
        stripe.pages(self.list(), self.scope.clone()).starting_after(after).next().await
    }

    /// All pages, read ahead by a task that ends with the stream.
    pub fn pages(self, stripe: &Client) -> impl Stream<Item = Result<Page, ApiError>> + use<> {
        let (stripe, (sender, receiver)) = (stripe.clone(), mpsc::channel(WAITING));
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            let mut pages = stripe.pages(self.list(), self.scope.clone());
            loop {
                let after = pages.position().map(str::to_owned);
                let page = match pages.next().await {
                    Ok(Some(objects)) => Ok(Page { after, objects }),
                    Ok(None) => return,
                    Err(error) => Err(error),
                };
                let is_last = page.is_err();
                if sender.send(page).await.is_err() || is_last {
                    return;
                }
            }
        });
        stream::unfold((receiver, reader), async |(mut receiver, reader)| {
            let page = receiver.recv().await?;
            Some((page, (receiver, reader)))
        })
    }
}
