//! A Stripe event: the envelope, and to whom its object belongs. Made of verified bytes only.
//!
//! Source: <https://docs.stripe.com/api/events/object>.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use uuid::Uuid;

use super::api::Scope;
use super::object::Object;
use super::thin::{self, Notification, Related};
use super::{IMPORTED, InvoiceStatus, item, json, jsonb};
use crate::stripe::signature::Verified;

/// What is to be done with an event, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `customer.subscription.created`.
    SubscriptionCreated,
    /// Any other event that shows a subscription as it then was.
    SubscriptionChanged,
    /// `customer.subscription.deleted`.
    SubscriptionDeleted,
    /// A checkout that was completed, or whose delayed payment came.
    Checkout,
    /// An invoice event of a type that is handled, and what the type says of the invoice.
    Invoice(InvoiceStatus),
    /// `entitlements.active_entitlement_summary.updated`.
    Features,
    /// Recorded and acknowledged.
    Other,
}

impl Kind {
    /// The type of the event with which a subscription begins.
    pub const BIRTH: &str = "customer.subscription.created";

    /// The kind of an event type (`event.type`, not the object's).
    pub fn of(event_type: &str) -> Self {
        match event_type {
            Self::BIRTH => Self::SubscriptionCreated,
            "customer.subscription.updated"
            | "customer.subscription.paused"
            | "customer.subscription.resumed"
            | "customer.subscription.trial_will_end"
            | "customer.subscription.pending_update_applied"
            | "customer.subscription.pending_update_expired"
            | IMPORTED => Self::SubscriptionChanged,
            "customer.subscription.deleted" => Self::SubscriptionDeleted,
            "checkout.session.completed" | "checkout.session.async_payment_succeeded" => Self::Checkout,
            "entitlements.active_entitlement_summary.updated" => Self::Features,
            _ => InvoiceStatus::of_event_type(event_type).map_or(Self::Other, Self::Invoice),
        }
    }

    /// Whether the event's object is a subscription.
    pub fn shows_a_subscription(self) -> bool {
        matches!(self, Self::SubscriptionCreated | Self::SubscriptionChanged | Self::SubscriptionDeleted)
    }
}

/// The types that the contract names, in the order of the alphabet: those that are handled, and `customer.deleted`,
/// which on purpose changes nothing.
pub const NAMED_TYPES: [&str; 19] = [
    "checkout.session.async_payment_succeeded",
    "checkout.session.completed",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.pending_update_applied",
    "customer.subscription.pending_update_expired",
    "customer.subscription.resumed",
    "customer.subscription.trial_will_end",
    "customer.subscription.updated",
    "entitlements.active_entitlement_summary.updated",
    "invoice.finalized",
    "invoice.marked_uncollectible",
    "invoice.paid",
    "invoice.payment_action_required",
    "invoice.payment_failed",
    "invoice.payment_succeeded",
    "invoice.voided",
];

/// Those of them that are handled.
pub fn handled_types() -> impl Iterator<Item = &'static str> {
    NAMED_TYPES.into_iter().filter(|name| Kind::of(name) != Kind::Other)
}

/// Those of them that show a subscription as it then was.
pub fn subscription_types() -> impl Iterator<Item = &'static str> {
    NAMED_TYPES.into_iter().filter(|name| Kind::of(name).shows_a_subscription())
}

