//! Thin events: notifications that name an event or an object and do not contain it.
//!
//! Source: <https://docs.stripe.com/event-destinations#thin-events>.

use serde::Deserialize;
use serde_json::{Value, json};

use super::api::Resource;
use super::signature::Verified;
use super::{Event, IMPORTED, InvalidPayload, InvoiceStatus, Kind, Object, json as read};

/// The member `object` of a thin event.
pub(super) const OBJECT_TYPE: &str = "v2.core.event";

/// What a thin event names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// The snapshot event of the same change.
    pub snapshot_event: Option<String>,
    /// The object that changed.
    pub related: Option<Related>,
}

/// The object that a thin event is about. Its `url` is not read: whoever could choose it could have the key sent
/// elsewhere.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Related {
    /// Its type, for example `subscription`.
    #[serde(rename = "type", deserialize_with = "read::text")]
    pub object_type: Option<String>,
    /// Its id.
    #[serde(deserialize_with = "read::id")]
    pub id: Option<String>,
}

impl Notification {
    pub(super) fn new(snapshot_event: Option<String>, related: Related) -> Self {
        let related = (related != Related::default()).then_some(related);
        Self { snapshot_event, related }
    }

    /// The subscription, if that is the object.
    pub(super) fn subscription_id(&self) -> Option<&str> {
        let related = self.related.as_ref()?;
        (related.object_type.as_deref() == Some("subscription")).then_some(related.id.as_deref()).flatten()
    }

    /// Reads an event of `GET /v2/core/events/{id}`.
    pub fn of_thin_event(event: &Value) -> Self {
        let member = |value: &Value, name| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let related = event
            .get("related_object")
            .map(|related| Related { object_type: member(related, "type"), id: member(related, "id") });
        Self::new(member(event, "snapshot_event"), related.unwrap_or_default())
    }
}

/// What a thin event of this type is once its object has been fetched. A fetched state is not that of the
/// subscription's creation, which is older than every other state of its second.
pub(crate) fn kind_of(event_type: &str) -> Kind {
    let Some(classic) = event_type.strip_prefix("v1.").filter(|classic| *classic != IMPORTED) else {
        return Kind::Other;
    };
    match Kind::of(classic) {
        Kind::SubscriptionCreated => Kind::SubscriptionChanged,
        Kind::Other if classic.starts_with("customer.subscription.") => Kind::SubscriptionChanged,
        kind => kind,
    }
}

/// The kind of a thin event with this object. An invoice's own status says more than the type of the event, which may be
/// older than the fetched state.
pub(super) fn kind_with(event_type: &str, object: &Object) -> Kind {
    match kind_of(event_type) {
        Kind::Invoice(by_type) => Kind::Invoice(InvoiceStatus::of_fetched(object.status.as_deref(), by_type)),
        kind => kind,
    }
}

/// Whether Stripe could have given this as an id, and it is one segment of a path whatever stands before and after it.
pub fn is_plain_id(id: &str) -> bool {
    read::is_id(id) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl Event {
    /// Whether this is a thin event of a type that is handled.
    pub fn is_handled_notification(&self) -> bool {
        self.notification.is_some() && kind_of(&self.event_type) != Kind::Other
    }

    /// Whether this is a thin event whose object is still to be fetched.
    pub fn lacks_object(&self) -> bool {
        self.is_handled_notification() && self.kind == Kind::Other
    }

    /// The type of the object that a thin event of this type is about.
    pub fn wanted_resource(&self) -> Option<Resource> {
        match kind_of(&self.event_type) {
            kind if kind.shows_a_subscription() => Some(Resource::Subscription),
            Kind::Invoice(_) => Some(Resource::Invoice),
            Kind::Checkout => Some(Resource::CheckoutSession),
            _ => None,
        }
    }

    /// The thin event with its object, as of the thin event's time.
    ///
    /// # Errors
    /// If the object is nested too deep.
    pub fn with_object(&self, object: &Value) -> Result<Self, InvalidPayload> {
        let mut event: Value =
            serde_json::from_str(&self.payload).map_err(|error| InvalidPayload::NotJson(error.to_string()))?;
        event["data"] = json!({"object": object});
        let mut event = Self::parse(&Verified::from_stripes_api(event.to_string()))?;
        event.notification_id = Some(event.id.clone());
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(event: &Value) -> Event {
        Event::parse(&Verified::from_own_tables(event.to_string())).unwrap()
    }

    fn notification(event_type: &str) -> Value {
        json!({
            "id": "evt_test_1", "object": "v2.core.event", "type": event_type, "created": "2026-11-03T16:00:07.999Z",
            "livemode": true, "context": "acct_1/acct_2",
            "related_object": {"id": "sub_1", "type": "subscription", "url": "https://elsewhere.example/"},
        })
    }

    #[test]
    fn the_types_of_handled_events_and_every_finer_one_are_handled() {
        for (event_type, kind) in [
            ("v1.customer.subscription.created", Kind::SubscriptionChanged),
            ("v1.customer.subscription.deleted", Kind::SubscriptionDeleted),
            ("v1.customer.subscription.past_due", Kind::SubscriptionChanged),
            ("v1.customer.subscription.item_added", Kind::SubscriptionChanged),
            ("v1.checkout.session.completed", Kind::Checkout),
            ("v1.customer.deleted", Kind::Other),
            ("v1.billing.meter.no_meter_found", Kind::Other),
            ("v2.core.account.updated", Kind::Other),
            ("customer.subscription.updated", Kind::Other),
            ("v1.subledger.subscription.imported", Kind::Other),
        ] {
            assert_eq!(kind_of(event_type), kind, "{event_type}");
            assert_eq!(parse(&notification(event_type)).lacks_object(), kind != Kind::Other, "{event_type}");
        }
        let classic = json!({"id": "evt_1", "type": "v1.customer.subscription.updated"});
        assert!(!parse(&classic).is_handled_notification());
    }

    #[test]
    fn a_fetched_object_counts_as_of_the_notification() {
        let thin = parse(&notification("v1.customer.subscription.created"));
        assert_eq!(thin.created.unwrap().to_rfc3339(), "2026-11-03T16:00:07+00:00");
        assert_eq!((thin.kind, thin.connect_account.as_deref()), (Kind::Other, Some("acct_2")));
        assert_eq!(thin.subscription_id.as_deref(), Some("sub_1"));
        let whole = thin.with_object(&json!({"id": "sub_1", "object": "subscription", "customer": "cus_1"})).unwrap();
        assert_eq!((whole.kind, whole.id.as_str()), (Kind::SubscriptionChanged, "evt_test_1"));
        assert_eq!((whole.created, whole.customer_id.as_deref()), (thin.created, Some("cus_1")));
        assert_eq!(whole.notification_id.as_deref(), Some("evt_test_1"));
        // As it comes back from the tables.
        let again = Event::parse(&Verified::from_own_tables(whole.payload.clone())).unwrap();
        assert!(!again.lacks_object());
        assert_eq!(again.kind, Kind::SubscriptionChanged);
    }

    #[test]
    fn an_id_is_one_segment_of_a_path() {
        for id in
            ["", ".", "..", "../v1/x", "sub/1", "sub%2F1", "sub?x", "sub#x", "sub\n", "sub 1", "ü", &"x".repeat(256)]
        {
            assert!(!is_plain_id(id), "{id:?}");
        }
        assert!(is_plain_id("evt_test_65FVOioGtyKbjOIxZTeBlqta16zqLnTUOwQ5GfnQVL"));
    }
}
