//! Events and subscriptions as Stripe writes them, in each shape. It renders; what happened is not decided here.
//!
//! Source: <https://docs.stripe.com/api/subscriptions/object>, <https://docs.stripe.com/api/events/object>.

use serde_json::{Value, json};

use super::model::{Item, Life, Link, Price, Shape, State, What};
use super::{objects, previous};

/// The event of one occurrence of a life.
pub(super) fn event(life: &Life, index: usize) -> Option<Value> {
    let occurrence = life.occurrences.get(index)?;
    let object = match &occurrence.what {
        What::Checkout => objects::checkout(life, occurrence),
        What::Invoice { invoice, .. } => objects::invoice(life, occurrence, invoice),
        What::Features(features) => objects::feature_summary(life, features),
        _ => subscription(life, &occurrence.state, life.shape),
    };
    let mut data = json!({"object": object});
    if occurrence.what == What::Updated {
        let former = &life.occurrences.get(index.checked_sub(1)?)?.state;
        data["previous_attributes"] = previous::attributes(&subscription(life, former, life.shape), &data["object"]);
    }
    let mut event = json!({
        "id": occurrence.event_id,
        "object": "event",
        "api_version": match life.shape {
            Shape::Classic => "2023-10-16",
            Shape::Basil => "2025-08-27.basil",
            Shape::Endive => "2026-10-28.endive",
        },
        "created": occurrence.created,
        "data": data,
        "livemode": false,
        "pending_webhooks": 1,
        "request": {"id": null, "idempotency_key": null},
        "type": occurrence.what.event_type(),
    });
    if let Some(account) = life.connect_account {
        event["account"] = account.into();
    }
    Some(event)
}

/// The subscription in a state.
pub(super) fn subscription(life: &Life, state: &State, shape: Shape) -> Value {
    let born = life.occurrences.first().map_or(state.period.0, |first| first.created);
    let mut object = constant_part(life, born, shape);
    let single = if let [item] = state.items.as_slice() { Some(item) } else { None };
    let mut put = |name: &str, value: Value| object[name] = value;
    put("status", state.status.into());
    put("items", items(life, state, shape));
    put("plan", single.map_or(Value::Null, |item| plan(item.price, shape)));
    put("quantity", single.and_then(|item| item.quantity).into());
    put("cancel_at_period_end", state.cancel_at_period_end.into());
    put("cancel_at", state.cancel_at.into());
    put("canceled_at", state.canceled_at.into());
    put(
        "cancellation_details",
        json!({"comment": null, "feedback": state.cancellation_feedback,
        "reason": state.cancellation_reason}),
    );
    put("metadata", metadata(life, state));
    put("ended_at", state.ended_at.into());
    put("trial_start", state.trial.map(|trial| trial.0).into());
    put("trial_end", state.trial.map(|trial| trial.1).into());
    put("pause_collection", state.pause.map_or(Value::Null, |how| json!({"behavior": how, "resumes_at": null})));
    put("latest_invoice", state.latest_invoice.clone().into());
    put("default_payment_method", state.payment_method.clone().into());
    if shape == Shape::Classic {
        put("current_period_start", state.period.0.into());
        put("current_period_end", state.period.1.into());
    }
    object
}

