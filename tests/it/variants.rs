//! What a payload may say otherwise, column by column: what is absent, odd, expanded, huge or hostile.

use serde_json::{Value, json};

use crate::support::events::{checkout, completed, created, subscription, updated};
use crate::support::{Event, Settings, TestApp, fixture, fixture_json};

/// An id, or that within the expanded object.
fn id(value: &Value) -> &str {
    value.get("id").unwrap_or(value).as_str().unwrap()
}

/// Delivers a fixture to an account that has its customer, and returns the subscription's row.
async fn row_after(app: &TestApp, event: &Event) -> Value {
    app.account_of(id(&event.object()["customer"])).await;
    let answer = app.deliver(event).await;
    assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{event}: {answer:?}");
    app.subscription(id(event.object())).await
}

#[track_caller]
fn check(name: &str, row: &Value, expected: Value) {
    for (column, expected) in expected.as_object().unwrap() {
        assert_eq!(&row[column], expected, "{column} after {name}: {row:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_absent_or_out_of_range_is_null() {
    let app = TestApp::start().await;
    let no_item = json!({"seat_limit": null, "stripe_price_id": null, "plan": null, "status": "active"});
    let no_times = json!({"current_period_start": null, "current_period_end": null, "cancel_at": null,
                          "canceled_at": null, "ended_at": null, "trial_end": null, "seat_limit": 5});
    let no_seats = || json!({"seat_limit": null});
    let variants = [
        ("classic/customer.subscription.created.metered", no_seats()),
        ("basil/customer.subscription.created.metered_meter", no_seats()),
        ("basil/customer.subscription.updated.quantity_over_int32", no_seats()),
        ("basil/customer.subscription.updated.quantity_over_int64", no_seats()),
        ("basil/customer.subscription.updated.quantity_zero", json!({"seat_limit": 0})),
        ("classic/customer.subscription.updated.no_items", no_item.clone()),
        ("basil/customer.subscription.updated.no_items", no_item),
        ("classic/customer.subscription.updated.timestamps_huge", no_times.clone()),
        ("basil/customer.subscription.updated.timestamps_huge", no_times),
        (
            "classic/customer.subscription.updated.timestamps_odd",
            json!({"cancel_at": "1969-12-31T23:59:59+00:00", "current_period_end": "1970-01-01T00:00:00+00:00"}),
        ),
    ];
    for (name, expected) in variants {
        let row = row_after(&app, &fixture(name)).await;
        check(name, &row, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_is_kept_as_it_is() {
    let app = TestApp::start().await;
    let variants = [
        ("basil/customer.subscription.updated.unknown_status", json!({"status": "hibernating"})),
        ("classic/customer.subscription.updated.unpaid", json!({"status": "unpaid"})),
        ("basil/customer.subscription.updated.incomplete_expired", json!({"status": "incomplete_expired"})),
        (
            "classic/customer.subscription.updated.pause_collection",
            json!({"status": "active", "paused_collection": true}),
        ),
        (
            "basil/customer.subscription.updated.pause_collection",
            json!({"status": "active", "paused_collection": true}),
        ),
        ("basil/customer.subscription.updated.cancel_at_period_end", json!({"cancel_at_period_end": true})),
        ("classic/customer.subscription.updated.cancel_at_period_end", json!({"cancel_at_period_end": true})),
        ("basil/customer.subscription.updated.cancel_at_date", json!({"cancel_at_period_end": false})),
    ];
    for (name, expected) in variants {
        let event = fixture(name);
        let row = row_after(&app, &event).await;
        check(name, &row, expected);
        for column in ["cancel_at", "canceled_at", "ended_at", "trial_end"] {
            assert_eq!(row[column], crate::model::time(&event.object()[column]), "{column} after {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_item_names_plan_price_seats_and_period() {
    for shape in ["classic", "basil"] {
        let event = fixture(&format!("{shape}/customer.subscription.updated.several_items"));
        let items = event.object()["items"]["data"].as_array().unwrap().clone();
        let prices: Vec<&'static str> =
            items.iter().map(|item| &*item["price"]["id"].as_str().unwrap().to_owned().leak()).collect();
        // None is mapped: the first. The second and third are: the second. Only the third, which is metered.
        let maps = [
            (vec![], 0, prices[0]),
            (vec![(prices[1], "team"), (prices[2], "usage")], 1, "team"),
            (vec![(prices[2], "usage"), ("price_else", "else")], 2, "usage"),
        ];
        for (price_plans, position, plan) in maps {
            let app = TestApp::start_with(Settings { price_plans, ..Settings::default() }, None).await;
            let row = row_after(&app, &event).await;
            let item = &items[position];
            let holder = if shape == "basil" { item } else { event.object() };
            check(
                shape,
                &row,
                json!({
                    "plan": plan,
                    "stripe_price_id": prices[position],
                    "seat_limit": item.get("quantity"),
                    "current_period_start": crate::model::time(&holder["current_period_start"]),
                    "current_period_end": crate::model::time(&holder["current_period_end"]),
                }),
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_named_by_price_plans_then_lookup_key_then_local_plan_then_price() {
    for shape in ["classic", "basil", "endive"] {
        let event = fixture(&format!("{shape}/customer.subscription.created.lookup_key"));
        let price = &event.object()["items"]["data"][0]["price"];
        let price_id: &'static str = price["id"].as_str().unwrap().to_owned().leak();
        for price_plans in [vec![], vec![(price_id, "mapped")]] {
            let expected = if price_plans.is_empty() { price["lookup_key"].clone() } else { json!("mapped") };
            let app = TestApp::start_with(Settings { price_plans, ..Settings::default() }, None).await;
            let account = app.account_of(id(&event.object()["customer"])).await;
            // Older than the subscription, which takes it over.
            let local = app.local_trial(account).await;
            let backdate = "UPDATE subscriptions SET created_at = '2020-01-01' WHERE id = $1";
            app.sql.execute(backdate, &[&local]).await.unwrap();
            app.deliver(&event).await;
            let row = app.subscription(id(event.object())).await;
            assert_eq!(row["id"], json!(local), "{shape}: taken over");
            assert_eq!(row["plan"], expected, "{shape}");
            assert_eq!(app.one("SELECT local_plan FROM accounts").await.get::<_, &str>(0), "trial", "{shape}");
            // Without a name of its own, a second subscription has the account's local plan.
            let other = subscription("sub_other", id(&event.object()["customer"]), "active", 1);
            app.deliver(created("evt_other", 100, other)).await;
            assert_eq!(app.subscription("sub_other").await["plan"], "trial", "{shape}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_may_be_expanded_objects() {
    let app = TestApp::start().await;
    let event = fixture("basil/customer.subscription.updated.expanded");
    let row = row_after(&app, &event).await;
    check("expanded", &row, json!({"seat_limit": 5, "status": "active"}));
    let recorded = app.event_row(event.id()).await;
    assert_eq!(recorded["customer_id"], id(&event.object()["customer"]));

    for name in ["basil/invoice.paid.expanded", "classic/invoice.payment_failed.expanded"] {
        let event = fixture(name);
        let of = event.object();
        let subscription_of = [&of["subscription"], &of["parent"]["subscription_details"]["subscription"]];
        let subscription_id = id(subscription_of.into_iter().find(|found| found.is_object()).unwrap());
        let customer = id(&of["customer"]);
        app.account_of(customer).await;
        app.deliver(created(&format!("evt_{name}"), 100, subscription(subscription_id, customer, "active", 1))).await;
        assert_eq!(app.deliver(&event).await.outcome(), "applied", "{name}");
        assert_eq!(app.subscription(subscription_id).await["latest_invoice_id"], of["id"], "{name}");
    }

    let event = fixture("classic/checkout.session.completed.expanded");
    let customer = id(&event.object()["customer"]);
    let account = event.object()["client_reference_id"].as_str().unwrap().to_owned();
    app.create_account(json!({"id": account, "name": "Acme"})).await;
    assert_eq!(app.deliver(&event).await.outcome(), "applied");
    let view = app.get(&format!("/api/v1/accounts/{account}")).await.body;
    assert_eq!(view["stripe_customer_ids"], json!([customer]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_around_the_object_may_be_old_new_or_absent() {
    let app = TestApp::start().await;
    let ancient = fixture("ancient/customer.subscription.updated.request_string");
    assert!(ancient.0["request"].is_string());
    row_after(&app, &ancient).await;
    for name in
        ["ancient/customer.subscription.updated.no_api_version", "classic/customer.subscription.updated.no_api_version"]
    {
        let event = fixture(name);
        row_after(&app, &event).await;
        let recorded = app.event_row(event.id()).await;
        assert_eq!((&recorded["api_version"], &recorded["outcome"]), (&Value::Null, &json!("applied")), "{name}");
    }
    row_after(&app, &fixture("basil/customer.subscription.updated.no_request")).await;
    for name in ["classic/customer.subscription.updated.connect", "basil/customer.subscription.updated.connect"] {
        let event = fixture(name);
        row_after(&app, &event).await;
        let recorded = app.event_row(event.id()).await;
        assert!(recorded["connect_account"].as_str().is_some_and(|account| account.starts_with("acct_")), "{name}");
        assert_eq!(recorded["connect_account"], event.0["account"], "{name}");
        assert_eq!(app.get(&format!("/events/{}", event.id())).await.body["connect_account"], event.0["account"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_no_handler_is_recorded_and_ignored() {
    let app = TestApp::start().await;
    let names = [
        "thin/v1.billing.meter.no_meter_found",
        "thin/v2.core.account.updated",
        "classic/invoice.paid.one_off",
        "basil/invoice.paid.quote_parent",
        "classic/checkout.session.completed.payment_mode",
        "basil/checkout.session.completed.setup_mode",
        "classic/invoice.upcoming",
        "endive/customer.deleted",
    ];
    for name in names {
        let event = fixture(name);
        assert_eq!(app.deliver(&event).await.outcome(), "ignored", "{name}");
        let row = app.event_row(event.id()).await;
        assert_eq!((&row["outcome"], &row["payload"]), (&json!("ignored"), &event.0), "{name}");
        assert_ne!(row["created"], Value::Null, "{name}");
    }
    let thin = app.event_row(fixture(names[0]).id()).await;
    assert_eq!(thin["created"], "2026-10-31T23:59:59+00:00");
    assert_eq!(app.count("subscriptions").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_jsonb_cannot_hold_is_replaced_and_all_else_is_kept() {
    let app = TestApp::start().await;
    let event = fixture("basil/customer.subscription.updated.metadata_hostile");
    row_after(&app, &event).await;
    let mut expected = event.0.clone();
    let metadata = expected["data"]["object"]["metadata"].as_object_mut().unwrap();
    metadata.insert("nul".into(), json!("before\u{fffd}after"));
    let value = metadata.remove("ke\u{0}y").unwrap();
    metadata.insert("ke\u{fffd}y".into(), value);
    assert_eq!(app.event_row(event.id()).await["payload"], expected);
    assert_eq!(app.get(&format!("/events/{}", event.id())).await.body["payload"], expected);

    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/basil/customer.subscription.updated.metadata_lone_surrogate.json"
    );
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(app.deliver_bytes(bytes.clone()).await.outcome(), "parked");
    assert_eq!(app.deliver_bytes(bytes).await.outcome(), "duplicate");
    let notes =
        app.json("SELECT payload #> '{data,object,metadata,note}' FROM stripe_events WHERE outcome = 'parked'", &[]);
    assert_eq!(notes.await, ["\u{fffd}"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_a_usable_time_fails_clearly_and_never_wraps() {
    let app = TestApp::start().await;
    let event = Event(fixture_json("basil/customer.subscription.updated.created_huge"));
    app.account_of(id(&event.object()["customer"])).await;
    for attempt in 1..=2 {
        let answer = app.deliver(&event).await;
        assert_eq!((answer.status, answer.error_code()), (500, "event_failed"));
        let shown = app.get(&format!("/events/{}", event.id())).await.body;
        assert_eq!((&shown["status"], &shown["created"]), (&json!("failed"), &Value::Null));
        assert_eq!(shown["failures"].as_array().unwrap().len(), attempt);
        assert!(shown["failures"][0]["error"].as_str().unwrap().contains("created"), "{shown:#}");
    }
    assert_eq!(app.count("subscriptions").await + app.count("stripe_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_deep_payloads_are_taken() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let mut object = subscription("sub_1", "cus_1", "active", 5);
    object["metadata"]["note"] = json!("é\"\\".repeat(150_000));
    let large = updated("evt_large", 100, object);
    let bytes = large.to_string().into_bytes();
    assert!((900_000..1_048_576).contains(&bytes.len()), "{}", bytes.len());
    assert_eq!(app.deliver_bytes(bytes).await.outcome(), "applied");
    assert_eq!(app.event_row("evt_large").await["payload"], large.0);

    let nested = |depth: usize| (0..depth).fold(json!("core"), |inner, _| json!([inner]));
    let mut object = subscription("sub_1", "cus_1", "past_due", 5);
    object["deep"] = nested(100);
    assert_eq!(app.deliver(updated("evt_deep", 101, object)).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["status"], "past_due");
    // Deeper than anything of Stripe's: refused, not a crash.
    let text = updated("evt_abyss", 102, json!({"id": "sub_1"})).to_string();
    let abyss =
        text.replacen("\"sub_1\"", &format!("\"sub_1\",\"deep\":{}{}", "[".repeat(200_000), "]".repeat(200_000)), 1);
    let refused = app.deliver_bytes(abyss.into_bytes()).await;
    assert_eq!((refused.status, refused.error_code()), (400, "invalid_payload"));
    assert_eq!(app.deliver(completed("evt_after", 103, checkout("cus_1", "sub_1", None))).await.outcome(), "applied");
}
