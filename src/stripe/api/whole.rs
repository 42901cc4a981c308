//! Lists that are read whole: of one subscription's items, or of one customer's entitlements.

use reqwest::StatusCode;
use serde_json::Value;

use super::list::{Fetched, PAGE_LIMIT, Page};
use super::{ApiError, Client, Scope};
use crate::stripe::item;

/// The most pages that are read of a list. No subscription and no customer has that many: a longer list is broken.
const MAX_PAGES: usize = 50;

impl Client {
    /// All items of a subscription; `None` if Stripe answers 404. `GET /v1/subscription_items`.
    ///
    /// # Errors
    /// [`ApiError`] on any other failure.
    pub async fn subscription_items(
        &self,
        subscription_id: &str,
        scope: &Scope,
    ) -> Result<Option<Vec<Value>>, ApiError> {
        self.whole_list(&["v1", "subscription_items"], ("subscription", subscription_id), scope).await
    }

    /// The subscription that was fetched, with the items that it does not show.
    pub(super) async fn with_all_items(&self, object: Value, id: &str, scope: &Scope) -> Result<Value, ApiError> {
        if object["items"]["has_more"] != true {
            return Ok(object);
        }
        let listed = self.subscription_items(id, scope).await?;
        Ok(match listed {
            Some(listed) => item::with_all_items(object, listed),
            None => object,
        })
    }

    /// All active entitlements of a customer; `None` if Stripe answers 404.
    /// `GET /v1/entitlements/active_entitlements`.
    ///
    /// # Errors
    /// [`ApiError`] on any other failure.
    pub async fn active_entitlements(&self, customer_id: &str, scope: &Scope) -> Result<Option<Vec<Value>>, ApiError> {
        self.whole_list(&["v1", "entitlements", "active_entitlements"], ("customer", customer_id), scope).await
    }

    async fn whole_list(
        &self,
        path: &[&str],
        (name, id): (&'static str, &str),
        scope: &Scope,
    ) -> Result<Option<Vec<Value>>, ApiError> {
        let mut listed: Vec<Value> = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut query = vec![(name, id.to_owned()), ("limit", PAGE_LIMIT.to_owned())];
            query.extend(after.iter().map(|after| ("starting_after", after.clone())));
            let answer = match self.get(scope, path, &query).await {
                Err(ApiError::Status { status: StatusCode::NOT_FOUND, .. }) => return Ok(None),
                answer => answer?,
            };
            let page = Page::read(answer)?;
            let (last, has_more) = page.last(after.as_deref())?;
            listed.extend(page.data.into_iter().map(Fetched::into_object));
            if !has_more {
                return Ok(Some(listed));
            }
            after = last;
        }
        Err(ApiError::BrokenList)
    }
}
