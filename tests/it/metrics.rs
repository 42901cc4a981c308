//! What Prometheus reads after something has happened.

use std::collections::HashMap;
use std::time::Duration;

use chrono::Utc;
use reqwest::Method;
use serde_json::json;
use subledger::secret::Secret;
use subledger::stripe::signature::sign;
use tokio::io::AsyncWriteExt;

use crate::support::app::{ADMIN_TOKEN, WEBHOOK_SECRET, signature};
use crate::support::events::{checkout, subscription};
use crate::support::{Event, Settings, StripeApi, TestApp};

const UPDATED: &str = "customer.subscription.updated";

fn updated(id: &str, created: i64, seats: i64) -> Event {
    updated_of("sub_1", id, created, seats)
}

fn updated_of(subscription_id: &str, id: &str, created: i64, seats: i64) -> Event {
    Event::new(id, UPDATED, created, subscription(subscription_id, "cus_1", "active", seats))
}

/// Every sample by its name with labels, parsed as a scraper would.
async fn samples(app: &TestApp) -> HashMap<String, f64> {
    let response = app.http.get(app.url("/metrics")).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = response.text().await.unwrap();
    let mut declared = "";
    let mut samples = HashMap::new();
    for line in text.lines() {
        if let Some(declaration) = line.strip_prefix("# TYPE ") {
            declared = declaration.split(' ').next().unwrap();
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(declared), "{name} is declared as {declared}");
            assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{name} twice");
        }
    }
    samples
}

