//! Personal data: payloads that are stored without it, and customers who are erased.

use serde_json::{Value, json};
use subledger::stripe::redact::StoredPayloads;

use crate::support::events::subscription;
use crate::support::{Event, Settings, TestApp, fixture, job};

const PERSONAL: [&str; 4] = ["Jo Doe", "jo@example.com", "1 Main St", "4242"];

/// A subscription that shows its customer and how it is paid.
fn expanded(id: &str, quantity: i64) -> Value {
    let mut object = subscription(id, "cus_1", "active", quantity);
    object["customer"] = json!({"id": "cus_1", "object": "customer", "name": "Jo Doe", "email": "jo@example.com",
        "address": {"line1": "1 Main St"}, "metadata": {}});
    object["default_payment_method"] = json!({"id": "pm_1", "object": "payment_method", "type": "card",
        "card": {"last4": "4242"}, "billing_details": {"name": "Jo Doe"}});
    object["description"] = json!("for Jo Doe");
    object
}

fn updated(id: &str, second: i64, object: Value) -> Event {
    Event::new(id, "customer.subscription.updated", second, object)
}

async fn redacting() -> TestApp {
    TestApp::start_with(Settings { stored_payloads: StoredPayloads::Redacted, ..Settings::default() }, None).await
}

/// Everything that is stored in payloads.
async fn stored(app: &TestApp) -> String {
    let query = "SELECT to_jsonb(coalesce(string_agg(payload::text, ' '), '')) FROM
                 (SELECT payload FROM stripe_events UNION ALL SELECT payload FROM event_failures) AS stored";
    app.json(query, &[]).await[0].as_str().unwrap().to_owned()
}