/// Verified bytes that are no event.
#[derive(Debug, Error)]
pub enum InvalidPayload {
    /// Not JSON, or nested more than 127 levels deep.
    #[error("the payload is not JSON: {0}")]
    NotJson(String),
    /// JSON, but no event.
    #[error("the payload is not a Stripe event: `{0}` is absent or not a string of 1 to 255 bytes")]
    NotAnEvent(&'static str),
}

/// An event as Stripe sent it.
#[derive(Clone, Debug)]
pub struct Event {
    /// `evt_…`, the idempotency key.
    pub id: String,
    /// For example `customer.subscription.updated`; also a type that nobody knows yet.
    pub event_type: String,
    /// What is to be done with it.
    pub kind: Kind,
    /// Stripe's time, in whole seconds. Absent where it was absent or no time.
    pub created: Option<DateTime<Utc>>,
    /// The API version that the payload's shape follows.
    pub api_version: Option<String>,
    /// Whether it is about real money.
    pub livemode: bool,
    /// `acct_…` of the connected account that it is about: `account`, else the last part of `context`.
    pub connect_account: Option<String>,
    /// `context`: an account of an organization, or the path to one. Calls about this event are made in it.
    pub context: Option<String>,
    /// `cus_…` of the object, else the `acct_…` that it has as its customer.
    pub customer_id: Option<String>,
    /// The object's customers: `customer`, then `customer_account`. Never the account that the event belongs to.
    pub customer_ids: Vec<String>,
    /// `sub_…` that the object is or belongs to.
    pub subscription_id: Option<String>,
    /// The accounts of ours that the object itself names, the one that counts first; whether or not they exist.
    pub named_account_ids: Vec<Uuid>,
    /// What it names, if it is a thin event.
    pub notification: Option<Notification>,
    /// The thin event through which it became known, if it did not come itself.
    pub notification_id: Option<String>,
    /// The whole event as JSON text, with what `jsonb` cannot hold replaced.
    pub payload: String,
    object: Object,
}

/// How deep an event may be nested; Stripe's go about ten levels deep.
const MAX_DEPTH: usize = 127;

impl Event {
    /// Reads an event.
    ///
    /// # Errors
    /// [`InvalidPayload`] where the bytes are not JSON, or have no `id` or no `type`.
    pub fn parse(verified: &Verified) -> Result<Self, InvalidPayload> {
        let not_json = |error: &dyn fmt::Display| InvalidPayload::NotJson(error.to_string());
        let text = std::str::from_utf8(verified.bytes()).map_err(|error| not_json(&error))?;
        let payload = jsonb::fit(text);
        if jsonb::is_deeper_than(MAX_DEPTH, &payload) {
            return Err(not_json(&format_args!("nested more than {MAX_DEPTH} levels deep")));
        }
        let envelope: Envelope = json::read(&payload).map_err(|error| not_json(&error))?;
        let id = envelope.id.ok_or(InvalidPayload::NotAnEvent("id"))?;
        let event_type = envelope.event_type.ok_or(InvalidPayload::NotAnEvent("type"))?;
        let object = envelope.data.object;
        let named = envelope.account.or_else(|| envelope.context.as_deref().and_then(account_of).map(str::to_owned));
        let is_thin = envelope.object_type.as_deref() == Some(thin::OBJECT_TYPE);
        let notification = is_thin.then(|| Notification::new(envelope.snapshot_event, envelope.related_object));
        let kind = match (is_thin, object.id.is_some()) {
            (true, true) => thin::kind_with(&event_type, &object),
            (true, false) => Kind::Other,
            (false, _) => Kind::of(&event_type),
        };
        // An object without an id is none; only a summary of entitlements has none.
        let is_object = object.id.is_some() || kind == Kind::Features;
        let (kind, object) = if is_object { (kind, object) } else { (Kind::Other, Object::default()) };
        let customer_ids = customer_ids(&event_type, &object);
        let subscription_id = subscription_id(kind, &object).cloned();
        let related = notification.as_ref().and_then(Notification::subscription_id).map(str::to_owned);
        Ok(Self {
            kind,
            created: envelope.created.and_then(|created| json::timestamp(created.timestamp())),
            api_version: envelope.api_version,
            livemode: envelope.livemode,
            connect_account: named,
            context: envelope.context,
            customer_id: customer_ids.first().cloned(),
            customer_ids,
            subscription_id: subscription_id.or(related),
            named_account_ids: named_account_ids(kind, &object),
            notification,
            notification_id: None,
            object,
            id,
            event_type,
            payload,
        })
    }

    /// The id under which failed attempts are recorded: that of what was delivered.
    pub fn delivered_id(&self) -> &str {
        self.notification_id.as_deref().unwrap_or(&self.id)
    }

    /// On whose behalf calls about this event are made: in its `context`, else for its `account`.
    pub fn scope(&self) -> Scope {
        match &self.context {
            Some(context) => Scope::Context(context.clone()),
            None => self.connect_account.as_deref().into(),
        }
    }

    /// What the event is about: a subscription, a checkout session, an invoice, …
    pub fn object(&self) -> &Object {
        &self.object
    }

    /// The column `object_id`, by which the search finds events: the object's id, or empty if it has none. `None` for an
    /// event of a subscription, which is found by its `subscription_id`.
    pub fn indexed_object_id(&self) -> Option<&str> {
        let is_of_subscription = self.event_type.starts_with("customer.subscription.");
        (!is_of_subscription).then(|| self.object.id.as_deref().unwrap_or_default())
    }

