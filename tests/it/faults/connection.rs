//! Connections to the database that are cut, at any byte, and after the commit too.

use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use serde_json::json;
use tokio_postgres::NoTls;
use uuid::Uuid;

use super::behind_proxy;
use super::load::{Load, Size};
use crate::support::database::Database;
use crate::support::events::{created, subscription, updated};
use crate::support::proxy::Proxy;
use crate::support::{SWEPT, Settings, TestApp};

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_commits_answer_was_lost_is_a_duplicate_when_it_is_tried_again() {
    let (proxy, app) = behind_proxy(Settings::default()).await;
    app.account_of("cus_1").await;
    // A transaction of many statements, and one of a single statement.
    let events = [
        created("evt_1", 100, subscription("sub_1", "cus_1", "active", 1)),
        updated("evt_2", 200, subscription("sub_1", "cus_1", "active", 2)),
    ];
    for (event, count) in events.iter().zip(1..) {
        proxy.lose_next_commits(1);
        let answer = app.deliver(event).await;
        assert_eq!((answer.status, &answer.body), (200, &json!({"applied": false, "outcome": "duplicate"})));
        assert_eq!((proxy.commits_lost(), proxy.cuts()), (count, count));
        let (row, recorded) = (app.subscription("sub_1").await, app.event_row(event.id()).await);
        assert_eq!((&row["seat_limit"], &row["last_event_id"]), (&json!(count), &json!(event.id())));
        assert_eq!(recorded["outcome"], "applied");
        assert_eq!(app.deliver(event).await.outcome(), "duplicate");
    }
    assert_eq!(app.count("event_failures").await, 0);
}

/// The account is made while the event that names it is committing, so that neither of the two sees the other; then the
/// answer to the event's commit is lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_names_an_account_is_applied_although_its_parkings_answer_was_lost() {
    let (proxy, app) = behind_proxy(Settings::default()).await;
    app.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
         CREATE TRIGGER wait BEFORE INSERT ON stripe_events FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    .await;
    let account = Uuid::new_v4();
    let mut object = subscription("sub_1", "cus_1", "active", 1);
    object["metadata"]["account_id"] = json!(account);
    app.execute("SELECT pg_advisory_lock(1)").await;
    let rest = async {
        // Not the batch: that waits for no more than 50 ms.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(app.create_account(json!({"id": account, "name": "Acme"})).await.status, 201);
        app.wait_for_count("accounts WHERE has_new_links", 0, SWEPT).await;
        proxy.lose_next_commits(1);
        app.execute("SELECT pg_advisory_unlock(1)").await;
    };
    let (answer, ()) = join(app.deliver(created("evt_1", 100, object)), rest).await;
    assert_eq!((answer.status, answer.outcome(), proxy.commits_lost()), (200, "duplicate", 1));
    app.wait_for_count("stripe_events WHERE outcome = 'applied'", 1, SWEPT).await;
    assert_eq!(app.subscription("sub_1").await["account_id"], json!(account));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_of_the_pool_may_be_cut_and_the_next_event_is_applied() {
    let (proxy, app) = behind_proxy(Settings::default()).await;
    app.account_of("cus_1").await;
    for seats in 1..=5 {
        let event = updated(&format!("evt_{seats}"), 100 + seats, subscription("sub_1", "cus_1", "active", seats));
        assert_eq!(app.deliver(event).await.outcome(), "applied");
        assert_eq!(app.subscription("sub_1").await["seat_limit"], seats);
        proxy.cut_all();
    }
    assert!(proxy.cuts() >= 5);
    assert_eq!(app.count("event_failures").await, 0);
}

/// Every transaction that is open now ends.
async fn check_settled(app: &TestApp) {
    let ended: String = app.one("SELECT clock_timestamp()::text").await.get(0);
    // Parked events may still be applied afterwards, in transactions that begin later.
    let left = format!(
        "SELECT jsonb_build_object('state', state, 'query', query, 'since', xact_start) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
           AND xact_start <= '{ended}'"
    );
    let started = Instant::now();
    loop {
        let left = app.json(&left, &[]).await;
        if left.is_empty() {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "a transaction is left open: {left:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_at_random_bytes_lose_nothing_and_apply_nothing_twice() {
    let (proxy, app) = behind_proxy(Settings { pool_size: 16, ..Settings::default() }).await;
    let load = Load::start(&app.address.to_string(), &app.database.url(), &Size { customers: 60, parallel: 16 });
    // The largest transactions, of customers with a heap of parked events, pass half a megabyte.
    proxy.cut_within(Some(4_000_000));
    proxy.cut_all();
    let out = load.end().await;
    assert!(proxy.cuts() >= 20, "{} cuts\n{out}", proxy.cuts());
    check_settled(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_whose_answers_are_lost_at_random_lose_nothing_and_apply_nothing_twice() {
    let (proxy, app) = behind_proxy(Settings { pool_size: 16, ..Settings::default() }).await;
    let load = Load::start(&app.address.to_string(), &app.database.url(), &Size { customers: 60, parallel: 16 });
    proxy.lose_one_commit_in(Some(10));
    let out = load.end().await;
    assert!(proxy.commits_lost() >= 20, "{} commits lost\n{out}", proxy.commits_lost());
    check_settled(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_of_the_network_is_paid_once_a_round_trip_whatever_is_on_the_way() {
    let database = Database::migrated();
    let proxy = Proxy::start(&database.url()).unwrap();
    let (client, connection) = tokio_postgres::connect(proxy.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let before = proxy.round_trips();
    proxy.delay(Duration::from_millis(100), Duration::from_millis(50));
    let started = Instant::now();
    client.batch_execute("SELECT 1").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(150), "{:?}", started.elapsed());
    assert_eq!(proxy.round_trips() - before, 1);
    let started = Instant::now();
    join_all((0..20).map(|_| client.batch_execute("SELECT 1"))).await.into_iter().collect::<Result<(), _>>().unwrap();
    // Twenty one after the other would take 3 s.
    assert!((150..1_500).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}
