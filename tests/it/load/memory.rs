//! What clients can make the server keep in memory.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::{Client, event, head};
use crate::support::binary::{Server, subledger};
use crate::support::database::Database;
use crate::support::{Settings, TestApp};

const MIB: u64 = 1 << 20;

/// The default limit of a body.
const BODY_LIMIT: usize = 1 << 20;

fn start(folder: &tempfile::TempDir, database: &Database) -> Server {
    let mut command = subledger(folder.path());
    let command = command.env("DATABASE_URL", database.url()).env("STRIPE_WEBHOOK_SECRET", "whsec_test");
    Server::start(command.env("RUST_LOG", "error,subledger::cli::serve=info").env("POOL_SIZE", "4"))
}

/// Resident memory of the server in bytes; `None` where the system does not tell in `/proc`.
fn resident(server: &Server) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<u64>().unwrap() * 1024)
}

/// Sends all but the last byte of a body of the largest size. `Err` with the answer, where there is one already.
async fn large_body(server: SocketAddr) -> Result<Client, String> {
    let mut client = Client::connect(server).await;
    client.send(head(BODY_LIMIT, "t=1,v1=aa")).await;
    let body = vec![b' '; BODY_LIMIT - 1];
    let (mut reads, mut writes) = client.0.split();
    let mut first = [0; 1024];
    tokio::select! {
        biased;
        count = reads.read(&mut first) => {
            let count = count.unwrap_or(0);
            return Err(String::from_utf8_lossy(&first[..count]).into_owned());
        }
        _ = writes.write_all(&body) => {}
    }
    match tokio::time::timeout(Duration::from_millis(1_000), reads.read(&mut first)).await {
        Ok(count) => Err(String::from_utf8_lossy(&first[..count.unwrap_or(0)]).into_owned()),
        Err(_) => Ok(client),
    }
}