    /// The event with all items of its subscription, which `GET /v1/subscription_items` listed. The payload stays as it
    /// was sent.
    #[must_use]
    pub fn with_all_items(mut self, listed: Vec<Value>) -> Self {
        self.object = Object::from(&item::with_all_items(self.data()["object"].take(), listed));
        self
    }

    /// Its `data` as a tree: the `object`, and the `previous_attributes` of what an `updated` event changed.
    pub fn data(&self) -> Value {
        let mut event: Value = serde_json::from_str(&self.payload).unwrap_or_default();
        event["data"].take()
    }
}

/// What is read of an event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Envelope {
    #[serde(deserialize_with = "json::id")]
    id: Option<String>,
    #[serde(rename = "type", deserialize_with = "json::id")]
    event_type: Option<String>,
    #[serde(rename = "object", deserialize_with = "json::text")]
    object_type: Option<String>,
    /// Of a thin event it is text.
    #[serde(deserialize_with = "json::time_of_either_form")]
    created: Option<DateTime<Utc>>,
    #[serde(deserialize_with = "json::text")]
    api_version: Option<String>,
    #[serde(deserialize_with = "json::is_true")]
    livemode: bool,
    #[serde(deserialize_with = "json::reference")]
    account: Option<String>,
    #[serde(deserialize_with = "json::id")]
    context: Option<String>,
    /// Of a thin event, as the next.
    #[serde(deserialize_with = "json::reference")]
    snapshot_event: Option<String>,
    #[serde(deserialize_with = "json::object")]
    related_object: Related,
    #[serde(deserialize_with = "json::object")]
    data: Data,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    #[serde(deserialize_with = "json::object")]
    object: Object,
}

/// The account that a context names: of a path `acct_a/acct_b` the last part.
///
/// Source: <https://docs.stripe.com/context>.
fn account_of(context: &str) -> Option<&str> {
    context.rsplit('/').next().filter(|part| part.starts_with("acct_"))
}

fn customer_ids(event_type: &str, object: &Object) -> Vec<String> {
    let is_a_customer = object.object_type.as_deref() == Some("customer")
        || matches!(event_type, "customer.created" | "customer.updated" | "customer.deleted");
    let named = if is_a_customer { &object.id } else { &object.customer };
    [named, &object.customer_account].into_iter().flatten().cloned().collect()
}

fn subscription_id(kind: Kind, object: &Object) -> Option<&String> {
    if kind.shows_a_subscription() || object.object_type.as_deref() == Some("subscription") {
        return object.id.as_ref();
    }
    // Since 2025-03-31 an invoice names it in its parent.
    object.subscription.as_ref().or(object.parent.subscription_details.subscription.as_ref())
}

