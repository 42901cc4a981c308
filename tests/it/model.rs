//! An independent model: what the final row of a subscription's life must be, worked out from the life in Stripe's
//! true order and from nothing of the crate. Written against the contract's section 5.

use serde_json::{Value, json};

use crate::support::Event;
use crate::support::events::{checkout, invoice, subscription};

/// Stands in ids for what differs between two deliveries of the same life.
pub const SUFFIX: &str = "@";
/// Stands for the id of the life's account.
pub const ACCOUNT: &str = "ACCOUNT";

/// How the ids of a life's events lie to each other: no order may depend on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ids {
    Ascending,
    Descending,
    Scrambled,
}

/// A subscription's events in the order in which they happened at Stripe.
#[derive(Clone)]
pub struct Life {
    pub name: &'static str,
    pub events: Vec<Event>,
    /// The subscription as Stripe has it in the end.
    pub now: Value,
    /// Whether the account has the customer from the start; otherwise a checkout has to link it.
    pub is_linked: bool,
    pub has_trial: bool,
    /// Whether subledger may ask Stripe.
    pub has_key: bool,
    pub ids: Ids,
}

impl Life {
    pub fn of(name: &'static str) -> Self {
        let now = subscription(&format!("sub_{SUFFIX}"), &format!("cus_{SUFFIX}"), "incomplete", 1);
        let (is_linked, has_trial, has_key) = (true, false, false);
        Self { name, events: Vec::new(), now, is_linked, has_trial, has_key, ids: Ids::Scrambled }
    }

    pub fn linked_by_checkout(mut self) -> Self {
        self.is_linked = false;
        self
    }

    pub fn with_trial(mut self) -> Self {
        self.has_trial = true;
        self
    }

    pub fn with_key(mut self) -> Self {
        self.has_key = true;
        self
    }

    pub fn with_ids(mut self, ids: Ids) -> Self {
        self.ids = ids;
        self
    }

    fn event(mut self, event_type: &str, created: i64, object: Value, previous: Option<Value>) -> Self {
        let event = Event::new("", event_type, created, object);
        self.events.push(match previous {
            Some(previous) => event.with_previous(previous),
            None => event,
        });
        self
    }

    pub fn created(self, created: i64) -> Self {
        let object = self.now.clone();
        self.event("customer.subscription.created", created, object, None)
    }

    /// A change of one attribute, as Stripe reports it.
    pub fn changed(mut self, created: i64, attribute: &str, value: impl Into<Value>) -> Self {
        let former = std::mem::replace(&mut self.now[attribute], value.into());
        let object = self.now.clone();
        self.event("customer.subscription.updated", created, object, Some(json!({attribute: former})))
    }

    pub fn status(self, created: i64, status: &str) -> Self {
        self.changed(created, "status", status)
    }

    /// A change of the quantity; Stripe shows the former items whole.
    pub fn quantity(mut self, created: i64, quantity: i64) -> Self {
        let former = self.now["items"]["data"].clone();
        self.now["items"]["data"][0]["quantity"] = quantity.into();
        let object = self.now.clone();
        self.event("customer.subscription.updated", created, object, Some(json!({"items": {"data": former}})))
    }

    /// An event that shows the subscription without a change, such as `paused` beside its `updated`.
    pub fn shown(self, created: i64, event_type: &str) -> Self {
        let object = self.now.clone();
        self.event(event_type, created, object, None)
    }

    pub fn deleted(mut self, created: i64) -> Self {
        self.now["status"] = "canceled".into();
        for time in ["canceled_at", "ended_at"] {
            self.now[time] = created.into();
        }
        self.shown(created, "customer.subscription.deleted")
    }

    pub fn invoice(self, created: i64, event_type: &str, id: &str) -> Self {
        let object = invoice(&format!("{id}_{SUFFIX}"), &format!("cus_{SUFFIX}"), &format!("sub_{SUFFIX}"));
        self.event(event_type, created, object, None)
    }

    pub fn checkout(self, created: i64) -> Self {
        let object = checkout(&format!("cus_{SUFFIX}"), &format!("sub_{SUFFIX}"), Some(ACCOUNT));
        self.event("checkout.session.completed", created, object, None)
    }

