//! More senders than connections to the database.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::event;
use crate::support::app::signature;
use crate::support::{Event, Settings, TestApp};

const POOL_TIMEOUT: Duration = Duration::from_millis(500);

/// What a sender was told, and when.
struct Told {
    status: u16,
    retry_after: Option<String>,
    body: String,
    after: Duration,
}

async fn deliver(app: &TestApp, event: &Event) -> Told {
    let body = event.to_string().into_bytes();
    let signature = signature(&body);
    let request = app.http.post(app.url("/api/v1/webhooks/stripe")).header("Stripe-Signature", signature).body(body);
    let started = Instant::now();
    let response = request.send().await.unwrap();
    let after = started.elapsed();
    let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    Told { status: response.status().as_u16(), retry_after, body: response.text().await.unwrap(), after }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_senders_on_a_pool_that_is_exhausted_are_told_503_in_time_and_all_succeed_after() {
    let settings = Settings { pool_size: 4, pool_timeout: POOL_TIMEOUT, ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    app.execute(
        "INSERT INTO accounts (name, stripe_customer_id) SELECT 'Acme', 'cus_' || n FROM generate_series(0, 299) n",
    )
    .await;
    let events: Vec<_> = (0..300).map(event).collect();
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE stripe_events, subscriptions IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let hold = async {
        tokio::time::sleep(POOL_TIMEOUT * 6).await;
        locker.batch_execute("ROLLBACK").await.unwrap();
    };
    let (told, ()) = tokio::join!(join_all(events.iter().map(|event| deliver(&app, event))), hold);

    let (refused, taken): (Vec<_>, Vec<_>) = told.into_iter().partition(|told| told.status == 503);
    // Two batches of at most 32 events each wait for the lock; all others are told before their senders give up.
    assert!((2..=64).contains(&taken.len()), "{} are waited for", taken.len());
    for told in &refused {
        assert_eq!(told.retry_after.as_deref(), Some("5"));
        assert!(told.body.starts_with(r#"{"error":{"code":"unavailable","message":""#), "{}", told.body);
        assert!(told.after < POOL_TIMEOUT + Duration::from_secs(1), "told after {:?}", told.after);
    }
    assert!(taken.iter().all(|told| told.status == 200 && told.body.contains(r#""applied":true"#)));
    assert_eq!(app.count("event_failures").await, 0, "want of a connection is not the event's failure");

    // Redelivered as Stripe does, for as long as they are told to come again.
    let mut applied = 0;
    let mut left: Vec<_> = events.iter().collect();
    for _ in 0..20 {
        let told = join_all(left.iter().map(|event| deliver(&app, event))).await;
        applied += told.iter().filter(|told| told.body.contains(r#""outcome":"applied""#)).count();
        left = left.into_iter().zip(&told).filter(|(_, told)| told.status == 503).map(|(event, _)| event).collect();
    }
    assert!(left.is_empty(), "{} do not succeed though the connections are free", left.len());
    assert_eq!((applied, app.count("subscriptions").await), (refused.len(), 300));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_who_reads_while_the_pool_is_exhausted_is_told_503_in_time() {
    let settings = Settings { pool_size: 1, pool_timeout: POOL_TIMEOUT, ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE stripe_events IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let event = event(1);
    let read = async {
        tokio::time::sleep(POOL_TIMEOUT / 2).await;
        let started = Instant::now();
        for path in ["/events", "/events/evt_1", "/api/v1/accounts/6f1d2c3b-0a4e-4c59-8f27-1b9e0d7c5a11"] {
            let refused = app.get(path).await;
            assert_eq!((refused.status, refused.error_code()), (503, "unavailable"), "{path}");
        }
        assert_eq!(app.get("/health").await.status, 200, "waiting for a lock is no illness");
        assert_eq!(app.get("/health/live").await.status, 200);
        assert!(started.elapsed() < POOL_TIMEOUT * 4 + Duration::from_secs(1), "{:?}", started.elapsed());
        locker.batch_execute("ROLLBACK").await.unwrap();
    };
    let (told, ()) = tokio::join!(deliver(&app, &event), read);
    assert_eq!(told.status, 200);
}
