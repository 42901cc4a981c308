//! Single objects of Stripe's API.

use reqwest::StatusCode;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::retry::with_retries;
use super::{ApiError, Client, Scope};

/// The types of objects that can be read alone, in API v1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `GET /v1/subscriptions/{id}`.
    Subscription,
    /// `GET /v1/invoices/{id}`.
    Invoice,
    /// `GET /v1/checkout/sessions/{id}`.
    CheckoutSession,
}

impl Resource {
    /// The type of this name, as in an object's member `object`.
    pub fn named(object_type: &str) -> Option<Self> {
        [Self::Subscription, Self::Invoice, Self::CheckoutSession]
            .into_iter()
            .find(|resource| resource.object_type() == object_type)
    }

    /// Its name.
    pub fn object_type(self) -> &'static str {
        match self {
            Self::Subscription => "subscription",
            Self::Invoice => "invoice",
            Self::CheckoutSession => "checkout.session",
        }
    }

    fn path(self) -> &'static [&'static str] {
        match self {
            Self::Subscription => &["v1", "subscriptions"],
            Self::Invoice => &["v1", "invoices"],
            Self::CheckoutSession => &["v1", "checkout", "sessions"],
        }
    }
}

impl Client {
    /// The subscription as it is now; `None` if Stripe answers 404. `GET /v1/subscriptions/{id}`.
    ///
    /// # Errors
    /// [`ApiError`] on any other failure, and if the answer is not this subscription.
    pub async fn subscription(&self, id: &str, scope: impl Into<Scope>) -> Result<Option<Value>, ApiError> {
        self.resource(Resource::Subscription, id, &scope.into()).await
    }

    /// [`Client::subscription`], repeated after transient failures. Each attempt takes a permit of `at_once`; one that is
    /// yet to be repeated holds none.
    ///
    /// # Errors
    /// [`ApiError`], after several attempts if it is transient.
    pub async fn subscription_patiently(
        &self,
        id: &str,
        scope: impl Into<Scope>,
        at_once: &Semaphore,
    ) -> Result<Option<Value>, ApiError> {
        let scope = &scope.into();
        with_retries(|| async move {
            let _permit = at_once.acquire().await;
            self.resource(Resource::Subscription, id, scope).await
        })
        .await
    }

    /// The object as it is now; `None` if Stripe answers 404.
    ///
    /// # Errors
    /// [`ApiError`] on any other failure, and if the answer is not this object.
    pub async fn resource(&self, resource: Resource, id: &str, scope: &Scope) -> Result<Option<Value>, ApiError> {
        let path = [resource.path(), &[id]].concat();
        let found = self.object(&path, resource.object_type(), id, scope).await?;
        match found {
            Some(object) if resource == Resource::Subscription => {
                self.with_all_items(object, id, scope).await.map(Some)
            }
            found => Ok(found),
        }
    }

    /// An event; `None` if Stripe answers 404. `GET /v1/events/{id}`.
    ///
    /// # Errors
    /// As [`Client::resource`].
    pub async fn event(&self, id: &str, scope: &Scope) -> Result<Option<Value>, ApiError> {
        self.object(&["v1", "events", id], "event", id, scope).await
    }

    /// The event of a thin notification; `None` if Stripe answers 404. `GET /v2/core/events/{id}`.
    ///
    /// # Errors
    /// As [`Client::resource`].
    pub async fn thin_event(&self, id: &str, scope: &Scope) -> Result<Option<Value>, ApiError> {
        self.object(&["v2", "core", "events", id], "v2.core.event", id, scope).await
    }

    async fn object(
        &self,
        path: &[&str],
        object_type: &str,
        id: &str,
        scope: &Scope,
    ) -> Result<Option<Value>, ApiError> {
        let object = match self.read(scope, path).await {
            Err(ApiError::Status { status: StatusCode::NOT_FOUND, .. }) => return Ok(None),
            answer => answer?,
        };
        let member = |name| object.get(name).and_then(Value::as_str);
        match (member("object"), member("id")) {
            (Some(found), Some(found_id)) if found == object_type && found_id == id => Ok(Some((*object).clone())),
            (found, found_id) => {
                let is_other_type = found.is_some_and(|found| found != object_type);
                let found_id = found_id.filter(|_| !is_other_type).unwrap_or_default();
                Err(ApiError::Unexpected {
                    expected: format!("{object_type} {id}"),
                    found: found.map(|found| format!("{found} {found_id}").trim_end().to_owned()),
                    is_other_type,
                })
            }
        }
    }
}
