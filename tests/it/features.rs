//! Stripe's entitlements: the features of a customer, and so of an account.

use serde_json::{Value, json};

use crate::support::stripe::StripeApi;
use crate::support::{Event, Settings, TestApp};

const SUMMARY: &str = "entitlements.active_entitlement_summary.updated";

/// An event whose object has no id, as Stripe sends it.
fn summary(id: &str, second: i64, customer: &str, keys: &[&str], has_more: bool) -> Event {
    let object = json!({
        "object": "entitlements.active_entitlement_summary",
        "customer": customer,
        "entitlements": {
            "object": "list",
            "data": entitlements(keys),
            "has_more": has_more,
            "url": "/v1/customer/cus_1/entitlements",
        },
        "livemode": false,
    });
    Event::new(id, SUMMARY, second, object)
}

fn entitlements(keys: &[&str]) -> Vec<Value> {
    let one = |key: &&str| {
        json!({"id": format!("ent_{key}"), "object": "entitlements.active_entitlement", "livemode": false,
               "feature": format!("feat_{key}"), "lookup_key": key})
    };
    keys.iter().map(one).collect()
}

async fn features(app: &TestApp, account: uuid::Uuid) -> Value {
    app.get(&format!("/api/v1/accounts/{account}")).await.body["features"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_features_of_the_latest_event_replace_all_others_in_every_order() {
    let events = [
        summary("evt_1", 100, "cus_1", &["sso"], false),
        summary("evt_2", 200, "cus_1", &["audit", "sso"], false),
        summary("evt_3", 300, "cus_1", &["audit", "export"], false),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let app = TestApp::start().await;
        let account = app.account_of("cus_1").await;
        for (index, event) in order.into_iter().enumerate() {
            let is_newest = order[..index].iter().all(|earlier| *earlier < event);
            let outcome = if is_newest { "applied" } else { "stale" };
            assert_eq!(app.deliver(&events[event]).await.outcome(), outcome, "{order:?}");
            assert_eq!(app.deliver(&events[event]).await.outcome(), "duplicate");
        }
        assert_eq!(features(&app, account).await, json!(["audit", "export"]), "{order:?}");
        let rows = app.sql.query("SELECT lookup_key, feature_id FROM customer_features ORDER BY 1", &[]).await.unwrap();
        let rows: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(
            rows,
            [("audit", "feat_audit"), ("export", "feat_export")].map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
        let none = summary("evt_4", 400, "cus_1", &[], false);
        assert_eq!(app.deliver(&none).await.outcome(), "applied");
        assert_eq!(features(&app, account).await, json!([]));
        assert_eq!(app.deliver(summary("evt_0", 350, "cus_1", &["old"], false)).await.outcome(), "stale");
        assert_eq!(features(&app, account).await, json!([]), "an empty list is a state, too");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_customer_that_is_linked_nowhere_is_parked_until_it_is() {
    let app = TestApp::start().await;
    assert_eq!(app.deliver(summary("evt_1", 100, "cus_1", &["sso"], false)).await.outcome(), "parked");
    assert_eq!(app.sql.query("SELECT FROM customer_features", &[]).await.unwrap().len(), 0);
    let body = json!({"name": "Acme", "stripe_customer_id": "cus_1"});
    let account = app.create_account(body).await.body["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(features(&app, account).await, json!(["sso"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_features_of_all_customers_of_an_account_are_the_accounts() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.sql
        .execute("INSERT INTO account_customers (stripe_customer_id, account_id) VALUES ('cus_2', $1)", &[&account])
        .await
        .unwrap();
    app.deliver(summary("evt_1", 100, "cus_1", &["sso", "audit"], false)).await;
    app.deliver(summary("evt_2", 100, "cus_2", &["sso", "export"], false)).await;
    assert_eq!(features(&app, account).await, json!(["audit", "export", "sso"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_the_newcomer_of_one_second_wins() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.deliver(summary("evt_1", 100, "cus_1", &["sso"], false)).await;
    assert_eq!(app.deliver(summary("evt_2", 100, "cus_1", &["audit"], true)).await.outcome(), "applied");
    assert_eq!(features(&app, account).await, json!(["audit"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_stripe_is_asked_about_one_second_and_about_more_than_ten() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&stripe)).await;
    let account = app.account_of("cus_1").await;
    let keys: Vec<String> = (100..250).map(|number| format!("key_{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    stripe.lists_active_entitlements(entitlements(&keys));
    assert_eq!(app.deliver(summary("evt_1", 100, "cus_1", &keys[..10], true)).await.outcome(), "applied");
    assert_eq!(features(&app, account).await, json!(keys));
    // Two of one second: whichever comes last, the account has what Stripe says.
    stripe.lists_active_entitlements(entitlements(&["sso"]));
    app.deliver(summary("evt_2", 200, "cus_1", &["sso"], false)).await;
    app.deliver(summary("evt_3", 200, "cus_1", &["sso", "audit"], false)).await;
    assert_eq!(features(&app, account).await, json!(["sso"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_breaks_off_replaces_no_features() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&stripe)).await;
    let account = app.account_of("cus_1").await;
    app.deliver(summary("evt_1", 100, "cus_1", &["sso"], false)).await;
    let page =
        |keys: &[&str], has_more: bool| json!({"object": "list", "data": entitlements(keys), "has_more": has_more});
    for pages in [vec![page(&[], true)], vec![page(&["audit"], true), page(&["audit"], true)]] {
        stripe.queue_pages(&pages);
        assert_eq!(app.deliver(summary("evt_2", 200, "cus_1", &["audit"], true)).await.status, 503, "{pages:?}");
        assert_eq!(features(&app, account).await, json!(["sso"]));
    }
}
