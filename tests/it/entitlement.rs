//! What an account is entitled to: whether, why, since which event, which plan, how many seats, until when.

use serde_json::{Value, json};

use crate::support::events::{created, deleted, subscription, updated};
use crate::support::{Settings, TestApp};

async fn entitlement(app: &TestApp, account: uuid::Uuid) -> Value {
    app.get(&format!("/api/v1/accounts/{account}")).await.body["entitlement"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn active_trialing_and_past_due_entitle_and_nothing_else_does() {
    let app = TestApp::start().await;
    let statuses = [
        ("active", true),
        ("trialing", true),
        ("past_due", true),
        ("unpaid", false),
        ("paused", false),
        ("incomplete", false),
        ("incomplete_expired", false),
        ("canceled", false),
        ("hibernating", false),
    ];
    for (number, (status, is_entitled)) in statuses.into_iter().enumerate() {
        let (customer, id) = (format!("cus_{number}"), format!("sub_{number}"));
        let account = app.account_of(&customer).await;
        app.deliver(created(&format!("evt_{number}"), 100, subscription(&id, &customer, status, 5))).await;
        let expected = json!({
            "entitled": is_entitled,
            "reason": format!("subscription {id} is {status}"),
            "plan": is_entitled.then_some("price_team"),
            "seat_limit": is_entitled.then_some(5),
            "until": is_entitled.then_some("2025-11-08T11:06:40Z"),
            "since_event": format!("evt_{number}"),
        });
        assert_eq!(entitlement(&app, account).await, expected, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_subscriptions_the_best_counts_and_a_local_trial_entitles_too() {
    let settings = Settings { price_plans: vec![("price_team", "team")], ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let account = app.account_of("cus_1").await;
    app.local_trial(account).await;
    let trial = entitlement(&app, account).await;
    assert_eq!((&trial["entitled"], &trial["plan"]), (&json!(true), &json!("trial")));
    assert_eq!((&trial["since_event"], &trial["until"]), (&Value::Null, &Value::Null));

    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "past_due", 1))).await;
    app.deliver(created("evt_2", 100, subscription("sub_2", "cus_1", "active", 2))).await;
    app.deliver(created("evt_3", 900, subscription("sub_3", "cus_1", "unpaid", 3))).await;
    let best = entitlement(&app, account).await;
    assert_eq!(
        (&best["since_event"], &best["seat_limit"], &best["plan"]),
        (&json!("evt_2"), &json!(2), &json!("team"))
    );

    app.deliver(deleted("evt_4", 200, subscription("sub_2", "cus_1", "canceled", 2))).await;
    let next = entitlement(&app, account).await;
    assert_eq!((&next["since_event"], &next["reason"]), (&json!("evt_1"), &json!("subscription sub_1 is past_due")));

    app.deliver(deleted("evt_5", 1000, subscription("sub_1", "cus_1", "canceled", 1))).await;
    let none = entitlement(&app, account).await;
    assert_eq!(
        (&none["entitled"], &none["plan"], &none["since_event"]),
        (&json!(false), &Value::Null, &json!("evt_5"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_is_to_come_bounds_the_entitlement() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    let mut object = subscription("sub_1", "cus_1", "active", 1);
    object["cancel_at"] = json!(1_761_000_000);
    app.deliver(updated("evt_1", 100, object.clone())).await;
    assert_eq!(entitlement(&app, account).await["until"], "2025-10-20T22:40:00Z");
    object["cancel_at"] = json!(1_999_000_000);
    app.deliver(updated("evt_2", 101, object.clone())).await;
    assert_eq!(entitlement(&app, account).await["until"], "2025-11-08T11:06:40Z");
    // An invoice or a stale event leaves it as it is.
    app.deliver(updated("evt_0", 99, object)).await;
    assert_eq!(entitlement(&app, account).await["since_event"], "evt_2");
}
