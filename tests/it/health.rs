//! Health, and who may ask for the rest.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::support::app::{answer, next_check};
use crate::support::events::subscription;
use crate::support::{Event, Settings, TestApp};

#[tokio::test(flavor = "multi_thread")]
async fn health_names_what_is_wrong_and_recovers() {
    let app = TestApp::start().await;
    let well = answer(app.http.get(app.url("/health"))).await;
    let version = env!("CARGO_PKG_VERSION");
    let expected = json!({"status": "ok", "database": "ok", "migrations": "current", "version": version});
    assert_eq!((well.status, well.body), (200, expected));

    app.execute("CREATE TABLE kept AS SELECT * FROM __diesel_schema_migrations").await;
    app.execute("DELETE FROM __diesel_schema_migrations").await;
    assert_eq!(answer(app.http.get(app.url("/health"))).await.status, 200, "calls within a second share one check");
    next_check().await;
    let pending = answer(app.http.get(app.url("/health"))).await;
    assert_eq!((pending.status, &pending.body["migrations"]), (503, &json!("pending")));
    app.execute("INSERT INTO __diesel_schema_migrations SELECT * FROM kept").await;

    app.database.allow_connections(false).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'subledger'
                AND datname = current_database()";
    app.execute(kill).await;
    next_check().await;
    let away = answer(app.http.get(app.url("/health"))).await;
    assert_eq!((away.status, &away.body["database"]), (503, &json!("unavailable")), "{away:?}");
    assert_eq!(answer(app.http.get(app.url("/health/live"))).await.status, 200);
    let refused = app.deliver(Event::new("evt_1", "x", 1, json!({"id": "x"}))).await;
    assert_eq!((refused.status, refused.error_code()), (503, "unavailable"));
    app.database.allow_connections(true).await;
    next_check().await;
    assert_eq!(answer(app.http.get(app.url("/health"))).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_not_a_matter_of_who_waits_for_locks_and_many_calls_cost_one_check() {
    let settings = Settings { pool_size: 1, pool_timeout: Duration::from_millis(500), ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE stripe_events, subscriptions IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let delivery = app.deliver(Event::new("evt_1", "x", 1, json!({"id": "x"})));
    let calls = async {
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(app.get("/events").await.status, 503, "the pool is exhausted");
        for _ in 0..2 {
            let calls = (0..100).map(|_| answer(app.http.get(app.url("/health"))));
            let answers = futures_util::future::join_all(calls).await;
            assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
            next_check().await;
        }
        let ours = "pg_stat_activity WHERE application_name = 'subledger' AND datname = current_database()";
        assert!(app.count(ours).await <= 3, "the pool's one, and two in reserve");
        locker.batch_execute("ROLLBACK").await.unwrap();
    };
    // On a slow machine its wait for the lock may have come to its end.
    let (delivered, ()) = tokio::join!(delivery, calls);
    assert!([200, 500, 503].contains(&delivered.status), "{delivered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_shown_to_admins_alone() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let event = Event::new("evt_1", "customer.subscription.created", 100, subscription("sub_1", "cus_1", "active", 5));
    app.deliver(&event).await;
    let shown = app.get("/events/evt_1").await;
    assert_eq!(shown.status, 200);
    assert_eq!(shown.body["status"], "applied");
    assert_eq!(shown.body["type"], "customer.subscription.created");
    assert_eq!(shown.body["created"], "1970-01-01T00:01:40Z");
    assert_eq!((&shown.body["customer"], &shown.body["subscription"]), (&json!("cus_1"), &json!("sub_1")));
    assert_eq!((&shown.body["failures"], &shown.body["payload"]), (&json!([]), &event.0));

    let paths = [
        (Method::GET, "/events/evt_1"),
        (Method::GET, "/events"),
        (Method::POST, "/events/evt_1/replay"),
        (Method::GET, "/api/v1/accounts"),
        (Method::POST, "/api/v1/accounts"),
        (Method::DELETE, "/api/v1/accounts/7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11/customers/cus_1"),
        (Method::GET, "/api/v1/accounts/7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11"),
        (Method::PATCH, "/api/v1/accounts/7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11"),
    ];
    let nobody = TestApp::start_with(Settings { admin_token: None, ..Settings::default() }, None).await;
    for (method, path) in paths {
        for token in [None, Some("Bearer wrong"), Some("Basic admin-token"), Some("admin-token"), Some("Bearer ")] {
            let mut request = app.http.request(method.clone(), app.url(path));
            if let Some(token) = token {
                request = request.header("Authorization", token);
            }
            let refused = answer(request).await;
            assert_eq!((refused.status, refused.error_code()), (401, "unauthorized"), "{method} {path} {token:?}");
        }
        let refused = nobody.admin(method.clone(), path, None).await;
        assert_eq!((refused.status, refused.error_code()), (403, "forbidden"), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_only_ever_failed_is_shown_with_every_attempt() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
    let event = Event::new("evt_1", "customer.subscription.created", 100, subscription("sub_1", "cus_1", "active", 5));
    app.deliver(&event).await;
    app.deliver(&event).await;
    let shown = app.get("/events/evt_1").await.body;
    assert_eq!((&shown["status"], &shown["payload"]), (&json!("failed"), &event.0));
    let failures = shown["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 2);
    assert!(failures[0]["failed_at"].as_str() > failures[1]["failed_at"].as_str(), "newest first");
    assert!(failures[0]["error"].as_str().unwrap().contains("few_seats"));
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    let replayed = app.admin(Method::POST, "/events/evt_1/replay", None).await;
    assert_eq!((replayed.status, replayed.outcome()), (200, "applied"));
    assert_eq!(app.get("/events/evt_1").await.body["status"], "applied");
    let again = app.admin(Method::POST, "/events/evt_1/replay", None).await;
    assert_eq!(again.body, json!({"applied": false, "outcome": "duplicate"}));
    assert_eq!(app.admin(Method::POST, "/events/evt_none/replay", None).await.status, 404);
}
