//! Processes that die: the server, by `kill -9`, and PostgreSQL, as by `pg_ctl restart -m immediate`.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt;
use reqwest::header::RETRY_AFTER;
use subledger::dev_postgres::PrivatePostgres;
use tokio_postgres::{Client, NoTls};

use super::load::{Load, Size, has_500};
use crate::support::app::{ADMIN_TOKEN, WEBHOOK_SECRET, next_check, signature};
use crate::support::binary::{Server, subledger};
use crate::support::database::Database;
use crate::support::events::{created, subscription};

const KILLS: i64 = 20;
const RESTARTS: i64 = 5;

/// How long anything may take to come back.
const PATIENCE: Duration = Duration::from_secs(60);

fn serve(folder: &Path, database_url: &str) -> Command {
    let mut command = subledger(folder);
    command
        .envs([("DATABASE_URL", database_url), ("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET)])
        .envs([("ADMIN_TOKEN", ADMIN_TOKEN), ("POOL_TIMEOUT_MS", "500")]);
    command
}

/// An address that nobody is given by the kernel while the server is away.
fn address() -> String {
    let is_free = |address: &String| TcpListener::bind(address).is_ok();
    let mut drawn = std::iter::repeat_with(|| format!("127.0.0.1:{}", rand::rng().random_range(15_000..30_000)));
    drawn.find(is_free).unwrap()
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Waits until so many events are recorded: a fault's moment that is the same on machines of any speed.
async fn recorded(sql: &Client, events: i64) {
    let started = Instant::now();
    while sql.query_one("SELECT count(*) FROM stripe_events", &[]).await.unwrap().get::<_, i64>(0) < events {
        assert!(started.elapsed() < PATIENCE, "the load does not go on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_twenty_times_loses_nothing_and_applies_nothing_twice() {
    let (database, folder, address) = (Database::migrated(), tempfile::tempdir().unwrap(), address());
    let sql = database.client().await;
    let start = || Server::start_at(&mut serve(folder.path(), &database.url()), &address);
    let mut server = start();
    let load = Load::start(&address, &database.url(), &Size { customers: 60, parallel: 16 });
    for number in 1..=KILLS {
        recorded(&sql, load.events * number / (KILLS + 1)).await;
        server.signal(Signal::SIGKILL);
        server.child.wait().unwrap();
        server = start();
    }
    let out = load.end().await;
    assert!(out.contains("connection lost"), "none was killed at work:\n{out}");
    assert!(!has_500(&out), "{out}\n{}", failures(&sql).await);
}

async fn failures(sql: &Client) -> String {
    let errors = "SELECT count(*) || ' ' || error FROM event_failures GROUP BY error";
    sql.query(errors, &[]).await.unwrap().iter().map(|row| row.get::<_, String>(0) + "\n").collect()
}

/// What `pg_ctl stop -m immediate` does: no transaction is ended in order, nothing written out.
fn crash(postgres: &mut PrivatePostgres) {
    let pid_file = std::fs::read_to_string(postgres.data_dir().join("postmaster.pid")).unwrap();
    let pid = Pid::from_raw(pid_file.lines().next().unwrap().parse().unwrap());
    kill(pid, Signal::SIGQUIT).unwrap();
    let started = Instant::now();
    while postgres.is_running() {
        assert!(started.elapsed() < PATIENCE, "PostgreSQL does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn http() -> reqwest::Client {
    // Fails where it is installed already.
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::new()
}

async fn health(server: &Server) -> u16 {
    http().get(server.url("/health")).send().await.unwrap().status().as_u16()
}

/// While the database is away, Stripe is told to come again.
async fn check_away(server: &Server, number: i64) {
    let event = created(&format!("evt_away_{number}"), 100, subscription("sub_away", "cus_away", "active", 1));
    let body = event.to_string();
    let signature = signature(body.as_bytes());
    let request = http().post(server.url("/api/v1/webhooks/stripe"));
    let answer = request.header("Stripe-Signature", signature).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key(RETRY_AFTER));
    assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["error"]["code"], "unavailable");
    next_check().await;
    assert_eq!(health(server).await, 503);
}

async fn back(server: &Server) {
    let started = Instant::now();
    while health(server).await != 200 {
        assert!(started.elapsed() < Duration::from_secs(10), "the server does not find the database again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_crashes_five_times_is_503_meanwhile_and_back_without_a_restart_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("postgres");
    let mut postgres = PrivatePostgres::start(&home).unwrap();
    let url = postgres.url();
    let server = Server::start(&mut serve(folder.path(), &url));
    let load = Load::start(&server.address, &url, &Size { customers: 60, parallel: 16 });
    for number in 1..=RESTARTS {
        recorded(&connect(&url).await, load.events * number / (RESTARTS + 1)).await;
        crash(&mut postgres);
        check_away(&server, number).await;
        drop(postgres);
        // What `pg_ctl start` does; the log is replayed first.
        postgres = PrivatePostgres::start(&home).unwrap();
        assert_eq!(postgres.url(), url);
        back(&server).await;
    }
    let out = load.end().await;
    let sql = connect(&url).await;
    assert!(out.contains("503 unavailable") && !has_500(&out), "{out}\n{}", failures(&sql).await);
    let left = sql.query_one("SELECT count(*) FROM stripe_events WHERE id ~ 'away'", &[]).await;
    assert_eq!(left.unwrap().get::<_, i64>(0), 0, "of what was refused nothing is left");
}
