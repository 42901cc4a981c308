//! `GET /api/v1/changes` and its stream, `?at=`, and pruning.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{write, write_many};
use crate::support::app::{ADMIN_TOKEN, Settings};
use crate::support::events::{checkout, completed, created, deleted, invoice, paid, subscription, updated};
use crate::support::stripe::StripeApi;
use crate::support::{TestApp, job};

fn ids(page: &Value) -> Vec<i64> {
    page["data"].as_array().unwrap().iter().map(|change| change["id"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_lead_through_all_changes_or_those_of_an_account() {
    let app = TestApp::start().await;
    let (mine, other) = (Uuid::new_v4(), Uuid::new_v4());
    let mut all = Vec::new();
    for number in 0..5 {
        all.push(write(&app.sql, mine, Uuid::new_v4(), number).await);
        all.push(write(&app.sql, other, Uuid::new_v4(), number).await);
    }
    super::settled(&app.sql).await;
    let (mut read, mut next) = (Vec::new(), "0".to_owned());
    loop {
        let page = app.get(&format!("/api/v1/changes?after={next}&limit=4")).await;
        assert_eq!(page.status, 200);
        read.extend(ids(&page.body));
        next = page.body["next"].as_str().unwrap().to_owned();
        if page.body["has_more"] == false {
            break;
        }
    }
    assert_eq!(read, all);
    let empty = app.get(&format!("/api/v1/changes?after={next}")).await.body;
    assert_eq!(empty, json!({"data": [], "next": next, "has_more": false}));
    let page = app.get(&format!("/api/v1/changes?account={mine}")).await.body;
    assert_eq!(ids(&page).len(), 5);
    let change = &page["data"][0];
    assert_eq!((&change["account_id"], &change["before"]), (&json!(mine), &Value::Null));
    assert_eq!((&change["kinds"], &change["after"]["status"]), (&json!(["seats_changed"]), &json!("active")));
    for query in ["after=-1", "after=x", "limit=0", "limit=1001", "wait=31", "account=1", "unknown=1"] {
        assert_eq!(app.get(&format!("/api/v1/changes?{query}")).await.error_code(), "invalid_request", "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_request_is_answered_when_there_is_a_change_and_empty_when_its_time_is_over() {
    let app = TestApp::start().await;
    let account = Uuid::new_v4();
    let begun = Instant::now();
    let empty = app.get("/api/v1/changes?wait=1").await.body;
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(10));
    assert_eq!(empty, json!({"data": [], "next": "0", "has_more": false}));
    let begun = Instant::now();
    let path = format!("/api/v1/changes?wait=30&account={account}");
    let (page, id) = tokio::join!(app.get(&path), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        write(&app.sql, Uuid::new_v4(), Uuid::new_v4(), 1).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        write(&app.sql, account, Uuid::new_v4(), 1).await
    });
    assert_eq!(ids(&page.body), [id]);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// The ids of the first `count` events of a stream.
async fn streamed(app: &TestApp, last: Option<i64>, count: usize) -> Vec<i64> {
    let mut request = app.http.get(app.url("/api/v1/changes/stream")).bearer_auth(ADMIN_TOKEN);
    if let Some(last) = last {
        request = request.header("Last-Event-ID", last);
    }
    let mut response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let ids = |text: &str| -> Vec<i64> {
        let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
        let mut ids = Vec::new();
        for event in whole.split("\n\n").filter(|event| event.starts_with("id: ")) {
            let (id, data) = event.split_once('\n').unwrap();
            let id = id.strip_prefix("id: ").unwrap().parse().unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(data["id"], json!(id));
            ids.push(id);
        }
        ids
    };
    while ids(&text).len() < count {
        let chunk = tokio::time::timeout(Duration::from_secs(30), response.chunk()).await.expect("an event").unwrap();
        text.push_str(std::str::from_utf8(&chunk.expect("the stream goes on")).unwrap());
    }
    ids(&text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_the_last_one_ended_and_many_cost_no_connection_each() {
    let app = TestApp::start_with(Settings { pool_size: 4, ..Settings::default() }, None).await;
    let (account, row) = (Uuid::new_v4(), Uuid::new_v4());
    let first = write_many(&app, account, row, 3).await;
    assert_eq!(streamed(&app, None, 3).await, first);
    // One that never reads holds up nobody.
    let silent = app.http.get(app.url("/api/v1/changes/stream")).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
    let streams = join_all((0..100).map(|_| streamed(&app, Some(first[1]), 32)));
    let ((), read) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            write_many(&app, account, row, 31).await;
            let sessions = "pg_stat_activity WHERE datname = current_database() AND application_name = 'subledger'";
            assert!(app.count(sessions).await <= 4);
        },
        streams
    );
    let all = super::ids_behind(&app.sql, "subscription_changes", first[1]).await;
    assert!(read.iter().all(|ids| *ids == all));
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_the_server_stops() {
    let app = TestApp::start().await;
    let mut response = app.http.get(app.url("/api/v1/changes/stream")).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
    let begun = Instant::now();
    app.tell_to_stop();
    while response.chunk().await.unwrap().is_some() {}
    assert!(begun.elapsed() < Duration::from_secs(10));
    app.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_shown_as_it_was() {
    let app = TestApp::start().await;
    let account = app.account().await;
    let row: Uuid = app.local_trial(account).await;
    app.execute("UPDATE accounts SET created_at = '2026-01-01Z'; UPDATE subscriptions SET created_at = '2026-01-02Z'")
        .await;
    let columns = |status: &str, seats: i64| {
        json!({"id": row, "account_id": account, "status": status, "seat_limit": seats, "plan": "pro",
               "created_at": "2026-01-02T00:00:00Z"})
    };
    let insert = "INSERT INTO subscription_changes
                      (subscription_id, account_id, event_id, kinds, before, after, changed_at)
                  VALUES ($1, $2, $3, '{status_changed}', $4, $5, ($6::text)::timestamptz)";
    for (event, before, after, at) in [
        ("evt_1", columns("trialing", 1), columns("active", 2), "2026-02-01Z"),
        ("evt_2", columns("active", 2), columns("canceled", 2), "2026-03-01Z"),
    ] {
        app.sql.execute(insert, &[&row, &account, &event, &before, &after, &at]).await.unwrap();
    }
    let shown = async |at: &str| app.get(&format!("/api/v1/accounts/{account}?at={at}")).await;
    for (at, status, seats, entitled) in [
        ("2026-01-15T00:00:00Z", "trialing", 1, true),
        ("2026-02-01T00:00:00Z", "active", 2, true),
        ("2026-02-15T01:00:00%2B01:00", "active", 2, true),
        ("2026-03-02T00:00:00Z", "canceled", 2, false),
    ] {
        let body = shown(at).await.body;
        let shown = &body["subscriptions"][0];
        assert_eq!((&shown["status"], &shown["seat_limit"]), (&json!(status), &json!(seats)), "{at}: {body}");
        assert_eq!(body["entitlement"]["entitled"], json!(entitled), "{at}");
    }
    assert_eq!(shown("2026-01-01T12:00:00Z").await.body["subscriptions"], json!([]));
    assert_eq!(shown("2025-12-01T00:00:00Z").await.error_code(), "not_found");
    assert_eq!(shown("yesterday").await.error_code(), "invalid_request");
}

/// The database's time, in the form that `?at=` takes.
async fn now(app: &TestApp) -> String {
    let now = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    app.one(now).await.get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_at_a_time_names_the_events_that_it_named_then() {
    let app = TestApp::start().await;
    let (account, other) = (app.account_of("cus_1").await, app.account().await);
    let parked =
        |id: &str, second: i64, seats: i64| updated(id, second, subscription("sub_2", "cus_2", "active", seats));
    // Both come before their customer is linked, the later state first; it changes nothing but the event that is named.
    app.deliver(parked("evt_p2", 20, 5)).await;
    app.deliver(parked("evt_p1", 10, 5)).await;
    let mut shown = Vec::new();
    let show = async |shown: &mut Vec<(String, Value)>| {
        let mut accounts = Vec::new();
        for id in [account, other] {
            accounts.push(app.get(&format!("/api/v1/accounts/{id}")).await.body);
        }
        shown.push((now(&app).await, json!(accounts)));
    };
    let object = |seats: i64, cancel_at: Option<i64>| {
        let mut object = subscription("sub_1", "cus_1", "active", seats);
        object["cancel_at"] = json!(cancel_at);
        object["metadata"] = json!({"account_id": other});
        object
    };
    let mut named_otherwise = object(1, None);
    named_otherwise["id"] = json!("sub_3");
    named_otherwise["customer"] = json!("cus_3");
    let mut ended = object(2, None);
    ended["status"] = json!("canceled");
    for event in [
        created("evt_1", 100, object(1, Some(1_900_000_000))),
        paid("evt_2", 300, invoice("in_1", "cus_1", "sub_1")),
        updated("evt_3", 200, object(1, Some(1_900_000_000))),
        updated("evt_4", 400, object(2, None)),
        updated("evt_5", 350, object(7, None)),
        completed("evt_6", 450, checkout("cus_1", "sub_1", None)),
        created("evt_7", 100, named_otherwise),
        deleted("evt_8", 390, ended),
        updated("evt_9", 500, object(9, None)),
    ] {
        assert_eq!(app.deliver(&event).await.status, 200);
        show(&mut shown).await;
        if event.id() == "evt_7" {
            for customer in ["cus_2", "cus_3"] {
                let body = json!({"stripe_customer_id": customer});
                let path = format!("/api/v1/accounts/{account}");
                assert_eq!(app.admin(Method::PATCH, &path, Some(body)).await.status, 200);
                show(&mut shown).await;
            }
        }
    }
    let named = |number: usize| shown[number].1[0]["subscriptions"][0]["last_event_id"].clone();
    assert_eq!((named(1), named(2)), (json!("evt_1"), json!("evt_3")), "an invoice is no state of a subscription");
    for (at, shown) in shown {
        for (account, mut shown) in [account, other].into_iter().zip(shown.as_array().unwrap().clone()) {
            let mut then = app.get(&format!("/api/v1/accounts/{account}?at={at}")).await.body;
            for body in [&mut shown, &mut then] {
                body["stripe_customer_ids"].take();
                body["subscriptions"].as_array_mut().unwrap().iter_mut().for_each(|row| drop(row["updated_at"].take()));
            }
            assert_eq!(then, shown, "{at}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_whose_fetched_state_changed_nothing_is_named_from_then_on() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&stripe)).await;
    let account = app.account_of("cus_1").await;
    let object = subscription("sub_1", "cus_1", "active", 1);
    stripe.has(&object);
    app.deliver(created("evt_1", 100, object)).await;
    let before = now(&app).await;
    app.deliver(completed("evt_2", 110, checkout("cus_1", "sub_1", None))).await;
    assert_eq!(
        (app.count("subscription_changes").await, app.subscription("sub_1").await["last_event_id"].clone()),
        (1, json!("evt_2"))
    );
    for (at, event) in [(before, "evt_1"), (now(&app).await, "evt_2")] {
        let body = app.get(&format!("/api/v1/accounts/{account}?at={at}")).await.body;
        assert_eq!(body["subscriptions"][0]["last_event_id"], event, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_event_that_failed_first_is_named_once_it_was_applied() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    let event =
        |id: &str, second: i64, seats: i64| updated(id, second, subscription("sub_1", "cus_1", "active", seats));
    app.execute("ALTER TABLE stripe_events ADD CONSTRAINT not_yet CHECK (id <> 'evt_2')").await;
    assert_eq!(app.deliver(event("evt_2", 200, 1)).await.status, 500);
    app.execute("ALTER TABLE stripe_events DROP CONSTRAINT not_yet").await;
    app.deliver(event("evt_1", 100, 1)).await;
    app.deliver(event("evt_2", 200, 1)).await;
    assert_eq!(app.subscription("sub_1").await["last_event_id"], "evt_2");
    let at = now(&app).await;
    app.deliver(event("evt_3", 300, 2)).await;
    let body = app.get(&format!("/api/v1/accounts/{account}?at={at}")).await.body;
    assert_eq!(body["subscriptions"][0]["last_event_id"], "evt_2", "it was received before evt_1, and changed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_pruned_is_named_by_the_change_that_it_made() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 1))).await;
    app.deliver(paid("evt_2", 300, invoice("in_1", "cus_1", "sub_1"))).await;
    let at = now(&app).await;
    app.deliver(updated("evt_3", 400, subscription("sub_1", "cus_1", "active", 2))).await;
    app.execute("DELETE FROM stripe_events WHERE id IN ('evt_1', 'evt_2')").await;
    let body = app.get(&format!("/api/v1/accounts/{account}?at={at}")).await.body;
    let row = &body["subscriptions"][0];
    assert_eq!((&row["last_event_id"], &row["last_event_created"]), (&json!("evt_1"), &Value::Null));
    assert_eq!((&row["seat_limit"], &body["entitlement"]["since_event"]), (&json!(1), &json!("evt_1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_keeps_the_last_change_of_each_subscription() {
    let app = TestApp::start().await;
    let (account, first, second) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let old = write_many(&app, account, first, 3).await;
    let lone = write_many(&app, account, second, 1).await;
    app.execute("UPDATE subscription_changes SET changed_at = now() - interval '91 days'").await;
    let ran = job::run(&app, None, &["prune", "--older-than", "90d"]).await;
    ran.ends_with(0);
    assert_eq!(ran.out, "deleted 0 events, 0 failures and 2 changes\n");
    assert_eq!(super::ids_behind(&app.sql, "committed_changes", 0).await, [old[2], lone[0]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_an_account_tells_what_changed_when_and_by_which_event() {
    let app = TestApp::start().await;
    let account = app.account().await;
    app.execute(&format!(
        "INSERT INTO subscription_changes (subscription_id, account_id, event_id, kinds, before, after)
         VALUES (gen_random_uuid(), '{account}', 'evt_77', '{{seats_changed}}',
                 '{{\"seat_limit\": 3}}', '{{\"seat_limit\": 8}}')"
    ))
    .await;
    let page = async |path: &str| {
        let request = app.http.get(app.url(path)).bearer_auth(ADMIN_TOKEN);
        request.send().await.unwrap().text().await.unwrap()
    };
    let account = page(&format!("/admin/accounts/{account}")).await;
    for text in ["seats changed", "evt_77", "3 → 8"] {
        assert!(account.contains(text), "{text} is not in {account}");
    }
    assert!(page("/admin/changes").await.contains("CHANGES_URL"));
}