/// What never changes in a life of ours.
fn constant_part(life: &Life, born: i64, shape: Shape) -> Value {
    let mut object = json!({
        "id": life.subscription_id,
        "object": "subscription",
        "application": null,
        "application_fee_percent": null,
        "automatic_tax": {"enabled": false, "liability": null},
        "billing_cycle_anchor": born,
        "billing_cycle_anchor_config": null,
        "billing_thresholds": null,
        "collection_method": "charge_automatically",
        "created": born,
        "currency": "usd",
        "customer": life.customer_id,
        "days_until_due": null,
        "default_source": null,
        "default_tax_rates": [],
        "description": null,
        "discounts": [],
        "invoice_settings": {"account_tax_ids": null, "issuer": {"type": "self"}},
        "livemode": false,
        "next_pending_invoice_item_invoice": null,
        "on_behalf_of": null,
        "payment_settings": {
            "payment_method_options": null,
            "payment_method_types": ["card"],
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": null,
        "pending_setup_intent": null,
        "pending_update": null,
        "schedule": null,
        "start_date": born,
        "test_clock": null,
        "transfer_data": null,
        "trial_settings": {"end_behavior": {"missing_payment_method": "pause"}},
    });
    match shape {
        Shape::Classic => object["discount"] = Value::Null,
        Shape::Basil => {
            object["automatic_tax"]["disabled_reason"] = Value::Null;
            object["billing_mode"] = json!({"flexible": null, "type": "classic"});
        }
        Shape::Endive => {
            object["automatic_tax"]["disabled_reason"] = Value::Null;
            object["billing_mode"] =
                json!({"flexible": {"proration_discounts": "included"}, "type": "flexible", "updated_at": born});
            object["billing_schedules"] = json!([]);
            object["customer_account"] = Value::Null;
        }
    }
    object
}

fn metadata(life: &Life, state: &State) -> Value {
    let account = (life.account.link == Link::MetadataDuring).then(|| ("account_id", life.account.id.to_string()));
    let note = state.note.clone().map(|note| ("note", note));
    account.into_iter().chain(note).map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}

fn items(life: &Life, state: &State, shape: Shape) -> Value {
    let data: Vec<_> = state.items.iter().map(|item| self::item(life, state, item, shape)).collect();
    json!({
        "object": "list",
        "total_count": data.len(),
        "data": data,
        "has_more": false,
        "url": format!("/v1/subscription_items?subscription={}", life.subscription_id),
    })
}

fn item(life: &Life, state: &State, item: &Item, shape: Shape) -> Value {
    let mut object = json!({
        "id": item.id,
        "object": "subscription_item",
        "billing_thresholds": null,
        "created": item.created,
        "discounts": [],
        "metadata": {},
        "plan": plan(item.price, shape),
        "price": price(item.price, shape),
        "subscription": life.subscription_id,
        "tax_rates": [],
    });
    if let Some(quantity) = item.quantity {
        object["quantity"] = quantity.into();
    }
    if shape != Shape::Classic {
        let (start, end) = item.period.unwrap_or(state.period);
        object["current_period_start"] = start.into();
        object["current_period_end"] = end.into();
    }
    if shape == Shape::Endive {
        let trial = item.trial.map(|(start, end)| json!({"start_date": start, "end_date": end}));
        object["current_trial"] = trial.into();
    }
    object
}

/// When the made-up company began to sell its prices: before anything that happens here.
const PRICES_CREATED: i64 = 1_700_000_000;

fn plan(price: &Price, shape: Shape) -> Value {
    let mut object = json!({
        "id": price.id,
        "object": "plan",
        "active": true,
        "amount": price.amount,
        "amount_decimal": price.amount.to_string(),
        "billing_scheme": "per_unit",
        "created": PRICES_CREATED,
        "currency": "usd",
        "interval": price.interval,
        "interval_count": 1,
        "livemode": false,
        "metadata": {},
        "meter": null,
        "nickname": null,
        "product": price.product,
        "tiers_mode": null,
        "transform_usage": null,
        "trial_period_days": null,
        "usage_type": usage_type(price),
    });
    if shape == Shape::Classic {
        object["aggregate_usage"] = Value::Null;
    }
    object
}

fn price(price: &Price, shape: Shape) -> Value {
    let mut object = json!({
        "id": price.id,
        "object": "price",
        "active": true,
        "billing_scheme": "per_unit",
        "created": PRICES_CREATED,
        "currency": "usd",
        "custom_unit_amount": null,
        "livemode": false,
        "lookup_key": price.lookup_key,
        "metadata": {},
        "nickname": null,
        "product": price.product,
        "recurring": {
            "interval": price.interval,
            "interval_count": 1,
            "meter": null,
            "trial_period_days": null,
            "usage_type": usage_type(price),
        },
        "tax_behavior": "exclusive",
        "tiers_mode": null,
        "transform_quantity": null,
        "type": "recurring",
        "unit_amount": price.amount,
        "unit_amount_decimal": price.amount.to_string(),
    });
    if shape == Shape::Classic {
        object["recurring"]["aggregate_usage"] = Value::Null;
    }
    object
}

fn usage_type(price: &Price) -> &'static str {
    if price.is_metered { "metered" } else { "licensed" }
}
