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
    #[serde(deserialize_with = "json::metadata")]
    pub(super) metadata: Metadata,
    /// When Stripe made the object.
    #[serde(deserialize_with = "json::time")]
    pub(super) created: Option<DateTime<Utc>>,
    /// `created` of an invoice before 2019-03-14.
    #[serde(deserialize_with = "json::time")]
    pub(super) date: Option<DateTime<Utc>>,
    /// Of a subscription: why it was canceled.
    #[serde(deserialize_with = "json::object")]
    pub(super) cancellation_details: CancellationDetails,
    /// Of an invoice: the page where it can be paid.
    #[serde(deserialize_with = "json::text")]
    pub(super) hosted_invoice_url: Option<String>,
    /// Of an invoice: when Stripe tries again.
    #[serde(deserialize_with = "json::time")]
    pub(super) next_payment_attempt: Option<DateTime<Utc>>,
    /// Of an active entitlement summary.
    #[serde(deserialize_with = "json::object")]
    pub(super) entitlements: Entitlements,
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
    /// Whether a subscription shows only some of its items.
    pub fn has_more_items(&self) -> bool {
        self.items.has_more
    }

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

/// The application's notes on an object.
#[derive(Clone, Debug, Default)]
pub(super) struct Metadata {
    /// An account of ours.
    pub(super) account_id: Option<Uuid>,
    /// All of it, as JSON; absent if it is no object or an empty one.
    pub(super) text: Option<String>,
}

/// Source: <https://docs.stripe.com/api/subscriptions/object#subscription_object-cancellation_details>.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CancellationDetails {
    #[serde(deserialize_with = "json::text")]
    pub(super) reason: Option<String>,
    #[serde(deserialize_with = "json::text")]
    pub(super) feedback: Option<String>,
}

/// A list of active entitlements, of which a summary shows at most ten.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Entitlements {
    #[serde(deserialize_with = "json::elements")]
    pub(super) data: Option<Vec<ActiveEntitlement>>,
    #[serde(deserialize_with = "json::is_true")]
    pub(super) has_more: bool,
}

/// Source: <https://docs.stripe.com/api/entitlements/active-entitlement/object>.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ActiveEntitlement {
    #[serde(deserialize_with = "json::text")]
    pub(super) lookup_key: Option<String>,
    /// `feat_…`.
    #[serde(deserialize_with = "json::reference")]
    pub(super) feature: Option<String>,
}

/// A subscription's list of items.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Items {
    #[serde(deserialize_with = "json::elements")]
    pub(super) data: Option<Vec<Item>>,
    /// Whether the list goes on; since 2026-08-26 the object shows only a part of many.
    #[serde(deserialize_with = "json::is_true")]
    pub(super) has_more: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Item {
    /// `si_…`.
    #[serde(deserialize_with = "json::id")]
    pub(super) id: Option<String>,
    /// The trial of this item, since 2026-09-30.
    #[serde(deserialize_with = "json::object")]
    pub(super) current_trial: CurrentTrial,
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
    /// `prod_…`.
    #[serde(deserialize_with = "json::reference")]
    pub(super) product: Option<String>,
    #[serde(deserialize_with = "json::text")]
    pub(super) currency: Option<String>,
    #[serde(deserialize_with = "json::big_integer")]
    pub(super) unit_amount: Option<i64>,
    /// `unit_amount` of a plan.
    #[serde(deserialize_with = "json::big_integer")]
    pub(super) amount: Option<i64>,
    #[serde(deserialize_with = "json::object")]
    pub(super) recurring: Recurring,
    /// Of a plan, which has no `recurring`; so the two below.
    #[serde(deserialize_with = "json::text")]
    pub(super) usage_type: Option<String>,
    #[serde(deserialize_with = "json::text")]
    pub(super) interval: Option<String>,
    #[serde(deserialize_with = "json::integer")]
    pub(super) interval_count: Option<i32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Recurring {
    #[serde(deserialize_with = "json::text")]
    pub(super) usage_type: Option<String>,
    #[serde(deserialize_with = "json::text")]
    pub(super) interval: Option<String>,
    #[serde(deserialize_with = "json::integer")]
    pub(super) interval_count: Option<i32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CurrentTrial {
    #[serde(deserialize_with = "json::time")]
    pub(super) end_date: Option<DateTime<Utc>>,
}
