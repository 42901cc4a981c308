//! Events to deliver: the fixtures, and short ones made by hand where only a few fields matter.

use std::fmt;
use std::path::Path;

use chrono::Utc;
use serde_json::{Value, json};
use subledger::secret::Secret;
use subledger::stripe::signature::verify;

use super::app::{WEBHOOK_SECRET, signature};

/// An event as JSON.
#[derive(Clone, Debug)]
pub struct Event(pub Value);

impl Event {
    /// An event of this type and second about `object`.
    pub fn new(id: &str, event_type: &str, created: i64, object: Value) -> Self {
        Self(json!({
            "id": id,
            "object": "event",
            "api_version": "2025-03-31.basil",
            "created": created,
            "data": {"object": object},
            "livemode": false,
            "pending_webhooks": 1,
            "request": {"id": null, "idempotency_key": null},
            "type": event_type,
        }))
    }

    pub fn with_previous(mut self, previous: Value) -> Self {
        self.0["data"]["previous_attributes"] = previous;
        self
    }

    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.0[field] = value;
        self
    }

    /// As the service has it. There is no other way to that than through a signature.
    pub fn parsed(&self) -> subledger::stripe::Event {
        let body = self.to_string();
        let (header, secrets) = (signature(body.as_bytes()), [Secret::new(WEBHOOK_SECRET)]);
        let verified = verify(Some(header.as_bytes()), body.into(), &secrets, 300, Utc::now()).unwrap();
        subledger::stripe::Event::parse(&verified).unwrap()
    }

    pub fn id(&self) -> &str {
        self.0["id"].as_str().unwrap()
    }

    pub fn object(&self) -> &Value {
        &self.0["data"]["object"]
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<&Event> for Event {
    fn from(event: &Event) -> Self {
        event.clone()
    }
}

/// The event in `tests/fixtures/<name>.json`.
pub fn fixture(name: &str) -> Event {
    Event(fixture_json(name))
}

/// Whatever is in `tests/fixtures/<name>.json`.
pub fn fixture_json(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// A subscription as the newest API shows it, with one item.
pub fn subscription(id: &str, customer: &str, status: &str, quantity: i64) -> Value {
    json!({
        "id": id,
        "object": "subscription",
        "customer": customer,
        "status": status,
        "cancel_at_period_end": false,
        "cancel_at": null,
        "canceled_at": null,
        "ended_at": null,
        "trial_end": null,
        "pause_collection": null,
        "metadata": {},
        "items": {"object": "list", "data": [{
            "id": "si_1",
            "object": "subscription_item",
            "price": {"id": "price_team", "object": "price", "lookup_key": null,
                      "recurring": {"interval": "month", "usage_type": "licensed"}},
            "quantity": quantity,
            "current_period_start": 1_760_000_000,
            "current_period_end": 1_762_600_000,
        }]},
    })
}

/// A completed checkout of mode `subscription`.
pub fn checkout(customer: &str, subscription: &str, reference: Option<&str>) -> Value {
    json!({
        "id": format!("cs_of_{subscription}"),
        "object": "checkout.session",
        "mode": "subscription",
        "customer": customer,
        "subscription": subscription,
        "client_reference_id": reference,
        "metadata": {},
        "payment_status": "paid",
        "status": "complete",
    })
}

/// An invoice of a subscription, as the newest API shows it.
pub fn invoice(id: &str, customer: &str, subscription: &str) -> Value {
    json!({
        "id": id,
        "object": "invoice",
        "customer": customer,
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": subscription}},
    })
}

/// `customer.subscription.created`.
pub fn created(id: &str, second: i64, subscription: Value) -> Event {
    Event::new(id, "customer.subscription.created", second, subscription)
}

/// `customer.subscription.updated`.
pub fn updated(id: &str, second: i64, subscription: Value) -> Event {
    Event::new(id, "customer.subscription.updated", second, subscription)
}

/// `customer.subscription.deleted`.
pub fn deleted(id: &str, second: i64, subscription: Value) -> Event {
    Event::new(id, "customer.subscription.deleted", second, subscription)
}

/// `invoice.paid`.
pub fn paid(id: &str, second: i64, invoice: Value) -> Event {
    Event::new(id, "invoice.paid", second, invoice)
}

/// `checkout.session.completed`.
pub fn completed(id: &str, second: i64, session: Value) -> Event {
    Event::new(id, "checkout.session.completed", second, session)
}

/// A thin event of this second about `object`.
pub fn thin(id: &str, event_type: &str, second: i64, object: &Value, snapshot_event: Option<&str>) -> Event {
    let created = chrono::DateTime::from_timestamp(second, 0).unwrap().format("%Y-%m-%dT%H:%M:%S.789Z");
    let mut event = json!({
        "id": id,
        "object": "v2.core.event",
        "created": created.to_string(),
        "livemode": false,
        "reason": null,
        "related_object": {"id": object["id"], "type": object["object"], "url": "https://elsewhere.invalid/v1/x"},
        "type": event_type,
    });
    if let Some(snapshot_event) = snapshot_event {
        event["snapshot_event"] = snapshot_event.into();
    }
    Event(event)
}