    /// Whether the subscription takes over the account's local trial: it is seen in a status that entitles.
    pub fn takes_trial(&self) -> bool {
        let entitles = |event: &Event| {
            let status = event.object()["status"].as_str();
            event.0["type"].as_str().is_some_and(|event_type| event_type.starts_with("customer.subscription."))
                && matches!(status, Some("active" | "trialing" | "past_due"))
        };
        self.has_trial && self.events.iter().any(entitles)
    }

    /// The events, ready to be delivered once for this suffix and account.
    pub fn instance(&self, suffix: &str, account: &str) -> Vec<Event> {
        let fill = |(position, event): (usize, &Event)| {
            let event = event.clone().with("id", format!("evt_{:02}_{SUFFIX}", self.rank(position)).into());
            let text = event.to_string().replace(SUFFIX, suffix).replace(ACCOUNT, account);
            Event(serde_json::from_str(&text).unwrap())
        };
        self.events.iter().enumerate().map(fill).collect()
    }

    fn rank(&self, position: usize) -> usize {
        match self.ids {
            Ids::Ascending => position,
            Ids::Descending => 99 - position,
            Ids::Scrambled => (position + 3) * 37 % 97,
        }
    }

    /// The columns that the contract names, but for `last_event_id`, whose choice among equals is free: it is checked
    /// by [`Life::may_name`].
    pub fn final_row(&self) -> Value {
        let item = &self.now["items"]["data"][0];
        let price = &item["price"];
        let named = [&price["lookup_key"], &json!(self.takes_trial().then_some("trial")), &price["id"]];
        let plan = named.into_iter().find(|name| !name.is_null()).unwrap();
        let invoice = self.events.iter().rev().find(|event| event_type(event).starts_with("invoice."));
        let invoice_status = invoice.map(|event| event_type(event).trim_start_matches("invoice."));
        json!({
            "account_id": ACCOUNT,
            "plan": plan,
            "status": self.now["status"],
            "stripe_subscription_id": self.now["id"],
            "stripe_price_id": price["id"],
            "seat_limit": item["quantity"],
            "current_period_start": time(&item["current_period_start"]),
            "current_period_end": time(&item["current_period_end"]),
            "cancel_at_period_end": self.now["cancel_at_period_end"],
            "cancel_at": time(&self.now["cancel_at"]),
            "canceled_at": time(&self.now["canceled_at"]),
            "ended_at": time(&self.now["ended_at"]),
            "trial_end": time(&self.now["trial_end"]),
            "paused_collection": !self.now["pause_collection"].is_null(),
            "latest_invoice_id": invoice.map(|event| event.object()["id"].clone()),
            "latest_invoice_status": invoice_status,
            "last_event_created": time(&self.as_of().into()),
        })
    }

    /// Stripe's time of the state: of the last event that shows it or, with a key, has it fetched.
    fn as_of(&self) -> i64 {
        let counts = |event: &&Event| shows(event) || (self.has_key && event_type(event).starts_with("checkout."));
        let last = self.events.iter().rev().find(|event| shows(event)).unwrap();
        let is_over = matches!(self.now["status"].as_str(), Some("canceled" | "incomplete_expired"));
        // What is over is never overtaken, also not by what was stamped later.
        let fetched = self.events.iter().filter(counts).filter(|event| !is_over || !shows(event)).map(created).max();
        fetched.unwrap_or(0).max(created(last))
    }

    /// Whether this event (its id as `rank` and suffix make it) may be the one that the final row names.
    pub fn may_name(&self, id: &str) -> bool {
        let position =
            (0..self.events.len()).find(|&position| format!("evt_{:02}_{SUFFIX}", self.rank(position)) == id);
        let event = &self.events[position.unwrap_or_else(|| panic!("{id} is of another life"))];
        created(event) == self.as_of() && (!shows(event) || event.object() == &self.now)
    }
}

fn event_type(event: &Event) -> &str {
    event.0["type"].as_str().unwrap()
}

fn created(event: &Event) -> i64 {
    event.0["created"].as_i64().unwrap()
}

fn shows(event: &Event) -> bool {
    event_type(event).starts_with("customer.subscription.")
}

/// As PostgreSQL's `to_jsonb` writes a `timestamptz`.
pub fn time(seconds: &Value) -> Value {
    seconds.as_i64().map(|seconds| chrono::DateTime::from_timestamp(seconds, 0).unwrap().to_rfc3339()).into()
}
