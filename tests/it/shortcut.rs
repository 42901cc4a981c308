//! The shortcut that most events take: one guarded statement that records the event, too. What it decides, and what it
//! leaves to the long way.

use std::pin::pin;
use std::time::Duration;

use chrono::DateTime;
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use futures_util::future::{join, join_all};
use serde_json::json;
use subledger::db::connect::Target;
use subledger::db::record::{self, AtOnce, Newer};
use subledger::db::subscriptions::State;
use subledger::handlers::Outcome;
use subledger::handlers::ordering::{self, Order, Version};
use subledger::service::Recorded;

use crate::service::service_on;
use crate::support::database::Database;
use crate::support::events::{created, deleted, invoice, paid, subscription, updated};
use crate::support::proxy::Proxy;
use crate::support::{Event, Settings, TestApp};

const BIRTH: &str = "customer.subscription.created";
const UPDATE: &str = "customer.subscription.updated";

fn state(status: &str) -> State {
    State {
        plan: None,
        status: status.to_owned(),
        stripe_customer_id: None,
        stripe_price_id: None,
        seat_limit: None,
        current_period_start: None,
        current_period_end: None,
        cancel_at_period_end: false,
        cancel_at: None,
        canceled_at: None,
        ended_at: None,
        trial_end: None,
        paused_collection: false,
        plan_source: None,
        stripe_created: None,
        cancellation_reason: None,
        cancellation_feedback: None,
        metadata: json!({}),
        items: json!([]),
        items_complete: true,
        livemode: None,
        connect_account: None,
    }
}

fn version(second: i64, status: &str, event_type: &str) -> Version {
    let created = DateTime::from_timestamp(second, 0).unwrap();
    Version { created, is_final: status != "active", is_birth: event_type == BIRTH }
}

