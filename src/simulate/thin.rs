//! Thin notifications as Stripe writes them, and which event each of them is recorded as.
//!
//! Source: <https://docs.stripe.com/event-destinations#thin-events>.

use chrono::{DateTime, TimeDelta};
use serde_json::{Value, json};

use super::model::{Life, Occurrence, State, Thin, What};
use super::objects;

/// In which forms events are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Forms {
    /// With the object.
    Snapshot,
    /// As notifications.
    Thin,
    /// Each event both ways.
    Both,
}

/// The form of one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// The event with its object.
    Snapshot,
    /// The notification of the event's own type.
    Thin,
    /// A notification of a finer type, which has no snapshot event.
    Finer,
}

impl Forms {
    /// The forms in which an occurrence of a life is delivered.
    pub(super) fn of(self, life: &Life, index: usize) -> Vec<Form> {
        let (has_snapshot, is_thin) = (self != Self::Thin, self != Self::Snapshot);
        let has_finer = is_thin && finer_type(life, index).is_some();
        let forms = [(has_snapshot, Form::Snapshot), (is_thin, Form::Thin), (has_finer, Form::Finer)];
        forms.into_iter().filter(|(is_sent, _)| *is_sent).map(|(_, form)| form).collect()
    }
}

/// The id of the notification that is delivered in this form; `None` for a snapshot.
pub(super) fn notification_id(occurrence: &Occurrence, form: Form) -> Option<String> {
    let suffix = match form {
        Form::Snapshot => return None,
        Form::Thin => "T",
        Form::Finer => "F",
    };
    Some(format!("{}{suffix}", occurrence.event_id))
}

/// The id under which a delivery in this form is recorded.
pub(super) fn recorded_id(occurrence: &Occurrence, form: Form) -> String {
    match (notification_id(occurrence, form), form, occurrence.thin) {
        (Some(id), Form::Finer, _) | (Some(id), Form::Thin, Thin::ObjectOnly) => id,
        _ => occurrence.event_id.clone(),
    }
}

/// The notification of an occurrence as it is delivered; `None` for the form of a snapshot.
pub(super) fn notification(life: &Life, index: usize, form: Form) -> Option<Value> {
    event(life, index, form, Thin::NamesSnapshot)
}

/// The notification as `GET /v2/core/events/{id}` answers it.
pub(super) fn event_at_stripe(life: &Life, index: usize, form: Form) -> Option<Value> {
    event(life, index, form, Thin::FindsSnapshot)
}

/// Names the snapshot event if that is known `at` this place, or earlier.
fn event(life: &Life, index: usize, form: Form, at: Thin) -> Option<Value> {
    let occurrence = life.occurrences.get(index)?;
    let event_type = match form {
        Form::Finer => finer_type(life, index)?.to_owned(),
        _ => format!("v1.{}", occurrence.what.event_type()),
    };
    // Any fraction of the second, which does not count.
    let millis = TimeDelta::milliseconds(i64::try_from(index * 37 % 1000).unwrap_or_default());
    let created = DateTime::from_timestamp(occurrence.created, 0)? + millis;
    let mut event = json!({
        "id": notification_id(occurrence, form)?,
        "object": "v2.core.event",
        "type": event_type,
        "created": created.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        "livemode": false,
        "context": life.connect_account,
        "reason": null,
        "related_object": related_object(life, occurrence),
    });
    let is_named = occurrence.thin == Thin::NamesSnapshot || occurrence.thin == at;
    if form == Form::Thin && is_named {
        event["snapshot_event"] = occurrence.event_id.clone().into();
    }
    Some(event)
}

fn related_object(life: &Life, occurrence: &Occurrence) -> Value {
    let (object_type, id, path) = match &occurrence.what {
        What::Features(_) => return Value::Null,
        What::Checkout => ("checkout.session", objects::checkout_id(life), "checkout/sessions"),
        What::Invoice { invoice, .. } => ("invoice", invoice.id.clone(), "invoices"),
        _ => ("subscription", life.subscription_id.clone(), "subscriptions"),
    };
    json!({"id": id, "type": object_type, "url": format!("/v1/{path}/{id}")})
}

/// The finer type that says what an update changed, for some of the changes that have one.
fn finer_type(life: &Life, index: usize) -> Option<&'static str> {
    let occurrence = life.occurrences.get(index)?;
    if occurrence.what != What::Updated {
        return None;
    }
    let former = &life.occurrences.get(index.checked_sub(1)?)?.state;
    let is_changed = |part: fn(&State) -> usize| part(former).cmp(&part(&occurrence.state));
    match is_changed(|state| state.items.len()) {
        std::cmp::Ordering::Less => return Some("v1.customer.subscription.item_added"),
        std::cmp::Ordering::Greater => return Some("v1.customer.subscription.item_removed"),
        std::cmp::Ordering::Equal => {}
    }
    if former.cancel_at != occurrence.state.cancel_at {
        return Some("v1.customer.subscription.cancel_at_changed");
    }
    let is_new_status = former.status != occurrence.state.status;
    is_new_status.then_some(match occurrence.state.status {
        "active" => "v1.customer.subscription.active",
        "trialing" => "v1.customer.subscription.trialing",
        "past_due" => "v1.customer.subscription.past_due",
        "unpaid" => "v1.customer.subscription.unpaid",
        "paused" => "v1.customer.subscription.paused",
        _ => "v1.customer.subscription.incomplete_expired",
    })
}
