//! Input that is no delivery: a clear answer, and nothing stored.

use std::time::Duration;

use chrono::Utc;
use reqwest::Method;
use serde_json::json;
use subledger::secret::Secret;
use subledger::stripe::signature::sign;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::app::WEBHOOK_SECRET;
use crate::support::events::subscription;
use crate::support::{Event, Settings, TestApp};

fn event() -> Event {
    Event::new("evt_1", "customer.subscription.created", 100, subscription("sub_1", "cus_1", "active", 5))
}

async fn assert_nothing_stored(app: &TestApp) {
    for table in ["stripe_events", "event_failures", "subscriptions"] {
        assert_eq!(app.count(table).await, 0, "{table}");
    }
}

/// Sends these bytes and returns the answer, which is an error.
async fn talk(app: &TestApp, request: &str) -> String {
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let whole = async {
        while !answer.ends_with(b"}}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "closed before a whole answer");
        }
    };
    tokio::time::timeout(Duration::from_secs(5), whole).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_that_does_not_verify_is_400_and_stores_nothing() {
    let app = TestApp::start().await;
    let body = event().to_string().into_bytes();
    let now = Utc::now().timestamp();
    let signed = |secret: &str, at: i64| sign(&body, &Secret::new(secret), at);
    let right = signed(WEBHOOK_SECRET, now);
    let huge = format!("{right},v0={}", "0".repeat(60_000));
    for signature in [
        None,
        Some(""),
        Some("nonsense"),
        Some(signed("whsec_other", now).as_str()),
        Some(signed(WEBHOOK_SECRET, now - 400).as_str()),
        Some(signed(WEBHOOK_SECRET, now + 400).as_str()),
        Some(right.replace("v1=", "v0=").as_str()),
        Some(huge.as_str()),
    ] {
        let refused = app.deliver_signed(body.clone(), signature).await;
        let shown = signature.map(|text| text.chars().take(80).collect::<String>());
        assert_eq!((refused.status, refused.error_code()), (400, "invalid_signature"), "{shown:?}");
    }
    let mut altered = body.clone();
    altered.push(b' ');
    assert_eq!(app.deliver_signed(altered, Some(&right)).await.error_code(), "invalid_signature");
    assert_nothing_stored(&app).await;
    assert_eq!(app.deliver_signed(body, Some(&right)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_of_several_secrets_may_have_signed() {
    let settings = Settings { secrets: vec!["whsec_old", "whsec_new"], ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    for (number, secret) in ["whsec_old", "whsec_new"].into_iter().enumerate() {
        let body = Event::new(&format!("evt_{number}"), "x", 1, json!({"id": "x"})).to_string().into_bytes();
        let signature = sign(&body, &Secret::new(secret), Utc::now().timestamp());
        assert_eq!(app.deliver_signed(body, Some(&signature)).await.status, 200, "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_bytes_that_are_no_event_are_400_and_store_nothing() {
    let app = TestApp::start().await;
    let deep = format!(r#"{{"id":"evt_1","type":"x","data":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        "".as_bytes(),
        b"not json",
        b"{\"id\": \"evt_1\"",
        b"[1, 2]",
        br#"{"id": "evt_1"}"#,
        br#"{"type": "customer.subscription.created"}"#,
        br#"{"id": "", "type": "x"}"#,
        br#"{"id": 7, "type": "x"}"#,
        b"{\"id\": \"evt_\xff\", \"type\": \"x\"}",
        deep.as_bytes(),
    ] {
        let refused = app.deliver_bytes(body.to_vec()).await;
        let shown = String::from_utf8_lossy(body).chars().take(60).collect::<String>();
        assert_eq!((refused.status, refused.error_code()), (400, "invalid_payload"), "{shown}");
    }
    assert_nothing_stored(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_413_whether_or_not_it_says_so() {
    let app = TestApp::start_with(Settings { body_limit: 4_096, ..Settings::default() }, None).await;
    let announced = app.deliver_bytes(vec![b' '; 5_000]).await;
    assert_eq!((announced.status, announced.error_code()), (413, "payload_too_large"));
    let head = "POST /api/v1/webhooks/stripe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{}\r\n", 1_000, " ".repeat(1_000));
    let text = talk(&app, &format!("{head}{}", chunk.repeat(5))).await;
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    assert!(text.contains(r#""code":"payload_too_large""#), "{text}");
    let fitting = Event::new("evt_1", "x", 1, json!({"id": "x"}));
    assert_eq!(app.deliver(fitting).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announced_body_over_the_limit_is_refused_before_it_is_sent() {
    let app = TestApp::start().await;
    let head = "POST /api/v1/webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n";
    let text = talk(&app, head).await;
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    assert!(text.contains(r#""code":"payload_too_large""#), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_arrive_in_time_is_408() {
    let settings = Settings { body_timeout: Duration::from_millis(200), ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let head = "POST /api/v1/webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
    let text = talk(&app, head).await;
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(text.contains(r#""code":"request_timeout""#), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_jsonb_cannot_hold_is_replaced_and_the_event_is_kept() {
    let app = TestApp::start().await;
    for name in [
        "basil/customer.subscription.updated.metadata_hostile",
        "basil/customer.subscription.updated.metadata_lone_surrogate",
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.json"));
        let answer = app.deliver_bytes(std::fs::read(path).unwrap()).await;
        assert_eq!((answer.status, answer.outcome()), (200, "parked"), "{name}");
    }
    let raw = r#"{"id":"evt_nul","type":"x","data":{"object":{"id":"a\u0000b","kept":"c\\u0000d"}}}"#;
    assert_eq!(app.deliver_bytes(raw.as_bytes().to_vec()).await.outcome(), "ignored");
    let object = &app.event_row("evt_nul").await["payload"]["data"]["object"];
    assert_eq!(object, &json!({"id": "a\u{fffd}b", "kept": "c\\u0000d"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_stored_as_they_came() {
    let app = TestApp::start().await;
    let raw = r#"{"id":"evt_1","type":"x","n":12345678901234567890123456789,"d":1.10,"data":{}}"#;
    assert_eq!(app.deliver_bytes(raw.as_bytes().to_vec()).await.outcome(), "ignored");
    let stored: String =
        app.one("SELECT (payload->'n')::text || ' ' || (payload->'d')::text FROM stripe_events").await.get(0);
    assert_eq!(stored, "12345678901234567890123456789 1.10");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_jsonb_cannot_hold_is_kept_as_a_string() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let mut event = event().to_string();
    event = event
        .replace("\"quantity\":5", "\"quantity\":1e200000")
        .replace("\"trial_end\":null", "\"trial_end\":-1e-20000");
    let answer = app.deliver_bytes(event.into_bytes()).await;
    assert_eq!((answer.status, answer.outcome()), (200, "applied"));
    let row = app.subscription("sub_1").await;
    assert_eq!([&row["seat_limit"], &row["trial_end"]], [&json!(null), &json!(null)]);
    let object = &app.event_row("evt_1").await["payload"]["data"]["object"];
    assert_eq!([&object["items"]["data"][0]["quantity"], &object["trial_end"]], ["1e200000", "-1e-20000"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_methods_and_paths_have_the_one_form_of_error() {
    let app = TestApp::start().await;
    for (method, path, status, code) in [
        (Method::GET, "/api/v1/webhooks/stripe", 405, "method_not_allowed"),
        (Method::DELETE, "/health", 405, "method_not_allowed"),
        (Method::GET, "/nowhere", 404, "not_found"),
        (Method::POST, "/", 405, "method_not_allowed"),
        (Method::GET, "/events/evt_none", 404, "not_found"),
        (Method::GET, "/api/v1/accounts/not-a-uuid", 404, "not_found"),
    ] {
        let refused = app.admin(method.clone(), path, None).await;
        assert_eq!((refused.status, refused.error_code()), (status, code), "{method} {path}");
    }
}