/// A client that has no answer yet, or the answer.
fn unanswered(client: Client) -> Result<Client, String> {
    let mut first = [0; 1024];
    match client.0.try_read(&mut first) {
        Ok(count) => Err(String::from_utf8_lossy(&first[..count]).into_owned()),
        Err(_) => Ok(client),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_at_once_take_bounded_memory_and_keep_no_ordinary_event_out() {
    let (folder, database) = (tempfile::tempdir().unwrap(), Database::migrated());
    let server = start(&folder, &database);
    let address = server.address.parse().unwrap();
    let before = resident(&server);
    let held = join_all((0..200).map(|_| large_body(address))).await;
    let after = resident(&server);
    // On a slow machine some had arrived for so long that they gave way to later ones, and are told so now.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (held, refused): (Vec<_>, Vec<_>) =
        held.into_iter().map(|body| body.and_then(unanswered)).partition(Result::is_ok);
    // What is free for each body makes it a few more than 32.
    assert!((32..=40).contains(&held.len()), "{} bodies of the largest size are in memory", held.len());
    for answer in refused.into_iter().filter_map(Result::err) {
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 5\r\n"), "{answer:?}");
        assert!(answer.contains(r#"{"error":{"code":"unavailable","message":""#), "{answer}");
    }
    let (ordinary, took) = Client::connect(address).await.deliver(&event(1)).await;
    assert!(ordinary.starts_with("HTTP/1.1 200 ") && took < Duration::from_secs(1), "{took:?}: {ordinary}");
    if let (Some(before), Some(after)) = (before, after) {
        let grown = after.saturating_sub(before) / MIB;
        println!("200 large bodies: {grown} MiB");
        assert!(grown < 96, "200 large bodies took {grown} MiB");
    }

    // Once they have been answered there is room again.
    for mut client in held.into_iter().filter_map(Result::ok) {
        client.send(" ").await;
        let answer = client.answer().await;
        assert!(answer.contains(r#""code":"invalid_signature""#), "{answer}");
    }
    assert!(large_body(address).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_event_keeps_its_share_of_the_memory_until_it_is_answered() {
    const LIMIT: usize = 64 << 10;
    let patient = Duration::from_secs(20);
    let settings = Settings { body_limit: LIMIT, pool_size: 1, pool_timeout: patient, ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE stripe_events IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // Half of each is free, and 32 whole ones fit: of these 64.
    let events = (0..70).map(|n| {
        let event = json!({"id": format!("evt_{n}"), "type": "some.thing", "padding": ""});
        let padding = "x".repeat(LIMIT - event.to_string().len());
        json!({"id": format!("evt_{n}"), "type": "some.thing", "padding": padding}).to_string().into_bytes()
    });
    let release = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        locker.batch_execute("ROLLBACK").await.unwrap();
    };
    let (answers, ()) = tokio::join!(join_all(events.map(|event| app.deliver_bytes(event))), release);
    let (taken, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    // A few more where the machine is so slow that bodies count as slow.
    assert!((1..=12).contains(&refused.len()), "{} are taken, {} refused", taken.len(), refused.len());
    assert!(refused.iter().all(|answer| answer.status == 503 && answer.error_code() == "unavailable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_large_bodies_of_a_stranger_keep_no_large_event_out() {
    let (folder, database) = (tempfile::tempdir().unwrap(), Database::migrated());
    let server = start(&folder, &database);
    let address = server.address.parse().unwrap();
    let held = join_all((0..60).map(|_| large_body(address))).await;
    assert!(held.iter().filter(|body| body.is_ok()).count() >= 32, "the peer's whole share is taken");
    let padding = "x".repeat(300 << 10);
    let mut client = Client::connect(address).await;
    for n in 0..5 {
        let large = event(n).with("padding", json!(padding));
        let (answer, took) = client.deliver(&large).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && took < Duration::from_secs(2), "{took:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_events_of_many_small_parts_take_bounded_memory() {
    let (folder, database) = (tempfile::tempdir().unwrap(), Database::migrated());
    let mut command = subledger(folder.path());
    command.env("DATABASE_URL", database.url()).env("STRIPE_WEBHOOK_SECRET", "whsec_test");
    // Reading and applying them takes long in a program that is not optimized.
    command.env("BODY_TIMEOUT_MS", "120000").env("POOL_TIMEOUT_MS", "60000");
    let server = Server::start(&mut command);
    let address: SocketAddr = server.address.parse().unwrap();
    let before = resident(&server);
    // Made before any connection is opened: signing takes longer than the head of a request may.
    let items = "{},".repeat(349_000);
    let requests: Vec<_> = (0..20)
        .map(|n| {
            let body = format!(r#"{{"id":"evt_{n}","type":"some.thing","data":{{"object":{{"a":[{items}0]}}}}}}"#);
            let signature = crate::support::app::signature(body.as_bytes());
            format!("{}{body}", head(body.len(), &signature))
        })
        .collect();
    let deliver = async |request: String| {
        let mut client = Client::connect(address).await;
        client.send(request).await;
        client.answer().await
    };
    let answers = join_all(requests.into_iter().map(deliver)).await;
    let taken = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 200 ")).count();
    assert!(
        taken >= 1
            && answers.iter().all(|answer| answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.1 503 "))
    );
    if let (Some(before), Some(peak)) = (before, peak(&server)) {
        let grown = peak.saturating_sub(before) / MIB;
        println!("{taken} events of 349,000 parts: {grown} MiB at most");
        assert!(grown < 320, "they took {grown} MiB");
    }
}

/// The most memory that the server ever had.
fn peak(server: &Server) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<u64>().unwrap() * 1024)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_requests_in_one_go_are_answered_as_they_are_read_and_take_no_memory() {
    const REQUESTS: usize = 10_000;
    let (folder, database) = (tempfile::tempdir().unwrap(), Database::migrated());
    let server = start(&folder, &database);
    let address = server.address.parse().unwrap();
    let before = resident(&server);
    let client = Client::connect(address).await;
    let (reads, mut writes) = client.0.into_split();
    let body = event(1).to_string();
    // Unsigned ones with a body, and some without.
    let unsigned =
        format!("POST /api/v1/webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let pair = format!("{unsigned}GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n");
    let writing = tokio::spawn(async move { writes.write_all(pair.repeat(REQUESTS / 2).as_bytes()).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (ordinary, took) = Client::connect(address).await.deliver(&event(1)).await;
    assert!(ordinary.starts_with("HTTP/1.1 200 ") && took < Duration::from_secs(1), "{took:?}: {ordinary}");
    if let (Some(before), Some(after)) = (before, resident(&server)) {
        let grown = after.saturating_sub(before) / MIB;
        println!("10,000 requests: {grown} MiB");
        assert!(grown < 16, "a client that does not read took {grown} MiB");
    }
    let mut lines = BufReader::new(reads).split(b'\n');
    let mut answered = 0;
    while answered < REQUESTS {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_segment()).await;
        let line = line.expect("an answer").unwrap().expect("closed before all was answered");
        // A body ends without the end of a line.
        answered += usize::from(String::from_utf8(line).unwrap().contains("HTTP/1.1 "));
    }
    writing.await.unwrap().unwrap();
}
