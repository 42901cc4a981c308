//! Every shape of Stripe's payloads: each fixture is taken, and whole lives end as they should.

use std::path::Path;

use serde_json::{Value, json};

use crate::model::time;
use crate::support::{Event, Settings, TestApp, fixture};

/// The events of the life that `classic`, `basil` and `endive` each hold, in Stripe's order.
const LIFE: [&str; 20] = [
    "customer.subscription.created",
    "customer.subscription.updated.active",
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "invoice.paid",
    "customer.subscription.updated.quantity",
    "customer.subscription.pending_update_applied",
    "customer.subscription.pending_update_expired",
    "customer.subscription.updated.renewal",
    "customer.subscription.updated.trial_granted",
    "customer.subscription.trial_will_end",
    "customer.subscription.updated.paused",
    "customer.subscription.paused",
    "customer.subscription.updated.resumed",
    "customer.subscription.resumed",
    "customer.subscription.updated.second_renewal",
    "invoice.payment_failed",
    "customer.subscription.updated.past_due",
    "customer.subscription.deleted",
    "customer.deleted",
];

/// The names and texts of every fixture of a shape.
fn all_of(shape: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(shape);
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = files
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    all.sort();
    all
}

async fn link(app: &TestApp, customer: &str) {
    let insert = "INSERT INTO accounts (stripe_customer_id) VALUES ($1) ON CONFLICT DO NOTHING";
    app.sql.execute(insert, &[&customer]).await.unwrap();
}

/// An id, or that within the expanded object.
fn id(value: &Value) -> &Value {
    value.get("id").unwrap_or(value)
}

/// Creates accounts for all customers that the fixtures of a shape name.
async fn link_all(app: &TestApp, shape: &str) {
    for (name, text) in all_of(shape) {
        if let Ok(event) = serde_json::from_str::<Value>(&text)
            && let Some(customer) = id(&event["data"]["object"]["customer"]).as_str()
        {
            assert!(customer.starts_with("cus_"), "{name}");
            link(app, customer).await;
        }
    }
}

/// How many fixtures each shape has, so that none is skipped unnoticed.
const SHAPES: [(&str, usize); 5] = [("ancient", 8), ("classic", 39), ("basil", 55), ("endive", 24), ("thin", 3)];

