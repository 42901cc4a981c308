//! Notifications whose event cannot be fetched: nothing is acknowledged, the failure says why, and a retry applies.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::support::database::Database;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_a_handled_notification_is_unavailable_and_says_which_variable_is_missing() {
    let database = Database::migrated();
    let app = TestApp::start_on(database, Settings::default(), None).await;
    app.account_of("cus_1").await;
    let snapshot = updated("evt_1", 100, shown("active", 2));
    let notification = thin("evt_test_1", UPDATED, 100, snapshot.object(), Some("evt_1"));
    for _ in 0..2 {
        let answer = app.deliver(&notification).await;
        assert_eq!((answer.status, answer.error_code()), (503, "unavailable"));
    }
    assert_eq!(app.count("stripe_events").await, 0);
    let failures = failures_of(&app).await;
    assert_eq!(failures.len(), 2);
    let (id, error) = failure_of(&failures);
    assert_eq!(id, "evt_test_1");
    assert!(error.contains("STRIPE_SECRET_KEY"), "{error}");
    let shown_failure = app.get("/events/evt_test_1").await.body;
    assert_eq!((&shown_failure["status"], &shown_failure["subscription"]), (&json!("failed"), &json!("sub_1")));
    // Once its event is there, by whichever way, it fails no longer.
    assert!(is_failing(&app, "evt_test_1").await);
    assert_eq!(app.deliver(&snapshot).await.outcome(), "applied");
    assert_eq!(app.deliver(&notification).await.outcome(), "duplicate");
    assert!(!is_failing(&app, "evt_test_1").await);
    let found = app.get("/events/evt_test_1").await.body;
    assert_eq!((&found["id"], &found["status"]), (&json!("evt_1"), &json!("applied")));
    assert_eq!(found["failures"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stripe_that_cannot_be_asked_is_unavailable_and_the_retry_applies() {
    let no_json = [("Content-Type", "text/html")];
    for (status, headers, body) in [
        (500, vec![], "{}"),
        (429, vec![("Retry-After", "1")], "{}"),
        (401, vec![], "{}"),
        (403, vec![], "{}"),
        (302, vec![("Location", "http://127.0.0.1:9/")], ""),
        (200, no_json.to_vec(), "<html>Sign in</html>"),
        (200, vec![], ""),
        (200, vec![], "{}"),
        (200, vec![], r#"{"object": "event", "id": "evt_other", "type": "invoice.paid"}"#),
        (200, vec![], r#"{"object": "event", "id": "evt_1"}"#),
    ] {
        let (stripe, app) = start().await;
        let snapshot = updated("evt_1", 100, shown("active", 2));
        let notification = thin("evt_test_1", UPDATED, 100, snapshot.object(), Some("evt_1"));
        stripe.answer_path("/v1/events/evt_1", status, &headers, body);
        let answer = app.deliver(&notification).await;
        assert_eq!((answer.status, answer.error_code()), (503, "unavailable"), "{status} {body}");
        let failures = failures_of(&app).await;
        assert_eq!((failures.len(), failure_of(&failures).0), (1, "evt_test_1"), "{status} {body}");
        assert_eq!(app.count("stripe_events").await + app.count("subscriptions").await, 0);
        stripe.has(&snapshot.0);
        assert_eq!(app.deliver(&notification).await.outcome(), "applied");
        assert!(!is_failing(&app, "evt_test_1").await);
        assert!(!is_failing(&app, "evt_1").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stripe_that_does_not_answer_in_time_is_unavailable_and_the_retry_applies() {
    let stripe = StripeApi::start().await;
    let settings = Settings { stripe_timeout: Duration::from_millis(300), ..Settings::default() };
    let app = TestApp::start_with(settings, Some(&stripe)).await;
    app.account_of("cus_1").await;
    let snapshot = updated("evt_1", 100, shown("active", 2));
    let notification = thin("evt_test_1", UPDATED, 100, snapshot.object(), Some("evt_1"));
    stripe.has(&snapshot.0);
    stripe.delay("/v1/events/evt_1", Duration::from_secs(20));
    let began = Instant::now();
    assert_eq!(app.deliver(&notification).await.status, 503);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    stripe.has(&snapshot.0);
    assert_eq!(app.deliver(&notification).await.outcome(), "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_calls_of_one_delivery_share_one_deadline() {
    let stripe = StripeApi::start().await;
    let settings = Settings { stripe_timeout: Duration::from_secs(30), ..Settings::default() };
    let app = TestApp::start_with(settings, Some(&stripe)).await;
    let now = shown("active", 1);
    stripe.answer_path("/v2/core/events/evt_test_1", 404, &[], "{}");
    stripe.has(&now);
    stripe.delay("/v2/core/events/evt_test_1", Duration::from_secs(8));
    stripe.delay("/v1/subscriptions/sub_1", Duration::from_secs(10));
    let began = Instant::now();
    assert_eq!(app.deliver(thin("evt_test_1", UPDATED, 100, &now, None)).await.status, 503);
    let took = began.elapsed();
    assert!((Duration::from_secs(15)..Duration::from_secs(18)).contains(&took), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_gone_or_another_one_is_the_events_own_failure() {
    let other = invoice("in_1", "cus_1", "sub_1").to_string();
    for (status, body, says) in
        [(404, "{}", "Stripe has no subscription sub_1"), (200, other.as_str(), "another object")]
    {
        let (stripe, app) = start().await;
        stripe.answer_path("/v1/subscriptions/sub_1", status, &[], body);
        let answer = app.deliver(thin("evt_test_1", UPDATED, 100, &shown("active", 1), None)).await;
        assert_eq!((answer.status, answer.error_code()), (500, "event_failed"));
        let failures = failures_of(&app).await;
        let (id, error) = failure_of(&failures);
        assert_eq!(id, "evt_test_1");
        assert!(error.contains(says), "{error}");
        // A replay reads it anew.
        stripe.has(&shown("active", 1));
        let replayed = app.admin(reqwest::Method::POST, "/events/evt_test_1/replay", None).await;
        assert_eq!(replayed.status, 200, "{replayed:?}");
        assert_eq!(app.subscription("sub_1").await["status"], "active");
        assert!(!is_failing(&app, "evt_test_1").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_notification_says_only_paths_below_v1_and_its_own_event_are_read() {
    let (stripe, app) = start().await;
    let good = thin("evt_test_1", UPDATED, 100, &shown("active", 1), None);
    let with_id = |id: &str| good.clone().with("related_object", json!({"id": id, "type": "subscription", "url": id}));
    let with_type = |name: &str| good.clone().with("related_object", json!({"id": "sub_1", "type": name}));
    let long = "x".repeat(300);
    let hostile = [
        with_id("../../v1/accounts"),
        with_id("sub_1/../../../admin"),
        with_id("sub_1?expand[]=customer"),
        with_id("sub_1%2f.."),
        with_id(".."),
        with_id("http://elsewhere.invalid/"),
        with_id(&long),
        with_id(""),
        with_type("../subscription"),
        with_type("customer"),
        with_type("invoice"),
        with_type("subscription/"),
        with_type(""),
        good.clone().with("related_object", json!("https://elsewhere.invalid/")),
        good.clone().with("related_object", json!(null)),
        good.clone().with("snapshot_event", json!("../subscriptions/sub_1")),
        good.clone().with("snapshot_event", json!("evt_1?x=y")),
        good.clone().with("id", json!("../../v1/customers")),
        good.clone().with("id", json!("evt test")),
    ];
    for (n, event) in hostile.into_iter().enumerate() {
        let event = if event.id() == "evt_test_1" { event.with("id", json!(format!("evt_test_{n}"))) } else { event };
        let answer = app.deliver(&event).await;
        assert_eq!((answer.status, answer.error_code()), (500, "event_failed"), "{event}");
        let failures = failures_of(&app).await;
        assert_eq!(failure_of(&failures).0, event.id(), "{event}");
    }
    for path in paths(&stripe) {
        assert!(path.starts_with("/v2/core/events/evt_test_"), "{path}");
    }
    // The URL of a good one is not looked at either; the test's own names another host.
    stripe.has(&shown("active", 1));
    assert_eq!(app.deliver(&good).await.outcome(), "applied");
    assert!(app.count("event_failures").await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_to_apply_is_recorded_under_the_notification() {
    let (stripe, app) = start().await;
    let snapshot = updated("evt_1", 100, shown("active", 5));
    stripe.has(&snapshot.0);
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
    let notification = thin("evt_test_1", UPDATED, 100, snapshot.object(), Some("evt_1"));
    assert_eq!(app.deliver(&notification).await.status, 500);
    let failures = failures_of(&app).await;
    assert_eq!(failure_of(&failures).0, "evt_test_1");
    assert!(is_failing(&app, "evt_test_1").await);
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    // Without a call: the failure kept the event.
    stripe.has_not(&snapshot.0);
    let replayed = app.admin(reqwest::Method::POST, "/events/evt_test_1/replay", None).await;
    assert_eq!((replayed.status, replayed.outcome()), (200, "applied"), "{replayed:?}");
    assert!(!is_failing(&app, "evt_test_1").await);
    assert_eq!(app.get("/events/evt_test_1").await.body["id"], "evt_1");
    assert_eq!(app.deliver(&notification).await.outcome(), "duplicate");
    assert_eq!(app.deliver(&snapshot).await.outcome(), "duplicate");
}
