//! The projection: whatever the object, it never panics, and every column shows what stands in the object, or null.

use serde_json::{Value, json};
use subledger::stripe::{PlanName, PricePlans, Subscription};

use super::json;

/// Takes the object that the bytes are, else the one that they spell; and that one as a subscription's items.
pub fn hold(data: &[u8]) {
    if let Ok(object) = serde_json::from_slice::<Value>(data) {
        hold_of(&object);
    }
    let spelled = json::spelled(data);
    hold_of(&spelled);
    hold_of(&json!({"id": "sub_1", "status": "active", "items": {"data": [&spelled, spelled]}}));
}

fn hold_of(object: &Value) {
    let plans: PricePlans = [("price_mapped".to_owned(), "pro".to_owned())].into_iter().collect();
    let project = |object: &Value| Subscription::project(&object.into(), &plans);
    let Ok(subscription) = project(object) else {
        let has = |name: &str| object[name].as_str().is_some_and(|text| (1..=255).contains(&text.len()));
        assert!(!(has("id") && has("status")), "refused, but it has an id and a status: {object}");
        return;
    };
    hold_columns(&subscription, object);
    let text = object.to_string();
    let read: Value = serde_json::from_str(&text).expect("JSON is read back");
    assert_eq!(project(&read).as_ref().ok(), Some(&subscription), "{text}");
    let mut more = object.clone();
    more["something_new"] = json!({"id": "price_mapped", "quantity": 77});
    assert_eq!(project(&more).as_ref().ok(), Some(&subscription), "a new field changes: {text}");
    let deleted = subscription.clone().deleted();
    assert!(Subscription::is_final(&deleted.status));
    assert_eq!(Subscription { status: subscription.status.clone(), ..deleted }, subscription);
}

fn hold_columns(subscription: &Subscription, object: &Value) {
    assert_eq!(Some(&*subscription.id), object["id"].as_str(), "{object}");
    assert_eq!(Some(&*subscription.status), object["status"].as_str(), "{object}");
    for id in [&subscription.customer_id, &subscription.price_id].into_iter().filter_map(|id| id.as_deref()) {
        assert!(!id.is_empty() && id.len() <= 255, "{id}");
        assert!(json::has_text(object, id), "{id} is not in {object}");
    }
    match &subscription.plan_name {
        PlanName::Mapped(plan) => assert!(plan == "pro" && json::has_text(object, "price_mapped"), "{object}"),
        PlanName::LookupKey(key) => assert!(json::has_text(object, key), "{key} is not in {object}"),
        PlanName::Unnamed | PlanName::Unknown => {}
    }
    if let Some(seats) = subscription.seat_limit {
        assert!(json::has_number(object, seats.into()), "{seats} is not in {object}");
    }
    let period = [subscription.current_period_start, subscription.current_period_end];
    let ends = [subscription.cancel_at, subscription.canceled_at, subscription.ended_at, subscription.trial_end];
    for time in period.into_iter().chain(ends).flatten() {
        assert!(json::has_number(object, time.timestamp()), "{time} is not in {object}");
        // A timestamptz begins in 4714 BC.
        assert!(time.timestamp() >= -210_866_803_200, "{time}");
    }
    assert_eq!(subscription.cancel_at_period_end, object["cancel_at_period_end"] == true);
    assert_eq!(subscription.paused_collection, !object["pause_collection"].is_null());
}
