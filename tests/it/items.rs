//! Items of a subscription: all of them in `items` and `subscription_items`, read from Stripe where an event shows only
//! some, and the one that names the plan.

use serde_json::{Value, json};

use crate::support::events::{created, subscription, updated};
use crate::support::stripe::StripeApi;
use crate::support::{Settings, TestApp};

fn item(id: &str, price: &str, product: &str, quantity: i64, period_end: i64) -> Value {
    json!({
        "id": id, "object": "subscription_item", "quantity": quantity, "current_period_start": 1_761_000_000,
        "current_period_end": period_end,
        "price": {"id": price, "object": "price", "product": product, "currency": "usd", "unit_amount": 1200,
                  "lookup_key": null, "recurring": {"interval": "month", "interval_count": 3, "usage_type": "licensed"}},
    })
}

fn with_items(items: Value, has_more: bool) -> Value {
    let mut object = subscription("sub_1", "cus_1", "active", 1);
    object["items"] = json!({"object": "list", "data": items, "has_more": has_more});
    object
}

fn mapped() -> Settings {
    Settings { price_plans: vec![("prod_pro", "pro")], ..Settings::default() }
}

async fn items_of_the_view(app: &TestApp) -> Vec<Value> {
    let query = "SELECT to_jsonb(i) FROM subscription_items i ORDER BY stripe_item_id";
    app.sql.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_item_is_a_row_of_the_view_and_a_product_names_the_plan() {
    let app = TestApp::start_with(mapped(), None).await;
    let account = app.account_of("cus_1").await;
    let items = json!([
        item("si_1", "price_addon", "prod_addon", 2, 1_762_000_000),
        item("si_2", "price_pro", "prod_pro", 5, 1_769_000_000)
    ]);
    app.deliver(created("evt_1", 100, with_items(items, false))).await;
    let row = app.subscription("sub_1").await;
    let expected = json!({
        "plan": "pro", "plan_source": "price_plans", "stripe_price_id": "price_pro", "seat_limit": 5,
        "items_complete": true, "current_period_end": "2026-01-21T12:53:20+00:00",
    });
    for (column, expected) in expected.as_object().unwrap() {
        assert_eq!(&row[column], expected, "{column}");
    }
    let second = json!({
        "subscription_id": row["id"], "account_id": account, "stripe_item_id": "si_2", "stripe_price_id": "price_pro",
        "stripe_product_id": "prod_pro", "lookup_key": null, "plan": "pro", "quantity": 5, "usage_type": "licensed",
        "unit_amount": 1200, "currency": "usd", "interval": "month", "interval_count": 3,
        "current_period_start": "2025-10-20T22:40:00+00:00", "current_period_end": "2026-01-21T12:53:20+00:00",
    });
    let seen = items_of_the_view(&app).await;
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[1], second);
    assert_eq!(
        (&seen[0]["stripe_item_id"], &seen[0]["plan"], &seen[0]["quantity"]),
        (&json!("si_1"), &Value::Null, &json!(2))
    );
    let answered = app.get(&format!("/api/v1/accounts/{account}")).await.body["subscriptions"][0]["items"].clone();
    assert_eq!(answered[1]["current_period_end"], "2026-01-21T12:53:20Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn items_that_an_event_does_not_show_are_read_from_stripe() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(mapped(), Some(&stripe)).await;
    app.account_of("cus_1").await;
    let shown = item("si_1", "price_addon", "prod_addon", 2, 1_762_000_000);
    let pro = item("si_2", "price_pro", "prod_pro", 5, 1_769_000_000);
    stripe.lists_subscription_items(vec![shown.clone(), pro]);
    app.deliver(created("evt_1", 100, with_items(json!([shown]), true))).await;
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["plan"], &row["items_complete"], &row["seat_limit"]), (&json!("pro"), &json!(true), &json!(5)));
    assert_eq!(items_of_the_view(&app).await.len(), 2);
    let asked = stripe.listed();
    assert_eq!(asked[0].param("subscription"), Some("sub_1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_only_a_known_item_names_the_plan() {
    let app = TestApp::start_with(mapped(), None).await;
    app.account_of("cus_1").await;
    let addon = item("si_1", "price_addon", "prod_addon", 2, 1_762_000_000);
    app.deliver(created("evt_1", 100, with_items(json!([addon]), true))).await;
    let row = app.subscription("sub_1").await;
    assert_eq!(
        (&row["plan"], &row["plan_source"], &row["items_complete"]),
        (&Value::Null, &Value::Null, &json!(false))
    );
    let pro = item("si_2", "price_pro", "prod_pro", 5, 1_769_000_000);
    app.deliver(updated("evt_2", 101, with_items(json!([addon, pro]), true))).await;
    let row = app.subscription("sub_1").await;
    assert_eq!(
        (&row["plan"], &row["plan_source"], &row["items_complete"]),
        (&json!("pro"), &json!("price_plans"), &json!(false))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_breaks_off_is_not_taken_for_whole() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(mapped(), Some(&stripe)).await;
    app.account_of("cus_1").await;
    let shown = item("si_1", "price_addon", "prod_addon", 2, 1_762_000_000);
    let pro = item("si_2", "price_pro", "prod_pro", 5, 1_769_000_000);
    let page = |items: &[&Value], has_more: bool| json!({"object": "list", "data": items, "has_more": has_more});
    let event = created("evt_1", 100, with_items(json!([shown]), true));
    for pages in [
        vec![page(&[], true)],
        vec![page(&[&shown], true), page(&[], true)],
        vec![page(&[&shown], true), page(&[&shown], true)],
        vec![page(&[&shown], true), page(&[&shown], false)],
        vec![page(&[&json!({"object": "subscription_item"})], true)],
        vec![json!({"object": "list", "data": null, "has_more": false})],
        (0..50).map(|number| page(&[&item(&format!("si_{number}"), "price_1", "prod_1", 1, 1)], true)).collect(),
    ] {
        stripe.queue_pages(&pages);
        let answer = app.deliver(&event).await;
        assert_eq!((answer.status, answer.error_code()), (503, "unavailable"), "{pages:?}");
        assert_eq!(app.count("subscriptions").await, 0, "{pages:?}");
    }
    stripe.queue_pages(&[page(&[&shown], true), page(&[&pro], false)]);
    assert_eq!(app.deliver(&event).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["items_complete"], true);
    assert_eq!(items_of_the_view(&app).await.len(), 2);
}
