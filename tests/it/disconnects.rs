//! Connections that died in the pool, answers that were lost, and servers that speak another language: none of it fails a
//! call or is taken for the event's fault.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use subledger::db::connect::Target;
use subledger::db::migrations;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::app::{next_check, signature};
use crate::support::cluster::Cluster;
use crate::support::database::Database;
use crate::support::events::{created, subscription, updated};
use crate::support::proxy::Proxy;
use crate::support::{Answer, Settings, TestApp};

const SESSIONS: &str = "pg_stat_activity WHERE datname = current_database() AND application_name = 'subledger'";

/// Has the server open 16 connections: 16 deliveries wait, each for a row that the test has locked.
async fn fill_pool(app: &TestApp) {
    let locker = app.database.client().await;
    for number in 0..16 {
        app.account_of(&format!("cus_{number}")).await;
        let first = created(
            &format!("evt_{number}"),
            100,
            subscription(&format!("sub_{number}"), &format!("cus_{number}"), "active", 1),
        );
        assert_eq!(app.deliver(first).await.outcome(), "applied");
    }
    locker.batch_execute("BEGIN; SELECT FROM subscriptions FOR UPDATE").await.unwrap();
    let next: Vec<_> = (0..16)
        .map(|number| {
            let object = subscription(&format!("sub_{number}"), &format!("cus_{number}"), "active", 2);
            updated(&format!("evt_n{number}"), 110, object)
        })
        .collect();
    let events: Vec<_> = next.iter().collect();
    let unlock = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        locker.batch_execute("COMMIT").await.unwrap();
    };
    let (answers, ()) = tokio::join!(app.deliver_all(&events, 16), unlock);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert!(app.count(SESSIONS).await >= 14, "the pool is not full");
}

/// Kills every connection of the server, and checks that none of 16 calls of this kind fails.
async fn check_none_fails(app: &TestApp, kind: &str) {
    fill_pool_again(app).await;
    app.execute(&format!("SELECT pg_terminate_backend(pid) FROM {SESSIONS}")).await;
    let started = Instant::now();
    while app.count(SESSIONS).await > 0 && started.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    check_calls(app, kind).await;
}

async fn fill_pool_again(app: &TestApp) {
    app.execute("TRUNCATE subscriptions, stripe_events, account_customers, accounts CASCADE").await;
    fill_pool(app).await;
}

