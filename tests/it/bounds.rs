//! What is too long, too deep, too many or too slow is refused with a clear answer, and one less is taken.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::app::{ADMIN_TOKEN, answer, signature};
use crate::support::events::{created, subscription};
use crate::support::raw::exchange;
use crate::support::{Event, Settings, TestApp};

/// An event that nests so many levels deep, itself the first.
fn nested(levels: usize) -> String {
    let inner = levels - 1;
    format!(r#"{{"id":"evt_{levels}","type":"x","a":{}{}}}"#, "[".repeat(inner), "]".repeat(inner))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_127_levels_is_kept_and_a_deeper_one_is_refused() {
    let app = TestApp::start().await;
    assert_eq!(app.deliver_bytes(nested(127).into_bytes()).await.outcome(), "ignored");
    let kept = app.http.get(app.url("/events/evt_127")).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
    assert!(kept.text().await.unwrap().contains(&"[".repeat(126)), "it can be read again");
    for levels in [128, 129, 400_000] {
        let refused = app.deliver_bytes(nested(levels).into_bytes()).await;
        assert_eq!((refused.status, refused.error_code()), (400, "invalid_payload"), "{levels}");
    }
    // An account's body is bounded in the same way, before its names are looked at.
    let deep = format!(r#"{{"name":"x","more":{}{}}}"#, "[".repeat(400_000), "]".repeat(400_000));
    let request = app.http.post(app.url("/api/v1/accounts")).bearer_auth(ADMIN_TOKEN);
    assert_eq!(
        answer(request.header("Content-Type", "application/json").body(deep)).await.error_code(),
        "invalid_request"
    );
    assert_eq!((app.count("stripe_events").await, app.count("accounts").await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_or_type_of_255_bytes_is_taken_and_a_longer_one_is_not() {
    let app = TestApp::start().await;
    let event = |id: &str, event_type: &str| Event::new(id, event_type, 1, json!({"id": "x"}));
    for text in ["a".repeat(255), "é".repeat(127), "😀".repeat(63)] {
        assert_eq!(app.deliver(event(&text, &text)).await.status, 200, "{text}");
        assert_eq!(app.event_row(&text).await["type"], text);
    }
    for text in ["a".repeat(256), "é".repeat(128), "a".repeat(500_000)] {
        for long in [event(&text, "x"), event("evt_1", &text)] {
            let refused = app.deliver(long).await;
            assert_eq!((refused.status, refused.error_code()), (400, "invalid_payload"));
            assert!(refused.body.to_string().len() < 300, "the answer does not repeat what was too long");
        }
    }
    assert_eq!(app.count("stripe_events").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_for_an_id_within_an_event_is_none_and_long_texts_are_kept() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let long = "x".repeat(100_000);
    let mut object = subscription("sub_1", "cus_1", "active", 5);
    object["items"]["data"][0]["price"]["id"] = json!("p".repeat(256));
    object["items"]["data"][0]["price"]["lookup_key"] = json!(long);
    object["status"] = json!(long);
    object["metadata"] = json!({"account_id": long, "note": long});
    let event = created("evt_1", 1, object).with("api_version", json!(long)).with("account", json!("a".repeat(256)));
    assert_eq!(app.deliver(event).await.outcome(), "applied");
    let row = app.subscription("sub_1").await;
    assert_eq!([&row["status"], &row["plan"], &row["stripe_price_id"]], [&json!(long), &json!(long), &json!(null)]);
    assert_eq!(app.event_row("evt_1").await["connect_account"], json!(null));

    // Parked: what waits is looked up by what it names, however long that is.
    let mut waiting = subscription("sub_2", &"c".repeat(256), "active", 5);
    waiting["metadata"] = json!({"account_id": long});
    assert_eq!(app.deliver(created("evt_2", 1, waiting)).await.outcome(), "parked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_the_limit_is_taken_and_one_byte_more_is_not() {
    let app = TestApp::start_with(Settings { body_limit: 2_000, ..Settings::default() }, None).await;
    let padded = |id: &str, length: usize| {
        let mut body = format!(r#"{{"id":"{id}","type":"x"}}"#);
        body.push_str(&" ".repeat(length - body.len()));
        body.into_bytes()
    };
    assert_eq!(app.deliver_bytes(padded("evt_1", 2_000)).await.status, 200);
    let refused = app.deliver_bytes(padded("evt_2", 2_001)).await;
    assert_eq!((refused.status, refused.error_code()), (413, "payload_too_large"));
    // What is compressed stays so: nothing is unpacked to more than was sent.
    let body = padded("evt_3", 100);
    let signed = signature(&body);
    let request = app.http.post(app.url("/api/v1/webhooks/stripe")).header("Stripe-Signature", signed);
    assert_eq!(request.header("Content-Encoding", "gzip").body(body).send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_too_long_or_has_too_many_fields_is_refused() {
    let app = TestApp::start().await;
    let head = |fields: &str| format!("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n");
    let long = |bytes: usize| head(&format!("A: {}\r\n", "a".repeat(bytes)));
    for (request, is_taken) in [
        (long(100_000), true),
        (long(140_000), false),
        (head(&"A: a\r\n".repeat(90)), true),
        (head(&"A: a\r\n".repeat(120)), false),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(70_000)), false),
    ] {
        let received = exchange(app.address, request.as_bytes()).await;
        let shown = String::from_utf8_lossy(&received);
        let expected = if is_taken { "HTTP/1.1 200 " } else { "HTTP/1.1 4" };
        assert!(shown.starts_with(expected), "{} bytes: {shown:?}", request.len());
    }
    assert_eq!(app.get("/health").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_is_not_waited_for() {
    let app = TestApp::start().await;
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nA: ").await.unwrap();
    let started = Instant::now();
    let mut received = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut received)).await;
    assert!(closed.is_ok(), "still open after {:?}", started.elapsed());
    assert!(received.starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&received));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deeply_nested_event_makes_no_large_page() {
    let app = TestApp::start().await;
    let wide = vec!["1"; 400_000].join(",");
    let deep = format!(r#"{{"id":"evt_1","type":"x","a":{}{wide}{}}}"#, "[".repeat(120), "]".repeat(120));
    let quotes = format!(r#"{{"id":"evt_2","type":"x","a":"{}"}}"#, r#"\""#.repeat(400_000));
    for (id, body) in [("evt_1", deep), ("evt_2", quotes)] {
        assert_eq!(app.deliver_bytes(body.into_bytes()).await.outcome(), "ignored");
        let page = app.http.get(app.url(&format!("/admin/events/{id}"))).bearer_auth(ADMIN_TOKEN);
        let page = page.send().await.unwrap().text().await.unwrap();
        assert!(page.len() < 3 << 20, "{id}: {} bytes", page.len());
        assert!(page.contains("This is its beginning.") && page.contains(&format!("href=\"/events/{id}\"")));
    }
    // An ordinary one is shown whole.
    app.deliver(created("evt_3", 1, subscription("sub_1", "cus_1", "active", 5))).await;
    let page = app.http.get(app.url("/admin/events/evt_3")).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
    assert!(!page.text().await.unwrap().contains("This is its beginning."));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_leads_people_to_the_page_and_tells_programs_what_this_is() {
    let app = TestApp::start().await;
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let browser = http.get(app.url("/")).header("Accept", "text/html,*/*;q=0.8").send().await.unwrap();
    assert_eq!((browser.status().as_u16(), &browser.headers()["location"]), (303, &"/admin".parse().unwrap()));
    let program = http.get(app.url("/")).send().await.unwrap();
    assert_eq!(program.status(), 200);
    assert!(program.text().await.unwrap().contains("/api/v1/webhooks/stripe"));
    let posted = answer(http.post(app.url("/"))).await;
    assert_eq!((posted.status, posted.error_code()), (405, "method_not_allowed"));
}