#[track_caller]
fn is_clean(stored: &str) {
    PERSONAL.iter().for_each(|personal| assert!(!stored.contains(personal), "{personal} is in {stored}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn redacted_payloads_hold_no_personal_data_and_replay_to_the_same_row() {
    let (redacting, full) = (redacting().await, TestApp::start().await);
    let event = updated("evt_1", 100, expanded("sub_1", 3));
    for app in [&redacting, &full] {
        assert_eq!(app.deliver(&event).await.outcome(), "parked");
        app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 9)").await;
    }
    is_clean(&stored(&redacting).await);
    assert!(stored(&full).await.contains("Jo Doe"));
    for app in [&redacting, &full] {
        app.account_of("cus_1").await;
        job::run(app, None, &["replay", "--parked"]).await.ends_with(0);
        assert_eq!(app.deliver(updated("evt_2", 200, expanded("sub_1", 9))).await.status, 500);
    }
    is_clean(&stored(&redacting).await);
    assert_eq!(redacting.count("event_failures").await, 1);
    let row = async |app: &TestApp| {
        app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
        let mut command = job::command(app, None, &["replay", "--failed"]);
        let form = if std::ptr::eq(app, &redacting) { "redacted" } else { "full" };
        job::wait(command.env("STORED_PAYLOADS", form).spawn().unwrap()).await.ends_with(0);
        let mut row = app.subscription("sub_1").await;
        for own in ["id", "account_id", "created_at", "updated_at"] {
            row[own].take();
        }
        row
    };
    let rows = (row(&redacting).await, row(&full).await);
    assert_eq!(rows.0, rows.1);
    assert_eq!((&rows.0["seat_limit"], &rows.0["last_event_id"]), (&json!(9), &json!("evt_2")));
    is_clean(&stored(&redacting).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn ties_come_to_the_same_from_redacted_payloads() {
    // The first changes the seats and the text, the second the seats alone: by their former values it follows.
    let tie = |description: &str| {
        let (mut first, mut second) = (expanded("sub_1", 2), expanded("sub_1", 3));
        first["description"] = json!(description);
        second["description"] = json!(description);
        let was = |seats: i64| json!({"items": {"data": [{"quantity": seats}]}, "description": "for Jo"});
        [updated("evt_1", 100, first).with_previous(was(1)), updated("evt_2", 100, second).with_previous(was(2))]
    };
    for order in [[0, 1], [1, 0]] {
        let mut rows = Vec::new();
        for app in [redacting().await, TestApp::start().await] {
            app.account_of("cus_1").await;
            let events = tie("for Jo Doe");
            for index in order {
                app.deliver(&events[index]).await;
            }
            rows.push(app.subscription("sub_1").await["seat_limit"].clone());
        }
        assert_eq!(rows, [3, 3], "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_is_erased_from_everything_and_nobody_else_is() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.account_of("cus_2").await;
    app.deliver(updated("evt_1", 100, expanded("sub_1", 1))).await;
    let customer = json!({"id": "cus_1", "object": "customer", "name": "Jo Doe", "email": "jo@example.com"});
    app.deliver(Event::new("evt_2", "customer.updated", 101, customer)).await;
    let invoice = json!({"id": "in_1", "object": "invoice", "customer": "cus_1", "subscription": "sub_1",
        "customer_name": "Jo Doe", "customer_email": "jo@example.com", "hosted_invoice_url": "https://invoice.example/1"});
    app.deliver(Event::new("evt_3", "invoice.paid", 102, invoice)).await;
    let other = json!({"id": "cus_2", "object": "customer", "name": "Jo Doe", "email": "jo@example.com"});
    app.deliver(Event::new("evt_4", "customer.updated", 103, other)).await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 9)").await;
    assert_eq!(app.deliver(updated("evt_5", 104, expanded("sub_1", 9))).await.status, 500);
    let url = |id: &str| format!("https://invoice.example/{id}");
    let mut others = subscription("sub_2", "cus_2", "active", 1);
    others["latest_invoice"] = json!("in_2");
    app.deliver(updated("evt_6", 105, others)).await;
    let invoice = json!({"id": "in_2", "object": "invoice", "customer": "cus_2", "subscription": "sub_2",
        "hosted_invoice_url": url("2")});
    app.deliver(Event::new("evt_7", "invoice.paid", 106, invoice)).await;
    let others = app.subscription("sub_2").await;
    assert_eq!(others["latest_invoice_url"], url("2"));
    let last_change = app.one("SELECT max(id) FROM subscription_changes").await.get::<_, i64>(0);
    let row = app.subscription("sub_1").await;
    assert_eq!(row["latest_invoice_url"], url("1"));

    let ran = job::run(&app, None, &["erase", "--customer", "cus_1"]).await;
    ran.ends_with(0);
    assert!(ran.out.contains("3 events, 1 failed attempts, 1 subscriptions, 1 changes"), "{}", ran.out);
    assert!(app.event_row("evt_4").await["payload"].to_string().contains("Jo Doe"));
    assert!(app.event_row("evt_7").await["payload"].to_string().contains(&url("2")));
    app.execute("DELETE FROM stripe_events WHERE customer_id = 'cus_2'").await;
    let left = stored(&app).await;
    is_clean(&left);
    assert!(!left.contains("invoice.example"), "{left}");
    let mut expected = row;
    let now = app.subscription("sub_1").await;
    expected["latest_invoice_url"] = Value::Null;
    expected["updated_at"] = now["updated_at"].clone();
    assert_eq!(now, expected);
    assert_eq!(app.subscription("sub_2").await, others);

    // It is announced as any change of a row is, and neither it nor an earlier change shows the page.
    let announced = app.get(&format!("/api/v1/changes?after={last_change}&wait=20")).await.body;
    let [change] = announced["data"].as_array().unwrap().as_slice() else { panic!("{announced}") };
    assert_eq!(
        (&change["stripe_subscription_id"], &change["event_id"], &change["kinds"]),
        (&json!("sub_1"), &Value::Null, &json!(["invoice_changed"]))
    );
    let shown = "SELECT jsonb_agg(to_jsonb(change)) FROM subscription_changes change WHERE stripe_subscription_id = $1";
    let of_one = app.json(shown, &[&"sub_1"]).await.remove(0);
    assert_eq!(of_one.as_array().unwrap().len(), 3, "{of_one}");
    assert!(!of_one.to_string().contains("invoice.example"), "{of_one}");
    assert_eq!(of_one[2]["after"]["latest_invoice_id"], "in_1");
    assert!(app.json(shown, &[&"sub_2"]).await[0].to_string().contains(&url("2")));
    let again = job::run(&app, None, &["erase", "--customer", "cus_1"]).await;
    assert!(again.out.contains("0 subscriptions, 0 changes"), "{}", again.out);
    assert_eq!(app.count("subscription_changes WHERE stripe_subscription_id = 'sub_1'").await, 3, "nothing changed");

    // What it is kept for: a second delivery is a duplicate, and the failed one can be replayed.
    assert_eq!(app.deliver(updated("evt_1", 100, expanded("sub_1", 1))).await.outcome(), "duplicate");
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    job::run(&app, None, &["replay", "--failed"]).await.ends_with(0);
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 9);
    let again = job::run(&app, None, &["erase", "--customer", "cus_9"]).await;
    again.ends_with(0);
    job::run(&app, None, &["erase", "--customer", "Jo Doe"]).await.ends_with(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn erasing_is_one_transaction() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.deliver(updated("evt_1", 100, expanded("sub_1", 1))).await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 9)").await;
    app.deliver(updated("evt_2", 101, expanded("sub_1", 9))).await;
    let before = stored(&app).await;
    // The failed attempts come after the events.
    app.execute("ALTER TABLE event_failures ADD CONSTRAINT as_it_is CHECK (payload::text LIKE '%Jo Doe%')").await;
    job::run(&app, None, &["erase", "--customer", "cus_1"]).await.ends_with(1);
    assert_eq!(stored(&app).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn fixtures_are_stored_without_the_names_in_them() {
    let app = redacting().await;
    for name in ["basil/invoice.paid", "basil/checkout.session.completed", "classic/invoice.payment_failed.expanded"] {
        let event = fixture(name);
        assert_eq!(app.deliver(&event).await.status, 200, "{name}");
    }
    let stored = stored(&app).await;
    for personal in ["Harbour", "billing@"] {
        assert!(!stored.contains(personal), "{personal} is in {stored}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tax_ids_are_stored_without_their_values_and_erased() {
    let tax_id =
        json!({"id": "txi_1", "object": "tax_id", "customer": "cus_1", "type": "eu_vat", "value": "DE123456789"});
    let customer = json!({"id": "cus_1", "object": "customer",
        "tax_ids": {"object": "list", "data": [tax_id, {"type": "eu_vat", "value": "DE123456789"}], "has_more": false}});
    for (app, is_redacting) in [(redacting().await, true), (TestApp::start().await, false)] {
        app.deliver(Event::new("evt_1", "customer.tax_id.created", 100, tax_id.clone())).await;
        app.deliver(Event::new("evt_2", "customer.updated", 101, customer.clone())).await;
        assert_eq!(stored(&app).await.contains("DE123456789"), !is_redacting);
        job::run(&app, None, &["erase", "--customer", "cus_1"]).await.ends_with(0);
        let left = stored(&app).await;
        assert!(left.contains("txi_1") && left.contains("eu_vat") && !left.contains("DE123456789"), "{left}");
    }
}