async fn check_calls(app: &TestApp, kind: &str) {
    for number in 0..16 {
        let answer = match kind {
            "health" => {
                if number < 2 {
                    next_check().await;
                }
                app.get("/health").await
            }
            "events" => app.get("/events").await,
            "account" => app.get("/api/v1/accounts").await,
            _ => {
                let object = subscription(&format!("sub_{number}"), &format!("cus_{number}"), "active", 3);
                app.deliver(updated(&format!("evt_{kind}_{}", Uuid::new_v4()), 120, object)).await
            }
        };
        assert_eq!(answer.status, 200, "{kind} {number}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_every_idle_connection_was_closed_no_call_fails() {
    let app = TestApp::start_with(Settings { pool_size: 16, ..Settings::default() }, None).await;
    for kind in ["delivery", "events", "account", "health"] {
        check_none_fails(&app, kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_database_no_call_fails() {
    let mut cluster = Cluster::start().await;
    let target = Target::parse(&cluster.socket_url("app")).unwrap();
    migrations::run(&target).await.unwrap();
    let app =
        TestApp::start_at(Database::empty(), target, Settings { pool_size: 16, ..Settings::default() }, None).await;
    let sql = cluster.client("app").await;
    for number in 0..16 {
        let insert = "INSERT INTO accounts (stripe_customer_id) VALUES ($1)";
        sql.execute(insert, &[&format!("cus_{number}")]).await.unwrap();
    }
    let events: Vec<_> = (0..64)
        .map(|n| {
            created(
                &format!("evt_{n}"),
                100,
                subscription(&format!("sub_{n}"), &format!("cus_{}", n % 16), "active", 1),
            )
        })
        .collect();
    let answers = app.deliver_all(&events.iter().collect::<Vec<_>>(), 64).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    cluster.stop();
    cluster.start_on_same_port();
    for kind in ["delivery", "events", "health"] {
        check_calls(&app, kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_the_database_ends_when_they_idle_fail_no_call() {
    let app = TestApp::start_with(Settings { pool_size: 4, ..Settings::default() }, None).await;
    app.account_of("cus_0").await;
    app.execute(&format!("ALTER DATABASE {} SET idle_session_timeout = '100ms'", app.database.name())).await;
    app.execute(&format!("SELECT pg_terminate_backend(pid) FROM {SESSIONS}")).await;
    for number in 0..5 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let object = subscription("sub_0", "cus_0", "active", number + 1);
        assert_eq!(app.deliver(updated(&format!("evt_{number}"), 100 + number, object)).await.status, 200);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(app.get("/events").await.status, 200);
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert_eq!(app.get("/health").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_whose_commits_answer_was_lost_is_created() {
    for customer in [None, Some("cus_1")] {
        for has_id in [false, true] {
            let database = Database::migrated();
            let proxy = Proxy::start(&database.url()).unwrap();
            let target = Target::parse(proxy.url()).unwrap();
            let app = TestApp::start_at(database, target, Settings::default(), None).await;
            app.get("/events").await;
            let mut body = json!({"name": "Acme"});
            if let Some(customer) = customer {
                body["stripe_customer_id"] = customer.into();
            }
            if has_id {
                body["id"] = json!(Uuid::new_v4());
            }
            proxy.lose_next_commits(1);
            let answer = app.create_account(body.clone()).await;
            assert_eq!(proxy.commits_lost(), 1);
            assert_eq!(answer.status, 201, "{body}: {answer:?}");
            assert_eq!(app.count("accounts").await, 1, "{body}");
            if has_id || customer.is_some() {
                assert_eq!(app.create_account(body.clone()).await.status, 409, "a second one is refused: {body}");
            }
        }
    }
}

async fn customer_of_two(app: &TestApp) -> i64 {
    let query = "SELECT count(*) FROM (SELECT stripe_customer_id FROM accounts WHERE stripe_customer_id IS NOT NULL
                 UNION ALL SELECT stripe_customer_id FROM account_customers) AS every
                 GROUP BY stripe_customer_id HAVING count(*) > 1";
    app.sql.query(query, &[]).await.unwrap().len() as i64
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_refuses_a_second_account_for_a_customer_whoever_inserts_it() {
    let app = TestApp::start().await;
    let (one, other) = (app.account().await, app.account().await);
    let in_account = |account: Uuid| format!("UPDATE accounts SET stripe_customer_id = 'cus_1' WHERE id = '{account}'");
    let further = |account: Uuid| format!("INSERT INTO account_customers VALUES ('cus_1', '{account}')");
    let orders = [
        (in_account(one), further(other)),
        (further(one), in_account(other)),
        (further(one), further(other)),
        (in_account(one), in_account(other)),
        (in_account(one), "INSERT INTO accounts (stripe_customer_id) VALUES ('cus_1')".to_owned()),
    ];
    for (first, second) in orders {
        app.execute(&first).await;
        let refused = app.sql.batch_execute(&second).await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("23505"), "{first}; {second}");
        app.execute("UPDATE accounts SET stripe_customer_id = NULL; DELETE FROM account_customers").await;

        // Two sessions at once: the second waits for the first, and is refused.
        let (a, b) = (app.database.client().await, app.database.client().await);
        a.batch_execute(&format!("BEGIN; {first}")).await.unwrap();
        let late = async { b.batch_execute(&second).await };
        let commit = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            a.batch_execute("COMMIT").await.unwrap();
        };
        let (refused, ()) = tokio::join!(late, commit);
        assert!(refused.is_err(), "{first}; {second}, at once");
        assert_eq!(customer_of_two(&app).await, 0);
        app.execute("UPDATE accounts SET stripe_customer_id = NULL; DELETE FROM account_customers").await;
    }
}

/// A server that speaks German; `None`, with a word why, where the machine cannot.
async fn german() -> Option<(Cluster, TestApp, Client)> {
    let listed = Command::new("locale").arg("-a").output().unwrap();
    let has_locale = |listed: &[u8]| String::from_utf8_lossy(listed).to_lowercase().contains("de_de.utf");
    if !has_locale(&listed.stdout) {
        // As root this is all it takes.
        Command::new("localedef").args(["-i", "de_DE", "-f", "UTF-8", "de_DE.UTF-8"]).output().ok();
    }
    if !has_locale(&Command::new("locale").arg("-a").output().unwrap().stdout) {
        return skip("the locale de_DE.UTF-8 is missing: localedef -i de_DE -f UTF-8 de_DE.UTF-8");
    }
    let cluster = Cluster::with_settings(&["lc_messages=de_DE.UTF-8"]).await;
    let sql = cluster.client("app").await;
    let error = sql.batch_execute("SELECT 1/0").await.unwrap_err();
    if error.as_db_error().unwrap().message() != "Division durch Null" {
        return skip("this PostgreSQL was installed without its German messages");
    }
    let target = Target::parse(&cluster.socket_url("app")).unwrap();
    migrations::run(&target).await.unwrap();
    let app = TestApp::start_at(Database::empty(), target, Settings::default(), None).await;
    sql.execute("INSERT INTO accounts (stripe_customer_id) VALUES ('cus_1')", &[]).await.unwrap();
    assert_eq!(
        app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 1))).await.outcome(),
        "applied"
    );
    Some((cluster, app, sql))
}

#[expect(clippy::disallowed_methods, reason = "how the tests are run is no configuration of the service")]
fn skip<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    println!("skipped: {why}");
    None
}

/// Delivers a change, and says whether the answer asks to try again later.
async fn deliver_change(app: &TestApp, id: &str, second: i64) -> (Answer, bool) {
    let event = updated(id, second, subscription("sub_1", "cus_1", "active", second));
    let body = event.to_string();
    let request =
        app.http.post(app.url("/api/v1/webhooks/stripe")).header("Stripe-Signature", signature(body.as_bytes()));
    let response = request.body(body).send().await.unwrap();
    let retries_later = response.headers().contains_key("retry-after");
    let status = response.status().as_u16();
    (Answer { status, body: response.json().await.unwrap() }, retries_later)
}

async fn wait_for_lock(sql: &Client) {
    let query =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'subledger' AND wait_event_type = 'Lock'
                 AND query_start < clock_timestamp() - interval '150 ms'";
    for _ in 0..300 {
        if sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0) > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no delivery waits for a lock");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_german_is_understood() {
    let Some((cluster, app, sql)) = german().await else { return };
    let locker = cluster.client("app").await;

    // A deadlock, whose victim is the delivery: run again.
    sql.batch_execute(
        "CREATE TABLE counter (id int PRIMARY KEY, n int NOT NULL); INSERT INTO counter VALUES (1, 0);
         CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN UPDATE counter SET n = n + 1; RETURN NEW; END $$;
         CREATE TRIGGER bump BEFORE UPDATE ON subscriptions FOR EACH ROW EXECUTE FUNCTION bump()",
    )
    .await
    .unwrap();
    locker.batch_execute("SET deadlock_timeout = '20s'; BEGIN; UPDATE counter SET n = n + 1").await.unwrap();
    let cross = async {
        wait_for_lock(&sql).await;
        locker.batch_execute("SELECT FROM subscriptions FOR UPDATE; COMMIT").await.unwrap();
    };
    let ((answer, _), ()) = tokio::join!(deliver_change(&app, "evt_deadlock", 110), cross);
    assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{answer:?}");
    // Sessions tell from time to time.
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    for attempt in 0.. {
        if sql.query_one(deadlocks, &[]).await.unwrap().get::<_, i64>(0) == 1 {
            break;
        }
        assert!(attempt < 120, "there was no deadlock");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    sql.batch_execute("DROP TRIGGER bump ON subscriptions").await.unwrap();

    // A cancelled statement, and a lock that is not given up.
    locker.batch_execute("BEGIN; SELECT FROM subscriptions FOR UPDATE").await.unwrap();
    let cancel = async {
        wait_for_lock(&sql).await;
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                      WHERE application_name = 'subledger' AND wait_event_type = 'Lock'";
        sql.batch_execute(cancel).await.unwrap();
    };
    let ((answer, retries_later), ()) = tokio::join!(deliver_change(&app, "evt_cancelled", 120), cancel);
    assert_eq!((answer.status, answer.error_code(), retries_later), (503, "unavailable", true), "{answer:?}");
    let (answer, retries_later) = deliver_change(&app, "evt_locked", 130).await;
    assert_eq!((answer.status, answer.error_code(), retries_later), (503, "unavailable", true), "{answer:?}");
    locker.batch_execute("COMMIT").await.unwrap();
    for id in ["evt_cancelled", "evt_locked"] {
        let second = if id == "evt_locked" { 130 } else { 120 };
        assert_eq!(deliver_change(&app, id, second).await.0.status, 200, "{id}");
    }

    // What is the event's own fault stays that.
    sql.batch_execute("ALTER TABLE subscriptions ADD CONSTRAINT few CHECK (seat_limit < 140)").await.unwrap();
    let (answer, _) = deliver_change(&app, "evt_own", 140).await;
    assert_eq!((answer.status, answer.error_code()), (500, "event_failed"), "{answer:?}");
}
