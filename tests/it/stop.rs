//! SIGTERM: what was accepted is finished and answered, nobody else is let in, and the end comes in time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use reqwest::Client;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::app::signature;
use crate::support::binary::Server;
use crate::support::database::Database;
use crate::support::events::{Event, subscription};
use crate::support::simulation::serve;

/// Less than what actix and orchestrators give a server that does not end: it ends because it is done.
const PROMPT: Duration = Duration::from_secs(10);

/// Events that are applied alone take turns for each customer, so several of them are under way only for several customers.
const CUSTOMERS: usize = 8;

fn event(number: usize) -> Event {
    let customer = format!("cus_{}", number % CUSTOMERS);
    let state = subscription(&format!("sub_{number}"), &customer, "active", 5);
    Event::new(&format!("evt_{number}"), "customer.subscription.created", 100, state)
}

/// Delivers an event; the status, or what became of the connection.
async fn deliver(http: Client, url: String, number: usize) -> Result<u16, reqwest::Error> {
    let body = event(number).to_string();
    let request = http.post(url).header("Stripe-Signature", signature(body.as_bytes())).body(body);
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    // An answer that breaks off is none.
    answer.bytes().await?;
    Ok(status)
}

async fn recorded(database: &Database) -> BTreeSet<String> {
    let rows = database.client().await.query("SELECT id FROM stripe_events", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// How the server ended, and how long it took since `told`.
async fn end(mut server: Server, told: Instant) -> (Option<i32>, Duration) {
    let status = tokio::task::spawn_blocking(move || server.child.wait().unwrap()).await.unwrap();
    (status.code(), told.elapsed())
}

async fn started() -> (Database, Server, Client, String) {
    let database = Database::migrated();
    let server = serve(&database.url());
    for number in 0..CUSTOMERS {
        let insert = format!("INSERT INTO accounts (name, stripe_customer_id) VALUES ('Acme', 'cus_{number}')");
        database.client().await.batch_execute(&insert).await.unwrap();
    }
    rustls::crypto::ring::default_provider().install_default().ok();
    let url = server.url("/api/v1/webhooks/stripe");
    (database, server, Client::new(), url)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_at_sigterm_is_finished_and_answered_and_nobody_else_is_let_in() {
    let (database, server, http, url) = started().await;
    // Connections that wait for their next request must not hold up the end.
    let idle = Client::new();
    assert_eq!(deliver(idle.clone(), url.clone(), 100).await.unwrap(), 200);
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(&server.address).await.unwrap());
    }

    let mut lock = database.client().await;
    let lock = lock.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE subscriptions IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut under_way = JoinSet::new();
    for number in 0..6 {
        under_way.spawn(deliver(http.clone(), url.clone(), number));
    }
    wait_for_waiting(&database, 6).await;
    let told = Instant::now();
    server.signal(Signal::SIGTERM);
    while TcpStream::connect(&server.address).await.is_ok() {
        assert!(told.elapsed() < PROMPT, "the door is still open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(under_way.try_join_next().is_none(), "they are under way while the door is shut");
    lock.rollback().await.unwrap();
    let answers = under_way.join_all().await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(200))), "{answers:?}");
    let (code, took) = end(server, told).await;
    assert_eq!(code, Some(0));
    assert!(took < PROMPT, "{took:?}");
    assert_eq!(recorded(&database).await.len(), 7);
    drop(silent);
}

/// Waits until `count` sessions of the server wait for a lock.
async fn wait_for_waiting(database: &Database, count: i64) {
    let sql = database.client().await;
    let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                 AND application_name = 'subledger' AND wait_event_type = 'Lock'";
    for _ in 0..200 {
        if sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0) >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("they do not wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_what_is_recorded_at_sigterm_is_what_was_answered() {
    let (database, server, http, url) = started().await;
    let mut load = JoinSet::new();
    for worker in 0..12 {
        let (http, url) = (http.clone(), url.clone());
        load.spawn(async move {
            let mut answered = Vec::new();
            for number in (worker..100_000).step_by(12) {
                match deliver(http.clone(), url.clone(), number).await {
                    Ok(200) => answered.push(format!("evt_{number}")),
                    Ok(status) => panic!("evt_{number} was answered {status}"),
                    Err(_) => break,
                }
            }
            answered
        });
    }
    let begun = Instant::now();
    while recorded(&database).await.len() < 60 {
        assert!(begun.elapsed() < Duration::from_secs(60), "there is no load");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let told = Instant::now();
    server.signal(Signal::SIGTERM);
    let answered: BTreeSet<String> = load.join_all().await.into_iter().flatten().collect();
    let (code, took) = end(server, told).await;
    assert_eq!(code, Some(0));
    assert!(took < PROMPT, "{took:?}");
    assert_eq!(recorded(&database).await, answered);
}
