//! A database that answers and takes no writes: read-only, or with a full disk.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::{Client, NoTls};

use crate::support::app::{ADMIN_TOKEN, WEBHOOK_SECRET, answer, next_check, signature};
use crate::support::binary::{Server, subledger};
use crate::support::events::{subscription, updated};
use crate::support::{Answer, Event, TestApp};

async fn health(app: &TestApp) -> (u16, String) {
    next_check().await;
    let health = answer(app.http.get(app.url("/health"))).await;
    (health.status, health.body["database"].as_str().unwrap().to_owned())
}

fn event(id: &str, seats: i64) -> Event {
    updated(id, 100 + seats, subscription("sub_1", "cus_1", "active", seats))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_database_is_503_and_its_end_is_noticed_by_every_connection() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let set = |value| format!("ALTER DATABASE {} SET default_transaction_read_only = {value}", app.database.name());
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'subledger'";
    app.execute(&set("on")).await;
    app.execute(end).await;
    for _ in 0..2 {
        let refused = app.deliver(event("evt_1", 5)).await;
        assert_eq!((refused.status, refused.error_code()), (503, "unavailable"));
        assert_eq!(health(&app).await, (503, "unavailable".to_owned()));
    }
    let page = app.http.get(app.url("/admin")).bearer_auth(ADMIN_TOKEN).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("The database takes no writes"), "{page}");
    assert_eq!(app.get("/events/evt_1").await.status, 404, "what is there can be read, and this is not");
    app.execute(&set("off")).await;
    // The sessions that are open still cannot write.
    assert_eq!(app.deliver(event("evt_1", 5)).await.outcome(), "applied");
    assert_eq!(health(&app).await, (200, "ok".to_owned()));
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 5);
}

/// A server with a private PostgreSQL of its own, none of whose files may grow beyond 16 MiB and half a page: so the
/// last page of a table that is full is written in part, which PostgreSQL takes for a full disk. A segment of its log
/// still fits.
fn start_with_a_small_disk(folder: &std::path::Path) -> Server {
    let plain = subledger(folder);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 32776 && exec \"$0\" serve"]).arg(plain.get_program()).current_dir(folder);
    command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Server::start(command.env("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET).env("ADMIN_TOKEN", ADMIN_TOKEN))
}

/// Fills the table of events until not even the smallest one has room.
async fn fill(sql: &Client) {
    sql.batch_execute("ALTER TABLE stripe_events SET (autovacuum_enabled = off); SET synchronous_commit = off")
        .await
        .unwrap();
    for (rows, hashes) in [(2_000, 48), (100, 48), (100, 20), (100, 4), (100, 0), (1, 0)] {
        let insert = format!(
            "INSERT INTO stripe_events (id, type, outcome, livemode, payload)
             SELECT 'filler_' || gen_random_uuid(), 'filler', 'ignored', false,
                    (SELECT coalesce(jsonb_agg(md5(random()::text || n || m)), '[]')
                     FROM generate_series(1, {hashes}) AS m)
             FROM generate_series(1, {rows}) AS n"
        );
        let full = loop {
            if let Err(error) = sql.batch_execute(&insert).await {
                break error;
            }
        };
        assert_eq!(full.code().map(|code| code.code().to_owned()), Some("53100".to_owned()), "{full:?}");
    }
}

async fn deliver(http: &reqwest::Client, server: &Server, event: &Event) -> Answer {
    let body = event.to_string();
    let signature = signature(body.as_bytes());
    let request = http.post(server.url("/api/v1/webhooks/stripe")).header("Stripe-Signature", signature);
    answer(request.body(body)).await
}

async fn state(http: &reqwest::Client, server: &Server) -> (u16, Value) {
    next_check().await;
    let health = answer(http.get(server.url("/health"))).await;
    (health.status, health.body["database"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_503_with_a_clear_log_and_over_when_there_is_room_again() {
    rustls::crypto::ring::default_provider().install_default().ok();
    let (folder, http) = (tempfile::tempdir().unwrap(), reqwest::Client::new());
    let mut server = start_with_a_small_disk(folder.path());
    let data = std::fs::canonicalize(folder.path().join(".subledger/data")).unwrap();
    let url = format!("host={} user=subledger dbname=subledger", data.display());
    let (sql, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    sql.batch_execute("INSERT INTO accounts (name, stripe_customer_id) VALUES ('Acme', 'cus_1')").await.unwrap();
    fill(&sql).await;
    for _ in 0..2 {
        let refused = deliver(&http, &server, &event("evt_1", 5)).await;
        assert_eq!((refused.status, refused.error_code()), (503, "unavailable"));
        assert_eq!(state(&http, &server).await, (503, "unavailable".into()));
    }
    sql.batch_execute("DELETE FROM stripe_events WHERE type = 'filler'").await.unwrap();
    sql.batch_execute("VACUUM stripe_events").await.unwrap();
    assert_eq!(state(&http, &server).await, (200, "ok".into()), "tried again before any event came");
    assert_eq!(deliver(&http, &server, &event("evt_1", 5)).await.outcome(), "applied");
    let seats = "SELECT seat_limit FROM subscriptions WHERE last_event_id = 'evt_1'";
    assert_eq!(sql.query_one(seats, &[]).await.unwrap().get::<_, i32>(0), 5);
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.child.wait().unwrap();
    let log = server.log_to_the_end().join("\n");
    assert!(log.contains("could not extend file") && log.contains("delivery failed"), "{log}");
}
