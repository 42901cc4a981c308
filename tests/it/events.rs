//! Events over HTTP: finding them, paging through them, and applying one again.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{ADMIN_TOKEN, Answer, answer};
use crate::support::events::{invoice, subscription};
use crate::support::{Event, Settings, TestApp};

const CREATED: &str = "customer.subscription.created";
const UPDATED: &str = "customer.subscription.updated";

fn updated(id: &str, subscription_id: &str, customer: &str, seats: i64) -> Event {
    Event::new(id, UPDATED, 1_760_000_000, subscription(subscription_id, customer, "active", seats))
}

fn ids(answer: &Answer) -> Vec<&str> {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["data"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap()).collect()
}

/// Makes events with five seats or more fail.
async fn refuse_five_seats(app: &TestApp) {
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
}

async fn allow_five_seats(app: &TestApp) {
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
}

async fn replay(app: &TestApp, id: &str) -> Answer {
    app.admin(Method::POST, &format!("/events/{id}/replay"), None).await
}

/// One event of every status: evt_applied, evt_stale, evt_ignored, evt_parked and evt_failed, in this order.
async fn one_of_each(app: &TestApp) -> String {
    let account = app.account_of("cus_1").await.to_string();
    let (sub_1, sub_2) =
        (subscription("sub_1", "cus_1", "active", 1), subscription("sub_2", "cus_unknown", "active", 1));
    app.deliver(Event::new("evt_applied", UPDATED, 200, sub_1.clone())).await;
    app.deliver(Event::new("evt_stale", CREATED, 100, sub_1)).await;
    app.deliver(Event::new("evt_ignored", "charge.succeeded", 100, json!({"id": "ch_1", "customer": "cus_1"}))).await;
    app.deliver(Event::new("evt_parked", UPDATED, 100, sub_2)).await;
    refuse_five_seats(app).await;
    assert_eq!(app.deliver(updated("evt_failed", "sub_1", "cus_1", 5)).await.status, 500);
    account
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_newest_first_and_every_filter_narrows_it() {
    let app = TestApp::start().await;
    let account = one_of_each(&app).await;
    let cases = [
        ("", vec!["evt_failed", "evt_parked", "evt_ignored", "evt_stale", "evt_applied"]),
        ("status=applied", vec!["evt_applied"]),
        ("status=stale", vec!["evt_stale"]),
        ("status=ignored", vec!["evt_ignored"]),
        ("status=parked", vec!["evt_parked"]),
        ("status=failed", vec!["evt_failed"]),
        ("type=customer.subscription.updated", vec!["evt_failed", "evt_parked", "evt_applied"]),
        ("type=nobody.knows", vec![]),
        ("customer=cus_1", vec!["evt_failed", "evt_ignored", "evt_stale", "evt_applied"]),
        ("subscription=sub_1", vec!["evt_failed", "evt_stale", "evt_applied"]),
        (&format!("account={account}"), vec!["evt_ignored", "evt_stale", "evt_applied"]),
        ("subscription=sub_1&status=failed&type=customer.subscription.updated&customer=cus_1", vec!["evt_failed"]),
        ("subscription=sub_1&status=parked", vec![]),
        ("customer=cus%5F1&status=applied", vec!["evt_applied"]),
        ("starting_after=evt_ignored", vec!["evt_stale", "evt_applied"]),
        ("starting_after=evt_failed&limit=1", vec!["evt_parked"]),
        ("starting_after=evt_applied", vec![]),
    ];
    for (query, expected) in cases {
        let page = app.get(&format!("/events?{query}")).await;
        assert_eq!(ids(&page), expected, "{query}");
        assert_eq!(page.body["has_more"], json!(query.contains("limit=1")), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_the_contracts_fields_and_its_payload_alone() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    let event = Event::new("evt_1", UPDATED, 1_760_000_000, subscription("sub_1", "cus_1", "active", 5))
        .with("account", json!("acct_1"))
        .with("livemode", json!(true));
    app.deliver(&event).await;
    let alone = app.get("/events/evt_1").await;
    let mut shown = alone.body.as_object().unwrap().clone();
    assert!(shown["received_at"].as_str().unwrap().ends_with('Z'));
    shown.remove("received_at");
    assert_eq!(shown.remove("payload").unwrap(), event.0);
    let expected = json!({
        "id": "evt_1",
        "type": UPDATED,
        "status": "applied",
        "created": "2025-10-09T08:53:20Z",
        "api_version": "2025-03-31.basil",
        "livemode": true,
        "connect_account": "acct_1",
        "customer": "cus_1",
        "subscription": "sub_1",
        "account": account,
        "failures": [],
    });
    assert_eq!(Value::Object(shown), expected);

    let list = app.get("/events").await;
    let mut listed = alone.body.clone();
    listed.as_object_mut().unwrap().remove("payload");
    assert_eq!(list.body, json!({"data": [listed], "has_more": false}));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_only_ever_failed_is_shown_with_every_attempt_newest_first() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let event = updated("evt_1", "sub_1", "cus_1", 7);
    for constraint in ["first", "second", "third"] {
        app.execute(&format!("ALTER TABLE subscriptions ADD CONSTRAINT {constraint} CHECK (seat_limit < 5)")).await;
        assert_eq!(app.deliver(&event).await.status, 500);
        app.execute(&format!("ALTER TABLE subscriptions DROP CONSTRAINT {constraint}")).await;
    }
    let alone = app.get("/events/evt_1").await;
    assert_eq!(alone.body["status"], "failed");
    assert_eq!(alone.body["payload"], event.0);
    assert_eq!(
        (&alone.body["customer"], &alone.body["subscription"], &alone.body["account"]),
        (&json!("cus_1"), &json!("sub_1"), &Value::Null)
    );
    let failures = alone.body["failures"].as_array().unwrap();
    let errors: Vec<_> = failures.iter().map(|failure| failure["error"].as_str().unwrap()).collect();
    assert_eq!(errors.len(), 3);
    for (error, constraint) in errors.iter().zip(["third", "second", "first"]) {
        assert!(error.contains(constraint), "{errors:?}");
    }
    let times: Vec<_> = failures.iter().map(|failure| failure["failed_at"].as_str().unwrap()).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older), "{times:?}");
    assert_eq!(alone.body["received_at"], failures[2]["failed_at"], "it came with its first attempt");
    let list = app.get("/events?status=failed").await;
    assert_eq!(ids(&list), ["evt_1"], "once, however often it failed");
    assert_eq!(list.body["data"][0]["failures"], alone.body["failures"]);
    assert!(list.body["data"][0].get("payload").is_none());

    assert_eq!(app.deliver(&event).await.outcome(), "applied");
    let applied = app.get("/events/evt_1").await;
    assert_eq!(applied.body["status"], "applied");
    assert_eq!(applied.body["failures"], alone.body["failures"], "the attempts stay");
    assert_eq!(applied.body["received_at"], alone.body["received_at"], "and its place in lists");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_neither_skip_nor_repeat_while_events_arrive() {
    let app = TestApp::start().await;
    let fill = |from: u32| (from..from + 60).map(|n| format!("evt_{n:03}")).collect::<Vec<_>>();
    let before = fill(0);
    for id in &before {
        app.deliver(Event::new(id, "charge.succeeded", 100, json!({"id": "ch_1"}))).await;
    }
    let arrive = async {
        for chunk in fill(100).chunks(6) {
            let deliver = |id: &String| app.deliver(Event::new(id, "charge.succeeded", 100, json!({"id": "ch_1"})));
            futures_util::future::join_all(chunk.iter().map(deliver)).await;
        }
    };
    let read = async {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = app.get(&format!("/events?limit=7{after}")).await;
            seen.extend(ids(&page).into_iter().map(str::to_owned));
            if page.body["has_more"] == false {
                return seen;
            }
            after = format!("&starting_after={}", seen.last().unwrap());
        }
    };
    let (seen, ()) = tokio::join!(read, arrive);
    let mut once = seen.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), seen.len(), "none twice");
    let old: Vec<_> = seen.iter().rev().filter(|id| id.as_str() < "evt_100").collect();
    assert_eq!(old, before.iter().collect::<Vec<_>>(), "all that were there, in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_instant_are_paged_by_their_ids() {
    let app = TestApp::start().await;
    app.execute(
        "INSERT INTO stripe_events (id, type, outcome, livemode, received_at, payload)
         SELECT 'evt_' || n, 'x', 'ignored', false, '2026-01-01', '{}' FROM generate_series(10, 29) n;
         INSERT INTO event_failures (event_id, type, failed_at, error)
         SELECT 'evt_' || n, 'x', '2026-01-01', 'boom' FROM generate_series(20, 39) n, generate_series(1, 2)",
    )
    .await;
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = app.get(&format!("/events?limit=3{after}")).await;
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        if page.body["has_more"] == false {
            break;
        }
        after = format!("&starting_after={}", seen.last().unwrap());
    }
    let expected: Vec<_> = (10..40).rev().map(|n| format!("evt_{n}")).collect();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_event_that_is_applied_between_two_pages_keeps_its_place() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    refuse_five_seats(&app).await;
    for n in 0..6 {
        let seats = if n % 2 == 0 { 9 } else { 1 };
        app.deliver(updated(&format!("evt_{n}"), &format!("sub_{n}"), "cus_1", seats)).await;
    }
    assert_eq!(ids(&app.get("/events?status=failed").await), ["evt_4", "evt_2", "evt_0"]);
    let first = app.get("/events?limit=3").await;
    assert_eq!(ids(&first), ["evt_5", "evt_4", "evt_3"]);
    allow_five_seats(&app).await;
    // One that is on the first page, and one that comes on the second.
    for id in ["evt_4", "evt_2"] {
        assert_eq!(replay(&app, id).await.body, json!({"applied": true, "outcome": "applied"}));
    }
    let second = app.get("/events?limit=3&starting_after=evt_3").await;
    assert_eq!(ids(&second), ["evt_2", "evt_1", "evt_0"]);
    // The event that a page starts behind may itself have changed.
    assert_eq!(ids(&app.get("/events?limit=2&starting_after=evt_4").await), ["evt_3", "evt_2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_query_is_refused_in_words_that_name_the_parameter() {
    let app = TestApp::start().await;
    let long = format!("customer={}", "x".repeat(256));
    for (query, word) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=-1", "limit"),
        ("limit=999999999999", "limit"),
        ("limit=", "limit"),
        ("limit=ten", "limit"),
        ("limit=1&limit=2", "limit"),
        ("status=done", "done"),
        ("status=", "applied"),
        ("account=acme", "account"),
        ("customer=%00", "customer"),
        ("customer=", "customer"),
        (&long, "customer"),
        ("starting_after=evt_nobody", "starting_after"),
        ("starting_after=%00", "starting_after"),
        ("colour=red", "colour"),
        ("ending_before=evt_1", "ending_before"),
    ] {
        let answer = app.get(&format!("/events?{query}")).await;
        assert_eq!((answer.status, answer.error_code()), (400, "invalid_request"), "{query}");
        assert!(answer.body["error"]["message"].as_str().unwrap().contains(word), "{query}: {answer:?}");
    }
    for limit in [1, 100] {
        assert_eq!(app.get(&format!("/events?limit={limit}")).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_limit_is_twenty() {
    let app = TestApp::start().await;
    app.execute(
        "INSERT INTO stripe_events (id, type, outcome, livemode, payload)
         SELECT 'evt_' || n, 'x', 'ignored', false, '{}' FROM generate_series(1, 21) n",
    )
    .await;
    let page = app.get("/events").await;
    assert_eq!((ids(&page).len(), &page.body["has_more"]), (20, &json!(true)));
    let exact = app.get("/events?limit=21").await;
    assert_eq!((ids(&exact).len(), &exact.body["has_more"]), (21, &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_applies_what_failed_once() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    refuse_five_seats(&app).await;
    app.deliver(updated("evt_1", "sub_1", "cus_1", 5)).await;
    let again = replay(&app, "evt_1").await;
    assert_eq!((again.status, again.error_code()), (500, "event_failed"));
    assert!(!again.body.to_string().contains("few_seats"), "{again:?}");
    assert_eq!(app.count("event_failures").await, 2, "a replay that fails is an attempt too");
    allow_five_seats(&app).await;

    let replays = futures_util::future::join_all((0..5).map(|_| replay(&app, "evt_1"))).await;
    assert!(replays.iter().all(|answer| answer.status == 200), "{replays:?}");
    let applied = json!({"applied": true, "outcome": "applied"});
    let duplicate = json!({"applied": false, "outcome": "duplicate"});
    assert_eq!(replays.iter().filter(|answer| answer.body == applied).count(), 1, "{replays:?}");
    assert_eq!(replays.iter().filter(|answer| answer.body == duplicate).count(), 4, "{replays:?}");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 5);
    assert_eq!(app.get("/events/evt_1").await.body["status"], "applied");

    app.execute("UPDATE subscriptions SET seat_limit = 99").await;
    assert_eq!(replay(&app, "evt_1").await.body, duplicate, "what is applied is not run again");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 99);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_applies_what_was_parked_once_it_can_be_placed() {
    let app = TestApp::start().await;
    app.deliver(updated("evt_1", "sub_1", "cus_1", 5)).await;
    app.deliver(Event::new("evt_2", "invoice.paid", 1_760_000_000, invoice("in_1", "cus_1", "sub_1"))).await;
    assert_eq!(replay(&app, "evt_1").await.body, json!({"applied": true, "outcome": "parked"}));
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 2);
    // Linked behind our back.
    app.account_of("cus_1").await;
    assert_eq!(replay(&app, "evt_1").await.body["outcome"], "applied");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 5);
    assert_eq!(replay(&app, "evt_1").await.body, json!({"applied": false, "outcome": "duplicate"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let app = TestApp::start().await;
    for (method, path) in [
        (Method::GET, "/events/evt_nobody"),
        (Method::POST, "/events/evt_nobody/replay"),
        (Method::GET, "/events/%00"),
        (Method::POST, "/events/%00/replay"),
        (Method::GET, "/events/%FF"),
        (Method::GET, "/events/%"),
        (Method::GET, "/events/a%2Fb"),
        (Method::GET, "/events/evt%0Aforged"),
        (Method::GET, "/events/evt_1/"),
        (Method::GET, "/api/v1/accounts/%FF"),
        (Method::GET, "/api/v1/accounts/acme"),
        (Method::GET, "/nothing"),
        (Method::PUT, "/nothing"),
        (Method::GET, "/%zz"),
    ] {
        let answer = app.admin(method.clone(), path, None).await;
        assert_eq!((answer.status, answer.error_code()), (404, "not_found"), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_a_path_does_not_take_is_told_which_it_takes() {
    let app = TestApp::start().await;
    for (path, allowed) in [
        ("/api/v1/webhooks/stripe", "POST"),
        ("/health", "GET, HEAD"),
        ("/health/live", "GET, HEAD"),
        ("/events", "GET, HEAD"),
        ("/events/evt_1", "GET, HEAD"),
        ("/events/evt_1/replay", "POST"),
        ("/api/v1/accounts", "GET, HEAD, POST"),
        ("/api/v1/accounts/acme", "GET, HEAD, PATCH"),
        ("/metrics", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ] {
        for method in [Method::DELETE, Method::OPTIONS, Method::TRACE, Method::from_bytes(b"BREW").unwrap()] {
            let response = app.http.request(method.clone(), app.url(path)).send().await.unwrap();
            assert_eq!(response.status(), 405, "{method} {path}");
            assert_eq!(response.headers()["allow"], allowed, "{method} {path}");
            assert_eq!(response.headers()["content-type"], "application/json", "{method} {path}");
            let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            assert_eq!(body["error"]["code"], "method_not_allowed", "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_answers_as_get_without_the_body() {
    let app = TestApp::start().await;
    for path in ["/health", "/health/live", "/events", "/events/evt_nobody", "/metrics", "/openapi.json", "/nothing"] {
        let get = app.http.get(app.url(path)).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
        let head = app.http.head(app.url(path)).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
        assert_eq!(head.status(), get.status(), "{path}");
        assert_eq!(head.headers()["content-type"], get.headers()["content-type"], "{path}");
        assert!(head.text().await.unwrap().is_empty(), "{path}");
    }
}

const ADMIN_ROUTES: [(Method, &str); 8] = [
    (Method::GET, "/events"),
    (Method::GET, "/events?limit=0"),
    (Method::GET, "/events/evt_1"),
    (Method::POST, "/events/evt_1/replay"),
    (Method::POST, "/api/v1/accounts"),
    (Method::GET, "/api/v1/accounts/7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11"),
    (Method::PATCH, "/api/v1/accounts/7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11"),
    (Method::GET, "/metrics"),
];

#[tokio::test(flavor = "multi_thread")]
async fn only_admins_are_answered() {
    let app = TestApp::start().await;
    let wrong = [
        None,
        Some("Bearer".to_owned()),
        Some("Bearer ".to_owned()),
        Some("Bearer wrong".to_owned()),
        Some(format!("Bearer {ADMIN_TOKEN}x")),
        Some(format!("Basic {ADMIN_TOKEN}")),
        Some(ADMIN_TOKEN.to_owned()),
    ];
    for (method, path) in ADMIN_ROUTES {
        for authorization in &wrong {
            let mut request = app.http.request(method.clone(), app.url(path));
            if let Some(authorization) = authorization {
                request = request.header("Authorization", authorization);
            }
            let answer = answer(request).await;
            let case = format!("{method} {path} {authorization:?}");
            assert_eq!((answer.status, answer.error_code()), (401, "unauthorized"), "{case}");
        }
    }
    let response = app.http.get(app.url("/events")).send().await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_nobody_is_an_admin() {
    let app = TestApp::start_with(Settings { admin_token: None, ..Settings::default() }, None).await;
    for (method, path) in ADMIN_ROUTES {
        for request in [
            app.http.request(method.clone(), app.url(path)),
            app.http.request(method.clone(), app.url(path)).bearer_auth(ADMIN_TOKEN),
            app.http.request(method.clone(), app.url(path)).header("Authorization", "Bearer "),
        ] {
            let answer = answer(request).await;
            assert_eq!((answer.status, answer.error_code()), (403, "forbidden"), "{method} {path}");
        }
    }
}