fn events(event_type: &str, outcome: &str) -> String {
    format!(r#"subledger_events_total{{type="{event_type}",outcome="{outcome}"}}"#)
}

fn failures(reason: &str) -> String {
    format!(r#"subledger_event_failures_total{{reason="{reason}"}}"#)
}

/// The counters that changed, and by how much.
fn changes(before: &HashMap<String, f64>, after: &HashMap<String, f64>) -> Vec<(String, f64)> {
    assert_eq!(before.len(), after.len(), "no time series comes or goes");
    let mut changes: Vec<_> = after
        .iter()
        .filter(|(name, _)| name.contains("_total"))
        .map(|(name, value)| (name.clone(), value - before[name]))
        .filter(|(_, change)| *change != 0.0)
        .collect();
    changes.sort_by(|one, other| one.0.cmp(&other.0));
    changes
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_counted_by_type_and_outcome() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let before = samples(&app).await;
    let created = Utc::now().timestamp() - 100;
    let event = updated("evt_1", created, 1);
    app.deliver(&event).await;
    app.deliver(&event).await;
    app.deliver(&event).await;
    app.deliver(updated("evt_2", created - 50, 1)).await;
    app.deliver(Event::new("evt_3", "evil\"} 1\nx", created, json!({"id": "x"}))).await;
    app.deliver(Event::new("evt_4", UPDATED, created, subscription("sub_2", "cus_9", "active", 1))).await;
    let after = samples(&app).await;
    assert_eq!(
        changes(&before, &after),
        [
            (events(UPDATED, "applied"), 1.0),
            (events(UPDATED, "duplicate"), 2.0),
            (events(UPDATED, "parked"), 1.0),
            (events(UPDATED, "stale"), 1.0),
            (events("other", "ignored"), 1.0),
        ]
    );
    assert_eq!(after["subledger_event_seconds_count"], 6.0);
    assert_eq!(after["subledger_delivery_lag_seconds_count"], 4.0, "first deliveries only");
    let lag = after["subledger_delivery_lag_seconds_sum"];
    assert!((450.0..480.0).contains(&lag), "{lag}");
    assert_eq!(after[r#"subledger_delivery_lag_seconds_bucket{le="60.0"}"#], 0.0);
    assert_eq!(after[r#"subledger_delivery_lag_seconds_bucket{le="300.0"}"#], 4.0);
    let last = after["subledger_last_event_timestamp_seconds"];
    assert!((Utc::now().timestamp() as f64 - last) < 10.0, "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_signatures_are_counted_by_reason() {
    let app = TestApp::start().await;
    let before = samples(&app).await;
    let body = b"{}".to_vec();
    let now = Utc::now().timestamp();
    let by = |secret: &str, at: i64| sign(&body, &Secret::new(secret), at);
    app.deliver_signed(body.clone(), None).await;
    app.deliver_signed(body.clone(), Some("t=1")).await;
    app.deliver_signed(body.clone(), Some(&by("whsec_other", now))).await;
    app.deliver_signed(body.clone(), Some(&by(WEBHOOK_SECRET, now - 1_000))).await;
    app.deliver_signed(body.clone(), Some(&by(WEBHOOK_SECRET, now + 1_000))).await;
    let twice = app.http.post(app.url("/api/v1/webhooks/stripe")).header("Stripe-Signature", by(WEBHOOK_SECRET, now));
    let twice = twice.header("Stripe-Signature", "t=1,v1=00").body(body.clone()).send().await.unwrap();
    assert_eq!(twice.status(), 400);
    // Signed, but no event: not the signature's fault.
    assert_eq!(app.deliver_bytes(body.clone()).await.error_code(), "invalid_payload");
    let refusals = |reason: &str| format!(r#"subledger_signature_refusals_total{{reason="{reason}"}}"#);
    assert_eq!(
        changes(&before, &samples(&app).await),
        [
            (refusals("absent"), 1.0),
            (refusals("expired"), 2.0),
            (refusals("malformed"), 2.0),
            (refusals("mismatch"), 1.0),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_reason() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&stripe)).await;
    let account = app.account_of("cus_1").await;
    let before = samples(&app).await;

    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
    assert_eq!(app.deliver(updated("evt_1", 100, 5)).await.status, 500);
    assert_eq!(app.admin(Method::POST, "/events/evt_1/replay", None).await.status, 500);
    assert_eq!(changes(&before, &samples(&app).await), [(failures("handler"), 2.0)]);

    let before = samples(&app).await;
    stripe.answer("sub_9", 500, json!({}));
    let session = checkout("cus_1", "sub_9", Some(&account.to_string()));
    assert_eq!(app.deliver(Event::new("evt_2", "checkout.session.completed", 100, session)).await.status, 503);
    let asked = "subledger_stripe_requests_total{outcome=\"error\"}".to_owned();
    assert_eq!(changes(&before, &samples(&app).await), [(failures("stripe"), 1.0), (asked, 1.0)]);

    let before = samples(&app).await;
    app.execute(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", app.database.name())).await;
    app.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await;
    assert_eq!(app.deliver(updated("evt_3", 100, 1)).await.status, 503);
    assert_eq!(changes(&before, &samples(&app).await), [(failures("database"), 1.0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_is_a_failure_of_its_own_kind() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let before = samples(&app).await;
    app.execute("BEGIN; LOCK TABLE subscriptions IN ACCESS EXCLUSIVE MODE").await;
    for is_reset in [false, true] {
        let body = updated("evt_1", 100, 1).to_string();
        let signature = signature(body.as_bytes());
        let mut stream = tokio::net::TcpStream::connect(app.address).await.unwrap();
        let head = format!(
            "POST /api/v1/webhooks/stripe HTTP/1.1\r\nHost: x\r\nStripe-Signature: {signature}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let in_use = samples(&app).await[r#"subledger_pool_connections{state="in_use"}"#];
        assert_eq!(in_use, 1.0, "it waits for the lock");
        if is_reset {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    app.execute("ROLLBACK").await;
    assert_eq!(changes(&before, &samples(&app).await), [(failures("client_gone"), 2.0)]);
    assert_eq!(app.count("stripe_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pool_shows_who_uses_it_and_who_waits() {
    let settings = Settings { pool_size: 2, pool_timeout: Duration::from_millis(700), ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    app.account_of("cus_1").await;
    let states = |samples: &HashMap<String, f64>| {
        ["in_use", "idle", "waiting"].map(|state| samples[&format!(r#"subledger_pool_connections{{state="{state}"}}"#)])
    };
    app.execute("BEGIN; LOCK TABLE subscriptions IN ACCESS EXCLUSIVE MODE").await;
    // Of one subscription they would take turns, with one connection.
    let of_its_own = |n| updated_of(&format!("sub_{n}"), &format!("evt_{n}"), 100, 1);
    let deliveries = (0..5).map(|n| app.deliver(of_its_own(n)));
    let watch = async {
        // What went together goes again alone, one at a time: a connection is left to the batches.
        tokio::time::sleep(Duration::from_millis(600)).await;
        let busy = states(&samples(&app).await);
        tokio::time::sleep(Duration::from_millis(900)).await;
        let given_up = states(&samples(&app).await);
        app.execute("ROLLBACK").await;
        (busy, given_up)
    };
    let (answers, (busy, given_up)) = tokio::join!(futures_util::future::join_all(deliveries), watch);
    assert_eq!(busy, [1.0, 1.0, 4.0]);
    assert_eq!(given_up, [1.0, 1.0, 0.0], "whoever gave up waits no longer");
    assert_eq!(answers.iter().filter(|answer| answer.status == 503).count(), 4, "{answers:?}");
    let [in_use, idle, waiting] = states(&samples(&app).await);
    assert_eq!((in_use, waiting), (0.0, 0.0));
    assert!((1.0..=2.0).contains(&idle), "{idle}");
}

#[tokio::test(flavor = "multi_thread")]
async fn undecided_ties_are_counted() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let before = samples(&app).await;
    app.deliver(updated("evt_1", 100, 1)).await;
    app.deliver(updated("evt_2", 100, 2)).await;
    let changes = changes(&before, &samples(&app).await);
    assert!(changes.contains(&("subledger_undecided_ties_total".to_owned(), 1.0)), "{changes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_event_is_remembered_over_a_restart() {
    let database = crate::support::database::Database::migrated();
    database
        .client()
        .await
        .batch_execute(
            "INSERT INTO stripe_events (id, type, outcome, livemode, received_at, payload)
             VALUES ('evt_1', 'x', 'ignored', false, to_timestamp(1760000000.7), '{}')",
        )
        .await
        .unwrap();
    let app = TestApp::start_on(database, Settings::default(), None).await;
    assert_eq!(samples(&app).await["subledger_last_event_timestamp_seconds"], 1_760_000_000.0);
    let fresh = TestApp::start().await;
    assert_eq!(samples(&fresh).await["subledger_last_event_timestamp_seconds"], 0.0);
}
