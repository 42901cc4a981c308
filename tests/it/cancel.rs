//! Clients that go away, statements that hang, databases that are away: no connection is lost, nothing half-done.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::app::signature;
use crate::support::events::subscription;
use crate::support::{Event, Settings, TestApp};

fn updated(id: &str, created: i64, subscription_id: &str, customer: &str, quantity: i64) -> Event {
    let object = subscription(subscription_id, customer, "active", quantity);
    Event::new(id, "customer.subscription.updated", created, object)
}

fn pool_of_one() -> Settings {
    Settings { pool_size: 1, ..Settings::default() }
}

/// Sends a whole request and does not wait for the answer.
async fn send_and_hold(app: &TestApp, event: &Event) -> TcpStream {
    let body = event.to_string();
    let signature = signature(body.as_bytes());
    let head = format!(
        "POST /api/v1/webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nStripe-Signature: {signature}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

/// Waits until a connection of the server waits for a lock, and goes on to: a batch waits for 50 ms only, and then its
/// events go alone.
async fn wait_until_blocked(app: &TestApp) {
    wait_until(app, |blocked| blocked > 0).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    wait_until(app, |blocked| blocked > 0).await;
}

/// Waits until no connection of the server waits for a lock; less long than the session's limit on such waits.
async fn wait_until_none_is_blocked(app: &TestApp) {
    wait_until(app, |blocked| blocked == 0).await;
}

async fn wait_until(app: &TestApp, is_awaited: fn(i64) -> bool) {
    let blocked = "pg_stat_activity WHERE datname = current_database() AND application_name = 'subledger'
                   AND wait_event_type = 'Lock'";
    for _ in 0..300 {
        if is_awaited(app.count(blocked).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} wait for a lock", app.count(blocked).await);
}

async fn disconnects_while_waiting(reset: bool) {
    let app = TestApp::start_with(pool_of_one(), None).await;
    app.account_of("cus_1").await;
    app.account_of("cus_2").await;
    assert_eq!(app.deliver(updated("evt_1", 100, "sub_1", "cus_1", 1)).await.outcome(), "applied");
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; SELECT 1 FROM subscriptions FOR UPDATE").await.unwrap();
    let waiting = updated("evt_2", 200, "sub_1", "cus_1", 7);
    let stream = send_and_hold(&app, &waiting).await;
    wait_until_blocked(&app).await;
    if reset {
        stream.set_zero_linger().unwrap();
    }
    drop(stream);

    let started = Instant::now();
    assert_eq!(app.deliver(updated("evt_3", 100, "sub_2", "cus_2", 1)).await.outcome(), "applied");
    assert!(started.elapsed() < Duration::from_millis(1_500), "the pool was held for {:?}", started.elapsed());
    wait_until_none_is_blocked(&app).await;
    locker.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 1, "nothing of it was committed");
    assert_eq!(app.deliver(&waiting).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_while_its_event_waits_for_a_lock_holds_no_connection() {
    disconnects_while_waiting(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resets_while_its_event_waits_for_a_lock_holds_no_connection() {
    disconnects_while_waiting(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_client_goes_away_as_its_lock_comes_free_is_there_whole_or_not_at_all() {
    let app = TestApp::start_with(pool_of_one(), None).await;
    app.account_of("cus_1").await;
    app.deliver(updated("evt_0", 100, "sub_1", "cus_1", 0)).await;
    for seats in 1..=20 {
        let locker = app.database.client().await;
        locker.batch_execute("BEGIN; SELECT 1 FROM subscriptions FOR UPDATE").await.unwrap();
        let event = updated(&format!("evt_{seats}"), 100 + seats, "sub_1", "cus_1", seats);
        let stream = send_and_hold(&app, &event).await;
        wait_until_blocked(&app).await;
        drop(stream);
        locker.batch_execute("ROLLBACK").await.unwrap();
        let is_recorded = app.deliver(&event).await.outcome() == "duplicate";
        assert_eq!(app.subscription("sub_1").await["seat_limit"], seats, "{is_recorded}");
    }
    assert_eq!(app.count("stripe_events WHERE outcome = 'applied'").await, 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_does_not_take_those_with_it_that_go_together_with_its_event() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.deliver(updated("evt_0", 100, "sub_1", "cus_1", 0)).await;
    app.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(2); RETURN NEW; END $$;
         CREATE TRIGGER dawdles BEFORE UPDATE ON subscriptions
         FOR EACH ROW WHEN (NEW.seat_limit IN (1, 4)) EXECUTE FUNCTION dawdle()",
    )
    .await;
    let event = |n: i64| updated(&format!("evt_{n}"), 100 + n, "sub_1", "cus_1", n);
    // While this one is applied the others are queued, and go together afterwards.
    let first = send_and_hold(&app, &event(1)).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let leaver = send_and_hold(&app, &event(2)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (third, fourth) = (event(3), event(4));
    let followers = join_all([&third, &fourth].map(|event| app.deliver(event)));
    let leave = async {
        tokio::time::sleep(Duration::from_millis(2_300)).await;
        drop(leaver);
    };
    let (answers, ()) = tokio::join!(followers, leave);
    for answer in answers {
        assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{answer:?}");
    }
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 4);
    let of_them = "SELECT count(DISTINCT xmin::text) FROM stripe_events WHERE id IN ('evt_2', 'evt_3', 'evt_4')";
    assert_eq!(app.one(of_them).await.get::<_, i64>(0), 1, "they went together");
    assert_eq!(app.deliver(event(2)).await.outcome(), "duplicate", "there, though nobody was told");
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_not_given_up_fails_the_event_and_its_retry_applies() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.deliver(updated("evt_1", 100, "sub_1", "cus_1", 1)).await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; SELECT 1 FROM subscriptions FOR UPDATE").await.unwrap();
    let failed = app.deliver(updated("evt_2", 200, "sub_1", "cus_1", 7)).await;
    assert_eq!((failed.status, failed.error_code()), (503, "unavailable"));
    locker.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(app.count("stripe_events").await, 1);
    assert_eq!(app.deliver(updated("evt_2", 200, "sub_1", "cus_1", 7)).await.outcome(), "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_connection_the_answer_is_503_within_the_pools_timeout() {
    let settings = Settings { pool_timeout: Duration::from_millis(300), ..pool_of_one() };
    let app = TestApp::start_with(settings, None).await;
    app.account_of("cus_1").await;
    app.deliver(updated("evt_1", 100, "sub_1", "cus_1", 1)).await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; SELECT 1 FROM subscriptions FOR UPDATE").await.unwrap();
    let _held = send_and_hold(&app, &updated("evt_2", 200, "sub_1", "cus_1", 7)).await;
    wait_until_blocked(&app).await;
    let started = Instant::now();
    let body = updated("evt_3", 300, "sub_2", "cus_1", 8).to_string().into_bytes();
    let signature = signature(&body);
    let request = app.http.post(app.url("/api/v1/webhooks/stripe")).header("Stripe-Signature", signature).body(body);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(response.text().await.unwrap().contains(r#""code":"unavailable""#));
    locker.batch_execute("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_subscription_takes_one_connection_and_leaves_the_others_to_the_rest() {
    let settings = Settings { pool_size: 2, pool_timeout: Duration::from_millis(300), ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    app.account_of("cus_1").await;
    app.account_of("cus_2").await;
    app.deliver(updated("evt_1", 100, "sub_1", "cus_1", 1)).await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; SELECT 1 FROM subscriptions FOR UPDATE").await.unwrap();
    let first = updated("evt_2", 102, "sub_1", "cus_1", 2);
    let meanwhile = async {
        wait_until_blocked(&app).await;
        let events: Vec<_> = (3..=9).map(|n| updated(&format!("evt_{n}"), 100 + n, "sub_1", "cus_1", n)).collect();
        let turned_away = async {
            let started = Instant::now();
            for answer in join_all(events.iter().map(|event| app.deliver(event))).await {
                assert_eq!((answer.status, answer.error_code()), (503, "unavailable"));
            }
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        };
        let others = async {
            for n in 0..5 {
                let other = updated(&format!("evt_other_{n}"), 100 + n, "sub_2", "cus_2", n);
                assert_eq!(app.deliver(other).await.outcome(), "applied");
            }
        };
        tokio::join!(turned_away, others);
        locker.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(app.count("event_failures").await, 0);
        for event in &events {
            assert_eq!(app.deliver(event).await.outcome(), "applied");
        }
    };
    let (answer, ()) = tokio::join!(app.deliver(&first), meanwhile);
    assert_eq!(answer.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_503_and_not_the_events_fault() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let name: String = app.one("SELECT current_database()").await.get(0);
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'subledger'
                AND datname = current_database()";
    app.execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    app.execute(kill).await;
    let refused = app.deliver(updated("evt_1", 100, "sub_1", "cus_1", 1)).await;
    assert_eq!((refused.status, refused.error_code()), (503, "unavailable"));
    app.execute(&format!("ALTER DATABASE {name} RESET default_transaction_read_only")).await;
    app.execute(kill).await;
    assert_eq!(app.deliver(updated("evt_1", 100, "sub_1", "cus_1", 1)).await.outcome(), "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_and_answers_what_is_under_way() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.deliver(updated("evt_1", 100, "sub_1", "cus_1", 1)).await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; SELECT 1 FROM subscriptions FOR UPDATE").await.unwrap();
    let in_flight = app.deliver(updated("evt_2", 200, "sub_1", "cus_1", 7));
    let http = reqwest::Client::new();
    let url = app.url("/health/live");
    let release = async {
        wait_until_blocked(&app).await;
        app.tell_to_stop();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(http.get(url).send().await.is_err(), "new connections are refused");
        locker.batch_execute("ROLLBACK").await.unwrap();
    };
    let (answer, ()) = tokio::join!(in_flight, release);
    assert_eq!(answer.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 7);
    app.stopped().await;
}
