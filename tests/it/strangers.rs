//! What somebody without secret or token sends: it reaches no table, and the log holds nothing of it.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use tokio_postgres::Client;

use crate::support::binary::{Server, subledger};
use crate::support::database::Database;
use crate::support::raw::exchange;

/// A word that stands in everything that the stranger sends, so that it can be looked for.
const MARK: &str = "stranger";

/// Control sequences as bytes, as UTF-8, and as what might be decoded to them.
const TRICKS: [&str; 6] =
    ["\u{1b}[2Jstranger", "\u{9b}2Jstranger", "%0a%1b[31mstranger", "\\nstranger", "{}stranger{0}%s", "\tstranger"];

/// Every table and how many rows it has.
async fn rows(sql: &Client) -> Vec<(String, i64)> {
    let tables = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1";
    let mut rows = Vec::new();
    for table in sql.query(tables, &[]).await.unwrap() {
        let table: String = table.get(0);
        let count = sql.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0);
        rows.push((table, count));
    }
    rows
}

/// Requests to every endpoint, with tricks wherever a request has room for them.
fn requests() -> Vec<Vec<u8>> {
    let signature = "t=1760000000,v1=0000000000000000000000000000000000000000000000000000000000000000";
    let body = format!(r#"{{"id":"evt_{MARK}","type":"{MARK}","name":"{MARK}","token":"{MARK}\n"}}"#);
    let places = [
        ("POST", "/api/v1/webhooks/stripe"),
        ("GET", "/events/stranger"),
        ("GET", "/events?customer=stranger&limit=stranger"),
        ("POST", "/events/stranger/replay"),
        ("POST", "/api/v1/accounts"),
        ("PATCH", "/api/v1/accounts/stranger"),
        ("GET", "/api/v1/accounts?q=stranger"),
        ("DELETE", "/api/v1/accounts/stranger/customers/stranger"),
        ("GET", "/admin/accounts?q=stranger"),
        ("POST", "/admin/accounts/stranger/unlink"),
        ("GET", "/metrics?stranger"),
        ("GET", "/admin/search?q=stranger"),
        ("POST", "/admin/login"),
        ("POST", "/admin/events/stranger/link"),
        ("DELETE", "/health/stranger"),
        ("STRANGER", "/health"),
    ];
    let mut requests = Vec::new();
    for (method, path) in places {
        for trick in TRICKS {
            let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {MARK}\r\nConnection: close\r\n");
            let secrets = [
                ("Stripe-Signature", format!("{signature},{trick}")),
                ("Authorization", format!("Bearer {trick}")),
                ("Cookie", format!("subledger_session={trick}")),
            ];
            let names =
                ["X-Request-Id", "User-Agent", "Referer", "Origin", "X-Forwarded-For", "X-CSRF-Token", "Accept"];
            let others = names.map(|name| (name, trick.to_owned()));
            for (name, value) in secrets.into_iter().chain(others) {
                request += &format!("{name}: {value}\r\n");
            }
            request += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
            // A field may hold any byte but a few, the escape among them: both kinds of request are tried.
            requests.push(request.replace(['\u{1b}', '\u{9b}'], "\u{a0}").into_bytes());
            requests.push(request.into_bytes());
            let in_path = format!(
                "{method} {path}{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                trick.replace('\t', "%09")
            );
            requests.push(in_path.into_bytes());
        }
    }
    requests.extend([
        b"\x16\x03\x01stranger\x1b[2J\r\n\r\n".to_vec(),
        b"GET /\xff\xfestranger HTTP/1.1\r\nConnection: close\r\n\r\n".to_vec(),
    ]);
    for framing in ["Content-Length: stranger", "Content-Length: 1\r\nContent-Length: 2", "Transfer-Encoding: chunked"]
    {
        let path = "/api/v1/webhooks/stripe";
        requests.push(format!("POST {path} HTTP/1.1\r\nConnection: close\r\n{framing}\r\n\r\nstranger\r\n").into());
    }
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_stranger_is_stored_or_logged() {
    for log_format in ["text", "json"] {
        let database = Database::migrated();
        let folder = tempfile::tempdir().unwrap();
        let mut command = subledger(folder.path());
        command
            .env("DATABASE_URL", database.url())
            .env("STRIPE_WEBHOOK_SECRET", "whsec_ours")
            .env("ADMIN_TOKEN", "token-of-ours")
            .env("LOG_FORMAT", log_format)
            .env("RUST_LOG", "trace");
        let server = Server::start(&mut command);
        let address: SocketAddr = server.address.parse().unwrap();
        let sql = database.client().await;
        let before = rows(&sql).await;
        let mut refused = 0;
        for request in requests() {
            let received = exchange(address, &request).await;
            let answer = String::from_utf8_lossy(&received);
            let status = answer.split(' ').nth(1).unwrap_or("none");
            assert!(status == "none" || status.starts_with('4') || is_page(&request, status), "{answer}");
            refused += usize::from(answer.contains("invalid_signature"));
        }
        assert!(refused > 5, "deliveries came as far as their signature: {refused}");
        assert_eq!(rows(&sql).await, before);
        server.signal(Signal::SIGTERM);
        let log = server.log_to_the_end();
        assert!(log.iter().any(|line| line.contains("delivery refused")), "{log:#?}");
        for line in log {
            assert!(!line.to_lowercase().contains(MARK), "{line}");
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
}

/// The page leads somebody who is not logged in to its form.
fn is_page(request: &[u8], status: &str) -> bool {
    String::from_utf8_lossy(request).contains(" /admin/") && status == "303"
}
