//! Slow clients and idle ones: they hold no worker, and are not kept.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::{Client, event, head};
use crate::support::{Settings, TestApp};

const KEEP_ALIVE: Duration = Duration::from_secs(1);
const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// The server's limit for a head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// For a machine that has much else to do.
const SLACK: Duration = Duration::from_secs(3);

const LIVE: &str = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";

fn impatient() -> Settings {
    Settings { keep_alive: KEEP_ALIVE, body_timeout: BODY_TIMEOUT, ..Settings::default() }
}

/// Sends a byte a second until the server closes, or a minute has passed. Returns what was answered, and when it
/// closed.
async fn trickle(mut client: Client, bytes: &str) -> (String, Duration) {
    let started = Instant::now();
    let mut answer = Vec::new();
    for byte in bytes.bytes().cycle().take(60) {
        // Fails once the server has closed; what it answered can be read still.
        tokio::io::AsyncWriteExt::write_all(&mut client.0, &[byte]).await.ok();
        match timeout(Duration::from_secs(1), client.0.read_to_end(&mut answer)).await {
            Err(_) => {}
            Ok(_) => return (String::from_utf8_lossy(&answer).into_owned(), started.elapsed()),
        }
    }
    (String::from_utf8_lossy(&answer).into_owned(), started.elapsed())
}

async fn slow_head(server: SocketAddr) -> (String, Duration) {
    trickle(Client::connect(server).await, "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").await
}

async fn slow_second_head(server: SocketAddr) -> (String, Duration) {
    let mut client = Client::connect(server).await;
    client.send(LIVE).await;
    assert!(client.answer().await.starts_with("HTTP/1.1 200 "));
    trickle(client, "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").await
}

async fn slow_body(server: SocketAddr) -> (String, Duration) {
    let mut client = Client::connect(server).await;
    client.send(head(1_000, "t=1,v1=aa")).await;
    trickle(client, " ").await
}

/// A body that no handler reads.
async fn slow_unread_body(server: SocketAddr) -> (String, Duration) {
    let mut client = Client::connect(server).await;
    client.send("GET /health/live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n").await;
    trickle(client, " ").await
}

async fn idle(server: SocketAddr) -> (String, Duration) {
    let mut client = Client::connect(server).await;
    client.send(LIVE).await;
    let started = Instant::now();
    let mut answer = Vec::new();
    timeout(Duration::from_secs(60), client.0.read_to_end(&mut answer)).await.expect("it is closed").ok();
    (String::from_utf8(answer).unwrap(), started.elapsed())
}

/// Sends requests for as long as the server takes them, and reads no answer.
async fn reads_nothing(server: SocketAddr) -> (String, Duration) {
    let mut client = Client::connect(server).await;
    let started = Instant::now();
    let requests = LIVE.repeat(1_000);
    let write =
        async { while tokio::io::AsyncWriteExt::write_all(&mut client.0, requests.as_bytes()).await.is_ok() {} };
    timeout(Duration::from_secs(60), write).await.expect("it is closed");
    (String::new(), started.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_slow_and_idle_clients_delay_nobody_and_are_not_kept() {
    let app = TestApp::start_with(impatient(), None).await;
    let server = app.address;
    let healthy = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for n in 0..40 {
            let (answer, took) = Client::connect(server).await.deliver(&event(n)).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(took < Duration::from_secs(1), "a delivery took {took:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (heads, bodies, idle, ()) = tokio::join!(
        join_all((0..150).map(|_| tokio::spawn(slow_head(server)))),
        join_all((0..150).map(|_| tokio::spawn(slow_body(server)))),
        join_all((0..150).map(|_| tokio::spawn(idle(server)))),
        healthy,
    );
    for (answer, after) in heads.into_iter().map(Result::unwrap) {
        assert!(answer.starts_with("HTTP/1.1 408 "), "a slow head was told {answer:?}");
        assert!(after < HEAD_LIMIT + SLACK, "a slow head was kept for {after:?}");
    }
    for (answer, after) in bodies.into_iter().map(Result::unwrap) {
        assert!(answer.starts_with("HTTP/1.1 408 "), "a slow body was told {answer:?}");
        assert!(answer.contains(r#"{"error":{"code":"request_timeout","message":""#), "{answer}");
        assert!(after < BODY_TIMEOUT + SLACK, "a slow body was kept for {after:?}");
    }
    // actix takes the time from a clock that ticks twice a second.
    for (answer, after) in idle.into_iter().map(Result::unwrap) {
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(after >= KEEP_ALIVE / 2 && after < KEEP_ALIVE + SLACK, "an idle connection was kept for {after:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_actix_sets_no_limit_to_is_closed_as_an_idle_connection_is() {
    let app = TestApp::start_with(impatient(), None).await;
    let server = app.address;
    let ((_, second_head), (_, unread_body), (_, unread_answers)) =
        tokio::join!(slow_second_head(server), slow_unread_body(server), reads_nothing(server));
    let limit = KEEP_ALIVE + HEAD_LIMIT + SLACK;
    assert!(second_head < limit, "a second head was waited for {second_head:?}");
    assert!(unread_body < limit, "a body that nobody reads was waited for {unread_body:?}");
    assert!(unread_answers < limit, "a client that reads nothing was waited for {unread_answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_takes_longer_than_the_keep_alive_is_not_cut_off() {
    let settings = Settings { keep_alive: Duration::from_millis(100), ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE stripe_events IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let event = event(1);
    let release = async {
        tokio::time::sleep(Duration::from_millis(4_000)).await;
        locker.batch_execute("ROLLBACK").await.unwrap();
    };
    let mut client = Client::connect(app.address).await;
    // With this it takes longer than any of the limits, and yet each of its parts is in time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ((answer, took), ()) = tokio::join!(client.deliver(&event), release);
    assert!(answer.contains(r#""applied":true"#) && took >= Duration::from_secs(4), "{took:?}: {answer}");
}