fn named_account_ids(kind: Kind, object: &Object) -> Vec<Uuid> {
    let reference = object.client_reference_id.filter(|_| kind == Kind::Checkout);
    let metadata = object.metadata.account_id.filter(|_| kind == Kind::Checkout || kind.shows_a_subscription());
    [reference, metadata].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Event, InvalidPayload> {
        Event::parse(&Verified::from_own_tables(text.to_owned()))
    }

    #[test]
    fn what_is_no_event_is_refused() {
        let deep = format!(r#"{{"id":"evt_1","type":"x","data":{}{}}}"#, "[".repeat(500), "]".repeat(500));
        for text in ["", "nonsense", "[]", "null", "7", r#"{"id":"evt_1"}"#, r#"{"type":"x"}"#, &deep] {
            assert!(parse(text).is_err(), "{text}");
        }
        for id in [r#""""#, "7", "null", r#"{"id":"evt_1"}"#, &format!(r#""{}""#, "x".repeat(256))] {
            assert!(parse(&format!(r#"{{"id":{id},"type":"x"}}"#)).is_err(), "{id}");
        }
    }

    #[test]
    fn of_the_named_types_all_but_one_are_handled() {
        let unhandled: Vec<_> =
            NAMED_TYPES.into_iter().filter(|name| !handled_types().any(|other| other == *name)).collect();
        assert_eq!(unhandled, ["customer.deleted"]);
        assert_eq!(subscription_types().count(), 8);
    }

    #[test]
    fn an_event_without_an_object_id_or_a_thin_one_is_for_no_handler() {
        let typed =
            |rest: &str| parse(&format!(r#"{{"id":"evt_1","type":"customer.subscription.updated"{rest}}}"#)).unwrap();
        assert_eq!(typed("").kind, Kind::Other);
        assert_eq!(typed(r#","data":{"object":{}}"#).kind, Kind::Other);
        assert_eq!(typed(r#","data":{"object":{"id":"sub_1"}}"#).kind, Kind::SubscriptionChanged);
        let thin =
            typed(r#","object":"v2.core.event","created":"2025-01-02T03:04:05.678Z","data":{"object":{"id":"s"}}"#);
        assert_eq!(thin.kind, Kind::Other, "its type is none of the thin ones");
        assert_eq!(thin.created.unwrap().to_rfc3339(), "2025-01-02T03:04:05+00:00");
    }

    #[test]
    fn the_context_and_the_account_say_whose_event_it_is() {
        let of = |rest: &str| parse(&format!(r#"{{"id":"evt_1","type":"x"{rest}}}"#)).unwrap();
        for (rest, account, scope) in [
            ("", None, Scope::Own),
            (r#","account":null,"context":null"#, None, Scope::Own),
            (r#","account":"acct_1""#, Some("acct_1"), Scope::Account("acct_1".to_owned())),
            (r#","context":"acct_1""#, Some("acct_1"), Scope::Context("acct_1".to_owned())),
            (r#","context":"acct_1/acct_2""#, Some("acct_2"), Scope::Context("acct_1/acct_2".to_owned())),
            (r#","context":"org_1""#, None, Scope::Context("org_1".to_owned())),
            (r#","account":"acct_3","context":"acct_1""#, Some("acct_3"), Scope::Context("acct_1".to_owned())),
        ] {
            let event = of(rest);
            assert_eq!((event.connect_account.as_deref(), event.scope()), (account, scope), "{rest}");
        }
    }

    #[test]
    fn a_customer_account_is_a_customer_beside_or_instead_of_one() {
        for (object, first, all) in [
            (r#""customer":"cus_1","customer_account":"acct_1""#, Some("cus_1"), vec!["cus_1", "acct_1"]),
            (r#""customer":null,"customer_account":"acct_1""#, Some("acct_1"), vec!["acct_1"]),
            (r#""customer_account":{"id":"acct_1"}"#, Some("acct_1"), vec!["acct_1"]),
            (r#""customer":"cus_1""#, Some("cus_1"), vec!["cus_1"]),
            (r#""customer":null"#, None, vec![]),
        ] {
            let event = format!(
                r#"{{"id":"evt_1","type":"invoice.paid","account":"acct_9","data":{{"object":{{"id":"in_1",{object}}}}}}}"#
            );
            let event = parse(&event).unwrap();
            assert_eq!((event.customer_id.as_deref(), event.connect_account.as_deref()), (first, Some("acct_9")));
            assert_eq!(event.customer_ids, all, "{object}");
        }
    }

    #[test]
    fn references_are_found_in_every_shape() {
        let of = |event_type: &str, object: &str| {
            parse(&format!(r#"{{"id":"evt_1","type":"{event_type}","data":{{"object":{object}}}}}"#)).unwrap()
        };
        let invoice = of(
            "invoice.paid",
            r#"{"id":"in_1","customer":{"id":"cus_1"},"parent":{"subscription_details":{"subscription":"sub_1"}}}"#,
        );
        assert_eq!(
            (invoice.customer_id.as_deref(), invoice.subscription_id.as_deref()),
            (Some("cus_1"), Some("sub_1"))
        );
        let classic = of("invoice.paid", r#"{"id":"in_1","subscription":{"id":"sub_2"}}"#);
        assert_eq!(classic.subscription_id.as_deref(), Some("sub_2"));
        assert_eq!(of("customer.deleted", r#"{"id":"cus_3"}"#).customer_id.as_deref(), Some("cus_3"));
        let account = "7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11";
        let session = of(
            "checkout.session.completed",
            &format!(r#"{{"id":"cs_1","client_reference_id":"user 7","metadata":{{"account_id":"{account}"}}}}"#),
        );
        assert_eq!(session.named_account_ids, [Uuid::parse_str(account).unwrap()]);
    }
}