/// Everything that tells one version from another: before, at and after one second; final or not; birth or not.
fn versions() -> impl Iterator<Item = (i64, &'static str, &'static str)> {
    let of_type = |event_type| {
        ["active", "canceled", "incomplete_expired"]
            .into_iter()
            .flat_map(move |status| [9, 10, 11].into_iter().map(move |second| (second, status, event_type)))
    };
    [BIRTH, UPDATE].into_iter().flat_map(of_type)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guards_in_sql_say_what_the_comparison_says() {
    let database = Database::migrated();
    let mut conn = database.target().connect().await.unwrap();
    conn.batch_execute("INSERT INTO accounts DEFAULT VALUES").await.unwrap();
    conn.begin_test_transaction().await.unwrap();
    for (stored_second, stored_status, stored_type) in versions() {
        for (second, status, event_type) in versions() {
            let row = format!(
                "DELETE FROM subscriptions; DELETE FROM stripe_events;
                 INSERT INTO subscriptions (account_id, status, stripe_subscription_id, last_event_created, last_event_type)
                 SELECT id, '{stored_status}', 'sub_1', to_timestamp({stored_second}), '{stored_type}' FROM accounts"
            );
            conn.batch_execute(&row).await.unwrap();
            let (stored, version) =
                (version(stored_second, stored_status, stored_type), version(second, status, event_type));
            let event = Event::new("evt_1", event_type, second, subscription("sub_1", "cus_1", status, 1)).parsed();
            let older = record::as_stale(&conn, &event, "stale", version).await.unwrap();
            let newer = Newer { names_plan: false, state: state(status), version };
            let newer = record::with_newer_state(&conn, &event, "applied", &newer).await.unwrap();
            let expected = match ordering::compare(stored, version) {
                Order::Newer => (AtOnce::Missed, AtOnce::Recorded),
                Order::Older => (AtOnce::Recorded, AtOnce::Duplicate),
                Order::Tie => (AtOnce::Missed, AtOnce::Missed),
            };
            assert_eq!((older, newer), expected, "{stored:?} {version:?}");
        }
    }
}

/// A server with one connection, and the proxy that it leads through.
async fn start_behind_a_proxy() -> (Proxy, TestApp) {
    let database = Database::migrated();
    let proxy = Proxy::start(&database.url()).unwrap();
    let target = Target::parse(proxy.url()).unwrap();
    let settings = Settings { pool_size: 1, pool_timeout: Duration::from_secs(10), ..Settings::default() };
    let app = TestApp::start_at(database, target, settings, None).await;
    (proxy, app)
}

/// Whether a transaction was open for the time of a round trip with nothing to do, before the future was done.
async fn waits_in_a_transaction<T>(app: &TestApp, future: impl Future<Output = T>) -> (T, bool) {
    const WAITING: &str = "pg_stat_activity WHERE datname = current_database()
         AND state = 'idle in transaction' AND state_change < clock_timestamp() - interval '100 ms'";
    let (mut future, mut has_waited) = (pin!(future), false);
    loop {
        if let Ok(result) = tokio::time::timeout(Duration::from_millis(10), &mut future).await {
            return (result, has_waited);
        }
        has_waited |= app.count(WAITING).await > 0;
    }
}

/// How many round trips to the database a delivery takes, once everything is prepared.
async fn round_trips(proxy: &Proxy, app: &TestApp, event: &Event) -> u64 {
    let before = proxy.round_trips();
    let answer = app.deliver(event).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    proxy.round_trips() - before
}

#[tokio::test(flavor = "multi_thread")]
async fn what_most_events_come_to_takes_one_round_trip() {
    let (proxy, app) = start_behind_a_proxy().await;
    app.account_of("cus_1").await;
    app.deliver(created("evt_0", 100, subscription("sub_1", "cus_1", "active", 1))).await;
    let of_round = |round: i64| {
        let second = 200 + 10 * round;
        let ignored = Event::new(&format!("evt_i{round}"), "customer.updated", second, json!({"id": "cus_1"}));
        [
            updated(&format!("evt_u{round}"), second, subscription("sub_1", "cus_1", "active", round)),
            paid(&format!("evt_p{round}"), second, invoice(&format!("in_{round}"), "cus_1", "sub_1")),
            ignored,
        ]
    };
    for event in of_round(1) {
        app.deliver(&event).await;
    }
    for event in of_round(2) {
        assert_eq!(round_trips(&proxy, &app, &event).await, 1, "{event}");
        assert_eq!(round_trips(&proxy, &app, &event).await, 1, "a duplicate: {event}");
    }
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["seat_limit"], &row["latest_invoice_id"]), (&json!(2), &json!("in_2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_together_does_not_wait_for_answers_before_its_commit() {
    const TOGETHER: i64 = 30;
    let (proxy, app) = start_behind_a_proxy().await;
    app.execute(&format!(
        "INSERT INTO accounts (stripe_customer_id) SELECT 'cus_' || n FROM generate_series(1, {TOGETHER}) n;
         INSERT INTO subscriptions (account_id, status, stripe_subscription_id)
         SELECT id, 'active', 'sub_' || substr(stripe_customer_id, 5) FROM accounts",
    ))
    .await;
    proxy.delay(Duration::ZERO, Duration::from_millis(200));
    for (second, is_prepared) in [(200, false), (300, true)] {
        // It goes alone, and the others wait for it and for the only connection.
        let first = Event::new(&format!("evt_{second}"), "customer.updated", second, json!({"id": "cus_1"}));
        let event = |n: i64| {
            let object = subscription(&format!("sub_{n}"), &format!("cus_{n}"), "active", second);
            updated(&format!("evt_{second}_{n}"), second, object)
        };
        let others: Vec<_> = (1..=TOGETHER).map(event).collect();
        let others: Vec<_> = others.iter().collect();
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            app.deliver_all(&others, others.len()).await
        };
        let both = join(app.deliver(&first), later);
        let ((first, others), has_waited) = waits_in_a_transaction(&app, both).await;
        assert_eq!(first.outcome(), "ignored");
        assert!(others.iter().all(|answer| answer.outcome() == "applied"), "{others:?}");
        let most: i64 = app
            .one(&format!(
                "SELECT count(*) FROM stripe_events WHERE id LIKE 'evt_{second}_%'
                 GROUP BY xmin::text ORDER BY 1 DESC LIMIT 1"
            ))
            .await
            .get(0);
        assert!(most > TOGETHER / 3, "{most} of them went together");
        assert_ne!(has_waited, is_prepared, "whether a transaction waited for the client");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_before_keeps_its_time_in_every_shortcut() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.deliver(created("evt_0", 100, subscription("sub_1", "cus_1", "active", 1))).await;
    let events = [
        (updated("evt_1", 200, subscription("sub_1", "cus_1", "active", 2)), "applied"),
        (updated("evt_2", 150, subscription("sub_1", "cus_1", "active", 3)), "stale"),
        (paid("evt_3", 200, invoice("in_1", "cus_1", "sub_1")), "applied"),
        (Event::new("evt_4", "customer.updated", 200, json!({"id": "cus_1"})), "ignored"),
    ];
    for (event, outcome) in &events {
        app.execute("ALTER TABLE stripe_events ADD CONSTRAINT nothing CHECK (false) NOT VALID").await;
        assert_eq!(app.deliver(event).await.status, 500, "{event}");
        app.execute("ALTER TABLE stripe_events DROP CONSTRAINT nothing").await;
        assert_eq!(app.deliver(event).await.outcome(), *outcome, "{event}");
    }
    let kept = "stripe_events e WHERE received_at = (SELECT min(failed_at) FROM event_failures WHERE event_id = e.id)";
    assert_eq!(app.count(kept).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_takes_the_shortcut_is_recorded_with_its_account_and_its_plan() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.local_trial(account).await;
    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 1))).await;
    let mut unnamed = subscription("sub_1", "cus_1", "active", 7);
    unnamed["items"]["data"][0]["price"]["lookup_key"] = json!(null);
    for (event, outcome) in [
        (updated("evt_2", 200, unnamed), "applied"),
        (updated("evt_3", 150, subscription("sub_1", "cus_1", "past_due", 3)), "stale"),
        (paid("evt_4", 210, invoice("in_1", "cus_1", "sub_1")), "applied"),
        (paid("evt_5", 205, invoice("in_0", "cus_1", "sub_1")), "stale"),
        (Event::new("evt_6", "customer.updated", 220, json!({"id": "cus_1"})), "ignored"),
        (deleted("evt_7", 120, subscription("sub_1", "cus_1", "canceled", 7)), "applied"),
    ] {
        assert_eq!(app.deliver(&event).await.outcome(), outcome, "{event}");
        let recorded = app.event_row(event.id()).await;
        assert_eq!((&recorded["outcome"], &recorded["account_id"]), (&json!(outcome), &json!(account)), "{event}");
    }
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["status"], &row["last_event_id"]), (&json!("canceled"), &json!("evt_7")));
    assert_eq!(row["latest_invoice_id"], "in_1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_that_names_no_plan_keeps_the_accounts_local_one() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.local_trial(account).await;
    let unnamed = |seats| {
        let mut object = subscription("sub_1", "cus_1", "active", seats);
        object["items"]["data"][0]["price"]["lookup_key"] = json!(null);
        object
    };
    app.deliver(created("evt_1", 100, unnamed(1))).await;
    assert_eq!(app.subscription("sub_1").await["plan"], "trial");
    assert_eq!(app.deliver(updated("evt_2", 200, unnamed(2))).await.outcome(), "applied");
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["plan"], &row["seat_limit"]), (&json!("trial"), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_go_before_the_shortcut() {
    let app = TestApp::start().await;
    let account = app.account().await;
    let mut of_account = subscription("sub_1", "cus_1", "active", 1);
    of_account["metadata"]["account_id"] = json!(account);
    assert_eq!(app.deliver(created("evt_1", 100, of_account)).await.outcome(), "applied");
    let other = created("evt_2", 110, subscription("sub_2", "cus_1", "active", 5));
    assert_eq!(app.deliver(other).await.outcome(), "parked");
    app.execute("UPDATE accounts SET stripe_customer_id = 'cus_1'").await;
    let next = updated("evt_3", 200, subscription("sub_1", "cus_1", "active", 2));
    assert_eq!(app.deliver(next).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 2);
    assert_eq!(app.subscription("sub_2").await["seat_limit"], 5, "it was woken");
    assert_eq!(app.event_row("evt_2").await["outcome"], "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_wait_for_one_row_apply_what_is_newer_once() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 1))).await;
    let other = app.database.client().await;
    let newer_state = "UPDATE subscriptions SET last_event_created = to_timestamp(300), last_event_id = 'evt_3'";
    other.batch_execute(&format!("BEGIN; {newer_state}")).await.unwrap();
    let older = updated("evt_2", 200, subscription("sub_1", "cus_1", "active", 2)).parsed();
    let newer = updated("evt_4", 400, subscription("sub_1", "cus_1", "active", 4)).parsed();
    let release = async {
        let waiting = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        // Of the two deliveries of each event one waits for the row, and the other for it.
        while app.count(waiting).await < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        other.batch_execute("COMMIT").await.unwrap();
    };
    let replicas = [0; 4].map(|_| service_on(&app.database, 1));
    let deliveries = replicas.iter().zip([&older, &older, &newer, &newer]);
    let (recorded, ()) = join(join_all(deliveries.map(|(replica, event)| replica.apply(event.clone()))), release).await;
    let recorded: Vec<_> = recorded.into_iter().map(Result::unwrap).collect();
    for (of_event, outcome) in [(&recorded[..2], Outcome::Stale), (&recorded[2..], Outcome::Applied)] {
        assert!(of_event.contains(&Recorded::First(outcome)), "{recorded:?}");
        assert!(of_event.contains(&Recorded::Duplicate), "{recorded:?}");
    }
    assert_eq!(app.subscription("sub_1").await["last_event_id"], "evt_4");
    assert_eq!(app.count("event_failures").await, 0);
}
