//! Transactions that lose against others: run again within the delivery, a few times, and then left to Stripe's retry.

use std::time::Duration;

use super::load::{Load, Size, has_500};
use crate::support::database::Database;
use crate::support::events::{created, subscription, updated};
use crate::support::{Event, Settings, TestApp};

const SERIALIZATION_FAILURE: (&str, &str) = ("40001", "could not serialize access due to concurrent update");
const DEADLOCK: (&str, &str) = ("40P01", "deadlock detected");

/// The first attempt, and six more.
const ATTEMPTS: i64 = 7;

fn event(id: &str, seats: i64) -> Event {
    updated(id, 100 + seats, subscription("sub_1", "cus_1", "active", seats))
}

/// Lets the first `times` changes of a subscription fail. A sequence counts them, for a rollback does not undo it.
async fn fail(app: &TestApp, times: i64, trigger: &str, (code, message): (&str, &str)) {
    app.execute(&format!(
        "CREATE SEQUENCE attempts;
         CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('attempts') <= {times} THEN RAISE EXCEPTION '{message}' USING ERRCODE = '{code}'; END IF;
             RETURN NEW;
         END $$;
         CREATE {trigger} FOR EACH ROW EXECUTE FUNCTION fail()",
    ))
    .await;
}

async fn attempts(app: &TestApp) -> i64 {
    app.one("SELECT last_value FROM attempts").await.get(0)
}

const AT_THE_STATEMENT: &str = "TRIGGER fails BEFORE INSERT OR UPDATE ON subscriptions";
const AT_THE_COMMIT: &str =
    "CONSTRAINT TRIGGER fails AFTER INSERT OR UPDATE ON subscriptions DEFERRABLE INITIALLY DEFERRED";

/// A server with an account, and with the subscription's row or without: an event of many statements, or of a single
/// one that is its own transaction.
async fn start(has_row: bool) -> TestApp {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    if has_row {
        app.deliver(created("evt_0", 100, subscription("sub_1", "cus_1", "active", 1))).await;
    }
    app
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serialization_failure_and_a_deadlock_are_tried_again_at_once_wherever_they_strike() {
    for (trigger, has_row) in [AT_THE_STATEMENT, AT_THE_COMMIT].into_iter().flat_map(|at| [(at, false), (at, true)]) {
        for error in [SERIALIZATION_FAILURE, DEADLOCK] {
            let app = start(has_row).await;
            fail(&app, 3, trigger, error).await;
            let answer = app.deliver(event("evt_1", 5)).await;
            assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{trigger} {has_row} {error:?}");
            assert_eq!(attempts(&app).await, 4, "{trigger} {has_row} {error:?}");
            assert_eq!(app.subscription("sub_1").await["seat_limit"], 5);
            assert_eq!(app.count("event_failures").await, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_that_does_not_end_is_503_after_a_few_attempts_and_applied_when_it_has_ended() {
    for (trigger, error, has_row) in [
        (AT_THE_STATEMENT, DEADLOCK, false),
        (AT_THE_COMMIT, SERIALIZATION_FAILURE, false),
        (AT_THE_COMMIT, SERIALIZATION_FAILURE, true),
    ] {
        let app = start(has_row).await;
        fail(&app, 1_000, trigger, error).await;
        let answer = app.deliver(event("evt_1", 5)).await;
        assert_eq!((answer.status, answer.error_code()), (503, "unavailable"), "{trigger} {error:?}");
        // One more in the batch.
        assert_eq!(attempts(&app).await, ATTEMPTS + 1);
        assert_eq!(app.count("stripe_events WHERE id = 'evt_1'").await, 0);
        assert_eq!(app.count("subscriptions WHERE seat_limit = 5").await, 0);
        assert_eq!(app.count("event_failures").await, 1);
        app.execute("DROP TRIGGER fails ON subscriptions").await;
        assert_eq!(app.deliver(event("evt_1", 5)).await.outcome(), "applied");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_deadlock_is_tried_again() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 1))).await;
    let mut other = app.database.client().await;
    let transaction = other.transaction().await.unwrap();
    let insert = "INSERT INTO stripe_events (id, type, outcome, livemode, payload) VALUES ('evt_2', 'x', 'ignored', true, 'null')";
    transaction.batch_execute(insert).await.unwrap();
    // The delivery, once it goes alone, holds the row and waits for the event's id; then we, who hold the id, wait for the
    // row.
    let delivery = app.deliver(created("evt_2", 200, subscription("sub_1", "cus_1", "active", 2)));
    let closing = async {
        // The batch waits for 50 ms only.
        tokio::time::sleep(Duration::from_millis(300)).await;
        wait_for_a_lock(&app).await;
        transaction.batch_execute("SET LOCAL deadlock_timeout = '1min'").await.unwrap();
        transaction.execute("UPDATE subscriptions SET updated_at = now()", &[]).await.unwrap();
        transaction.rollback().await.unwrap();
    };
    let (answer, ()) = tokio::join!(delivery, closing);
    assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{answer:?}");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 2);
    check_deadlocks(&app, 1).await;
}

/// Sessions report what they count at most once a second, and when they end.
async fn check_deadlocks(app: &TestApp, expected: i64) {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    app.execute(end).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(app.one(deadlocks).await.get::<_, i64>(0), expected);
}

/// Until somebody waits for somebody else's lock.
async fn wait_for_a_lock(app: &TestApp) {
    while app.count("pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn start_serializable() -> TestApp {
    let database = Database::migrated();
    let name = database.name();
    let set = format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'");
    database.client().await.batch_execute(&set).await.unwrap();
    TestApp::start_on(database, Settings { pool_size: 16, ..Settings::default() }, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_database_that_is_serializable_by_default_a_load_in_parallel_loses_nothing() {
    let app = start_serializable().await;
    let load = Load::start(&app.address.to_string(), &app.database.url(), &Size { customers: 40, parallel: 16 });
    let out = load.end().await;
    assert!(!has_500(&out), "{out}");
}