#[tokio::test(flavor = "multi_thread")]
async fn every_fixture_is_taken_whether_or_not_its_customer_is_linked() {
    for (is_linked, (shape, number)) in SHAPES.into_iter().flat_map(|shape| [(true, shape), (false, shape)]) {
        let app = TestApp::start().await;
        if is_linked {
            link_all(&app, shape).await;
        }
        let fixtures = all_of(shape);
        assert!(fixtures.len() >= number, "{} of {shape}", fixtures.len());
        for (name, text) in &fixtures {
            let answer = app.deliver_bytes(text.clone().into_bytes()).await;
            if name.ends_with("created_huge") {
                assert_eq!((answer.status, answer.error_code()), (500, "event_failed"), "{name}");
                continue;
            }
            if name == "v1.customer.subscription.updated" && shape == "thin" {
                // Without a key the subscription cannot be read.
                assert_eq!((answer.status, answer.error_code()), (503, "unavailable"), "{name}");
                continue;
            }
            assert_eq!((answer.status, &answer.body["applied"]), (200, &json!(true)), "{shape}/{name}");
            let again = app.deliver_bytes(text.clone().into_bytes()).await;
            assert_eq!(again.outcome(), "duplicate", "{shape}/{name}");
        }
        let failures = app.json("SELECT to_jsonb(error) FROM event_failures", &[]).await;
        let is_clear =
            |error: &Value| ["created", "STRIPE_SECRET_KEY"].iter().any(|word| error.as_str().unwrap().contains(word));
        assert!(failures.len() <= 1 && failures.iter().all(is_clear), "{shape}: {failures:?}");
        let recorded = fixtures.len() as i64 - failures.len() as i64;
        assert_eq!(app.count("stripe_events").await, recorded, "{shape}");
        // `timestamps_odd` says 1970 itself.
        let years = "subscriptions WHERE cancel_at IS DISTINCT FROM to_timestamp(-1) AND (current_period_end < '1990-01-01' OR current_period_end > '2100-01-01'
                     OR last_event_created < '2015-01-01' OR last_event_created > '2030-01-01')";
        assert_eq!(app.count(years).await, 0, "{shape}: no time is wrapped or made up");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life_of_each_shape_ends_in_the_same_row_forwards_and_backwards() {
    for shape in ["classic", "basil", "endive"] {
        let mut rows = Vec::new();
        for is_forwards in [true, false] {
            let app = TestApp::start().await;
            let mut life: Vec<Event> = LIFE.iter().map(|name| fixture(&format!("{shape}/{name}"))).collect();
            let last = life[18].clone();
            let customer = last.object()["customer"].as_str().unwrap();
            let account = app.account_of(customer).await;
            if is_forwards {
                for (event, expected) in life.iter().zip(expectations(&life)) {
                    assert_eq!(app.deliver(event).await.outcome(), expected.0, "{shape} {}", event.0["type"]);
                    let row = app.subscription(last.object()["id"].as_str().unwrap()).await;
                    let found = [&row["status"], &row["seat_limit"], &row["latest_invoice_status"]];
                    assert_eq!(found, [&expected.1, &expected.2, &expected.3], "{shape} after {}", event.0["type"]);
                }
            } else {
                life.reverse();
                for event in &life {
                    assert_eq!(app.deliver(event).await.status, 200, "{shape} {}", event.0["type"]);
                }
            }
            rows.push(final_row(&app, &last, account).await);
        }
        assert_eq!(rows[0], rows[1], "{shape}");
    }
}

/// Outcome, status, seats and the latest invoice's status after each event of the life.
fn expectations(life: &[Event]) -> Vec<(&'static str, Value, Value, Value)> {
    let mut seats = json!(5);
    let mut status = Value::Null;
    let mut invoice = Value::Null;
    life.iter()
        .zip(LIFE)
        .map(|(event, name)| {
            match name {
                "customer.subscription.updated.quantity" => seats = json!(9),
                "customer.subscription.pending_update_applied" => seats = json!(12),
                "invoice.paid" => invoice = json!("paid"),
                "invoice.payment_failed" => invoice = json!("payment_failed"),
                _ => {}
            }
            if name.starts_with("customer.subscription.") {
                status = event.object()["status"].clone();
            }
            let outcome = if name == "customer.deleted" { "ignored" } else { "applied" };
            (outcome, status.clone(), seats.clone(), invoice.clone())
        })
        .collect()
}

/// The row in the end, checked column by column against the last event.
async fn final_row(app: &TestApp, last: &Event, account: uuid::Uuid) -> Value {
    let object = last.object();
    let item = &object["items"]["data"][0];
    let holder = if object.get("current_period_end").is_some() { object } else { item };
    let mut row = app.subscription(object["id"].as_str().unwrap()).await;
    let expected = json!({
        "account_id": account,
        "status": "canceled",
        "stripe_price_id": item["price"]["id"],
        "seat_limit": 12,
        "current_period_start": time(&holder["current_period_start"]),
        "current_period_end": time(&holder["current_period_end"]),
        "cancel_at_period_end": false,
        "cancel_at": time(&object["cancel_at"]),
        "canceled_at": time(&object["canceled_at"]),
        "ended_at": time(&object["ended_at"]),
        "trial_end": time(&object["trial_end"]),
        "paused_collection": false,
        "latest_invoice_status": "payment_failed",
        "last_event_id": last.id(),
        "last_event_created": time(&last.0["created"]),
    });
    for (column, expected) in expected.as_object().unwrap() {
        assert_eq!(&row[column], expected, "{column} of {row:#}");
    }
    for always in ["current_period_end", "canceled_at", "ended_at", "trial_end", "latest_invoice_id", "plan"] {
        assert_ne!(row[always], Value::Null, "{always}");
    }
    for own in ["id", "account_id", "created_at", "updated_at"] {
        row.as_object_mut().unwrap().remove(own);
    }
    row
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_shape_is_projected_too() {
    let app = TestApp::start_with(Settings::default(), None).await;
    link_all(&app, "ancient").await;
    let names = ["customer.subscription.created", "customer.subscription.updated", "invoice.paid"];
    for name in names {
        let event = fixture(&format!("ancient/{name}"));
        assert_eq!(app.deliver(&event).await.outcome(), "applied", "{name}");
        if name == "invoice.paid" {
            continue;
        }
        let object = event.object();
        let row = app.subscription(object["id"].as_str().unwrap()).await;
        assert_eq!(row["stripe_price_id"], object["items"]["data"][0]["plan"]["id"], "{name}");
        assert_eq!(row["seat_limit"], object["items"]["data"][0]["quantity"], "{name}");
        assert_eq!(row["current_period_end"], time(&object["current_period_end"]), "{name}");
    }
    let last = fixture("ancient/customer.subscription.deleted");
    app.deliver(&last).await;
    let row = app.subscription(last.object()["id"].as_str().unwrap()).await;
    assert_eq!((&row["status"], &row["latest_invoice_status"]), (&json!("canceled"), &json!("paid")));
}
