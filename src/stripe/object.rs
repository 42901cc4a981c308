//! What is read of the object that an event is about, be it a subscription, a checkout session, an invoice or any
//! other: of every API version, and whatever stands where it should not counts as absent.
//!
//! Sources: <https://docs.stripe.com/api/subscriptions/object>, <https://docs.stripe.com/api/checkout/sessions/object>,
//! <https://docs.stripe.com/api/invoices/object>.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::json::{self, Any};

/// An object of Stripe's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Object {
    #[serde(deserialize_with = "json::id")]
    pub(super) id: Option<String>,
    /// Its type.
    #[serde(rename = "object", deserialize_with = "json::text")]
    pub(super) object_type: Option<String>,
    /// `cus_…`.
    #[serde(deserialize_with = "json::reference")]
    pub(super) customer: Option<String>,
    /// `acct_…` of an account that is the customer (Accounts v2), beside or instead of `customer`.
    #[serde(deserialize_with = "json::reference")]
    pub(super) customer_account: Option<String>,
    /// `sub_…`; on an invoice before 2025-03-31, and on a checkout session.
    #[serde(deserialize_with = "json::reference")]
    pub(super) subscription: Option<String>,
    /// Of an invoice.
    #[serde(deserialize_with = "json::object")]
    pub(super) parent: Parent,
    #[serde(deserialize_with = "json::object")]
    pub(super) metadata: Metadata,
    /// Of a checkout session: an account of ours.
    #[serde(deserialize_with = "json::uuid")]
    pub(super) client_reference_id: Option<Uuid>,
    /// Of a checkout session: `subscription`, `payment` or `setup`.
    #[serde(deserialize_with = "json::text")]
    pub(super) mode: Option<String>,
    #[serde(deserialize_with = "json::text")]
    pub(super) status: Option<String>,
    #[serde(deserialize_with = "json::object")]
    pub(super) items: Items,
    /// Of a subscription in the oldest shape, which has one plan and one quantity and no items.
    pub(super) plan: Option<Any<Price>>,
    #[serde(deserialize_with = "json::integer")]
    pub(super) quantity: Option<i32>,
    /// On the items since 2025-03-31, as the period's end.
    #[serde(deserialize_with = "json::time")]
    pub(super) current_period_start: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "json::time")]
    pub(super) current_period_end: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "json::is_true")]
    pub(super) cancel_at_period_end: bool,
    #[serde(deserialize_with = "json::time")]
    pub(super) cancel_at: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "json::time")]
    pub(super) canceled_at: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "json::time")]
    pub(super) ended_at: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "json::time")]
    pub(super) trial_end: Option<DateTime<Utc>>,
    #[serde(rename = "pause_collection", deserialize_with = "json::is_set")]
    pub(super) has_paused_collection: bool,
}

impl From<&Value> for Object {
    fn from(object: &Value) -> Self {
        // What a tree spells is JSON.
        json::read(&object.to_string()).unwrap_or_default()
    }
}

impl Object {
    /// The object's customer: `cus_…`, else `acct_…`.
    pub(super) fn any_customer(&self) -> Option<&str> {
        self.customer.as_deref().or(self.customer_account.as_deref())
    }
}

/// What an invoice belongs to, since 2025-03-31.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Parent {
    #[serde(deserialize_with = "json::object")]
    pub(super) subscription_details: SubscriptionDetails,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SubscriptionDetails {
    #[serde(deserialize_with = "json::reference")]
    pub(super) subscription: Option<String>,
}

/// What the application notes on an object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    /// An account of ours.
    #[serde(deserialize_with = "json::uuid")]
    pub(super) account_id: Option<Uuid>,
}

/// A subscription's list of items.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Items {
    #[serde(deserialize_with = "json::elements")]
    pub(super) data: Option<Vec<Item>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Item {
    // Boxed, since a small text may have very many items with nothing in them.
    pub(super) price: Option<Box<Any<Price>>>,
    /// Its price, before 2020.
    pub(super) plan: Option<Box<Any<Price>>>,
    #[serde(deserialize_with = "json::integer")]
    pub(super) quantity: Option<i32>,
    #[serde(deserialize_with = "json::time")]
    pub(super) current_period_start: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "json::time")]
    pub(super) current_period_end: Option<DateTime<Utc>>,
}

/// A price, where it is expanded, or a plan.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Price {
    #[serde(deserialize_with = "json::id")]
    pub(super) id: Option<String>,
    #[serde(deserialize_with = "json::text")]
    pub(super) lookup_key: Option<String>,
    #[serde(deserialize_with = "json::object")]
    pub(super) recurring: Recurring,
    /// Of a plan; a price has it in `recurring`.
    #[serde(deserialize_with = "json::text")]
    pub(super) usage_type: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Recurring {
    #[serde(deserialize_with = "json::text")]
    pub(super) usage_type: Option<String>,
}
