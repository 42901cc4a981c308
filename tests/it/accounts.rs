//! The accounts API: creating, reading, changing, and who may.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::app::{ADMIN_TOKEN, answer};
use crate::support::events::{created, subscription};
use crate::support::{Answer, Event, Settings, TestApp};

async fn patch(app: &TestApp, id: &str, body: Value) -> Answer {
    app.admin(Method::PATCH, &format!("/api/v1/accounts/{id}"), Some(body)).await
}

async fn read(app: &TestApp, id: &str) -> Answer {
    app.get(&format!("/api/v1/accounts/{id}")).await
}

#[track_caller]
fn check_error(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.error_code()), (status, code), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_created_read_and_changed() {
    let app = TestApp::start().await;
    let id = Uuid::new_v4().to_string();
    let created = app.create_account(json!({"id": id, "name": "Acme", "stripe_customer_id": "cus_1"})).await;
    assert_eq!(created.status, 201);
    let nothing = json!({"entitled": false, "reason": "the account has no subscription", "plan": null,
                         "plan_source": null, "seat_limit": null, "until": null, "overdue": false,
                         "subscription_id": null, "since_event": null});
    let expected = json!({"id": id, "name": "Acme", "stripe_customer_ids": ["cus_1"], "subscriptions": [],
                          "features": [], "entitlement": nothing});
    assert_eq!(created.body, expected);
    assert_eq!(read(&app, &id).await, Answer { status: 200, body: expected });

    let made = app.create_account(json!({"name": ""})).await;
    assert_eq!((made.status, &made.body["stripe_customer_ids"]), (201, &json!([])));
    assert!(Uuid::parse_str(made.body["id"].as_str().unwrap()).is_ok());

    let renamed = patch(&app, &id, json!({"name": "Ácme & Co"})).await;
    assert_eq!((renamed.status, &renamed.body["name"]), (200, &json!("Ácme & Co")));
    assert_eq!(renamed.body["stripe_customer_ids"], json!(["cus_1"]), "what is absent stays");
    assert_eq!(patch(&app, &id, json!({})).await.body, renamed.body);
    assert_eq!(app.count("accounts").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_customer_stays_linked() {
    let app = TestApp::start().await;
    let id = app.account_of("cus_1").await.to_string();
    let customers = async |customer: &str, expected: Value| {
        let changed = patch(&app, &id, json!({"stripe_customer_id": customer})).await;
        assert_eq!((changed.status, &changed.body["stripe_customer_ids"]), (200, &expected), "{customer}");
    };
    customers("cus_2", json!(["cus_2", "cus_1"])).await;
    customers("cus_2", json!(["cus_2", "cus_1"])).await;
    customers("cus_3", json!(["cus_3", "cus_1", "cus_2"])).await;
    customers("cus_1", json!(["cus_1", "cus_2", "cus_3"])).await;
    for (number, customer) in ["cus_1", "cus_2", "cus_3"].into_iter().enumerate() {
        let object = subscription(&format!("sub_{number}"), customer, "active", 1);
        assert_eq!(app.deliver(created(&format!("evt_{number}"), 100, object)).await.outcome(), "applied");
        assert_eq!(app.subscription(&format!("sub_{number}")).await["account_id"], json!(id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_is_a_conflict_and_changes_nothing() {
    let app = TestApp::start().await;
    let id = app.account_of("cus_1").await.to_string();
    patch(&app, &id, json!({"stripe_customer_id": "cus_2"})).await;
    check_error(&app.create_account(json!({"id": id, "name": "Twin"})).await, 409, "conflict");
    let other = app.account().await.to_string();
    for taken in ["cus_1", "cus_2"] {
        let body = json!({"name": "Thief", "stripe_customer_id": taken});
        check_error(&app.create_account(body.clone()).await, 409, "conflict");
        check_error(&patch(&app, &other, body).await, 409, "conflict");
    }
    let untouched = read(&app, &other).await.body;
    assert_eq!((&untouched["name"], &untouched["stripe_customer_ids"]), (&json!("Acme"), &json!([])));
    assert_eq!(app.count("accounts").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_create_or_link_the_same_at_once_one_succeeds() {
    let app = TestApp::start_with(Settings { pool_size: 16, ..Settings::default() }, None).await;
    let id = Uuid::new_v4();
    let same_id = (0..12).map(|_| app.create_account(json!({"id": id, "name": "Acme"})));
    let same_customer = (0..12).map(|_| app.create_account(json!({"name": "Acme", "stripe_customer_id": "cus_1"})));
    let (same_id, same_customer) =
        tokio::join!(futures_util::future::join_all(same_id), futures_util::future::join_all(same_customer));
    for answers in [same_id, same_customer] {
        assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| answer.status == 409).count(), 11, "{answers:?}");
    }
    assert_eq!(app.count("accounts").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_is_refused() {
    let app = TestApp::start().await;
    let id = app.account().await.to_string();
    let both = [
        json!({"name": 7}),
        json!({"name": "Acme", "plan": "pro"}),
        json!({"name": "Acme", "stripe_customer_id": ""}),
        json!({"name": "Acme", "stripe_customer_id": "cus_\u{0}1"}),
        json!({"name": "A\u{0}cme"}),
        json!({"name": "x".repeat(256)}),
        json!({"name": "Acme", "stripe_customer_id": "c".repeat(256)}),
        json!({"name": "Acme", "stripe_customer_id": 7}),
        json!({"name": "Acme", "stripe_customer_id": "sub_1"}),
        json!({"name": "Acme", "stripe_customer_id": "cus_"}),
        json!({"name": "Acme", "stripe_customer_id": " cus_1"}),
        json!({"name": "Acme", "stripe_customer_id": "cus_1/.."}),
        json!([]),
        json!([null, "Acme", null]),
        json!(["Acme", null]),
        json!(null),
    ];
    for body in both {
        check_error(&app.create_account(body.clone()).await, 400, "invalid_request");
        check_error(&patch(&app, &id, body).await, 400, "invalid_request");
    }
    for body in [json!({}), json!({"id": "7", "name": "Acme"}), json!({"stripe_customer_id": "cus_1"})] {
        check_error(&app.create_account(body).await, 400, "invalid_request");
    }
    for body in [json!({"name": null}), json!({"id": id})] {
        check_error(&patch(&app, &id, body).await, 400, "invalid_request");
    }
    for text in ["", "{", "{\"name\": \"Acme\"} x", "name=Acme", "\u{feff}"] {
        let request = app.http.post(app.url("/api/v1/accounts")).bearer_auth(ADMIN_TOKEN).body(text);
        check_error(&answer(request).await, 400, "invalid_request");
    }
    assert_eq!(app.count("accounts").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_found() {
    let app = TestApp::start().await;
    for id in [Uuid::new_v4().to_string(), "7".into(), "%00".into(), "%ff".into(), "a'b".into()] {
        check_error(&read(&app, &id).await, 404, "not_found");
        check_error(&patch(&app, &id, json!({"name": "Acme"})).await, 404, "not_found");
    }
    check_error(&app.admin(Method::DELETE, "/api/v1/accounts", None).await, 405, "method_not_allowed");
    let id = app.account_of("cus_1").await;
    for path in [
        format!("{id}/customers/cus_2"),
        format!("{id}/customers/%00"),
        format!("{}/customers/cus_1", Uuid::new_v4()),
        "7/customers/cus_1".to_owned(),
    ] {
        let path = format!("/api/v1/accounts/{path}");
        check_error(&app.admin(Method::DELETE, &path, None).await, 404, "not_found");
    }
    assert_eq!(read(&app, &id.to_string()).await.body["stripe_customer_ids"], json!(["cus_1"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_may_and_without_a_token_nobody() {
    let settings = || Settings { admin_token: None, ..Settings::default() };
    for (app, status, code) in
        [(TestApp::start().await, 401, "unauthorized"), (TestApp::start_with(settings(), None).await, 403, "forbidden")]
    {
        let id = app.account().await;
        let routes = [
            (Method::POST, "/api/v1/accounts".to_owned()),
            (Method::GET, format!("/api/v1/accounts/{id}")),
            (Method::PATCH, format!("/api/v1/accounts/{id}")),
            (Method::GET, "/api/v1/accounts".to_owned()),
            (Method::DELETE, format!("/api/v1/accounts/{id}/customers/cus_1")),
            (Method::GET, "/events/evt_1".to_owned()),
            (Method::POST, "/events/evt_1/replay".to_owned()),
        ];
        for (method, path) in routes {
            let wrong =
                [None, Some("Bearer "), Some("Bearer admin-token2"), Some("Basic admin-token"), Some("admin-token")];
            // Without a token configured even an empty one is nobody's.
            for authorization in wrong {
                let mut request = app.http.request(method.clone(), app.url(&path)).json(&json!({"name": "Acme"}));
                if let Some(authorization) = authorization {
                    request = request.header("Authorization", authorization);
                }
                let found = answer(request).await;
                assert_eq!((found.status, found.error_code()), (status, code), "{method} {path} {authorization:?}");
            }
        }
        assert_eq!(app.count("accounts WHERE name = 'Acme'").await, 1);
    }
}

/// The ids that a list has.
async fn listed(app: &TestApp, query: &str) -> (Vec<String>, bool) {
    let list = app.get(&format!("/api/v1/accounts{query}")).await;
    assert_eq!(list.status, 200, "{query}: {list:?}");
    let ids = list.body["data"].as_array().unwrap().iter().map(|account| account["id"].as_str().unwrap().to_owned());
    (ids.collect(), list.body["has_more"].as_bool().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_listed_newest_first_and_found_by_name_or_any_id() {
    let app = TestApp::start().await;
    // Several of one moment: the order is whole all the same.
    app.execute(
        "INSERT INTO accounts (name, stripe_customer_id, created_at)
         SELECT 'Acme ' || n, 'cus_' || n, timestamptz '2026-01-01' + n / 3 * interval '1 second'
         FROM generate_series(1, 25) n",
    )
    .await;
    let first = app.one("SELECT id FROM accounts WHERE stripe_customer_id = 'cus_1'").await.get::<_, Uuid>(0);
    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 5))).await;
    app.sql.execute("INSERT INTO account_customers VALUES ('cus_further', $1)", &[&first]).await.unwrap();
    let order = "SELECT jsonb_agg(id ORDER BY created_at DESC, id DESC) FROM accounts";
    let all: Vec<String> = serde_json::from_value(app.json(order, &[]).await.remove(0)).unwrap();

    assert_eq!(listed(&app, "").await, (all[..20].to_vec(), true));
    assert_eq!(listed(&app, "?limit=100").await, (all.clone(), false));
    let (mut seen, mut query) = (Vec::new(), "?limit=4".to_owned());
    loop {
        let (page, has_more) = listed(&app, &query).await;
        seen.extend(page);
        if !has_more {
            break;
        }
        query = format!("?limit=4&starting_after={}", seen.last().unwrap());
    }
    assert_eq!(seen, all);

    let first = first.to_string();
    let upper = first.to_uppercase();
    for id in ["cus_1", "cus_further", "sub_1", &first, &upper, "aCME%201%20", "cme%201"] {
        let (found, has_more) = listed(&app, &format!("?q={id}&limit=100")).await;
        let expected = if id == "cme%201" { 11 } else { 1 };
        assert!(found.contains(&first) || id == "aCME%201%20", "{id}: {found:?}");
        assert!(found.len() == expected || id == "aCME%201%20" && found.is_empty(), "{id}: {found:?}");
        assert!(!has_more);
    }
    for nothing in ["sub_2", "cus_", "%25", "_cme", "Umbrella", "9dd0bb5d-0000-4000-8000-000000000000"] {
        assert_eq!(listed(&app, &format!("?q={nothing}")).await, (vec![], false), "{nothing}");
    }
    let one = app.get("/api/v1/accounts?q=cus_further").await.body["data"][0].clone();
    assert_eq!(one, read(&app, &first).await.body, "each is as it is alone");
    assert_eq!(one["stripe_customer_ids"], json!(["cus_1", "cus_further"]));

    for wrong in ["limit=0", "limit=101", "q=", "q=%00", "starting_after=7", "colour=red"] {
        check_error(&app.get(&format!("/api/v1/accounts?{wrong}")).await, 400, "invalid_request");
    }
    let unknown = format!("/api/v1/accounts?starting_after={}", Uuid::new_v4());
    check_error(&app.get(&unknown).await, 400, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_accounts_are_listed_and_searched_in_no_time() {
    let app = TestApp::start().await;
    app.execute(
        "INSERT INTO accounts (name, stripe_customer_id, created_at)
         SELECT 'Company ' || md5(n::text), 'cus_' || n, now() - n * interval '1 minute'
         FROM generate_series(1, 100000) n",
    )
    .await;
    let middle = app.one("SELECT id::text FROM accounts WHERE stripe_customer_id = 'cus_50000'").await;
    let after = format!("?starting_after={}", middle.get::<_, String>(0));
    for (query, rows) in
        [("", 20), (after.as_str(), 20), ("?q=company&limit=100", 100), ("?q=cus_77777", 1), ("?q=nobody", 0)]
    {
        let started = std::time::Instant::now();
        assert_eq!(listed(&app, query).await.0.len(), rows, "{query}");
        println!("{query}: {:?}", started.elapsed());
        assert!(started.elapsed() < std::time::Duration::from_secs(2), "{query}: {:?}", started.elapsed());
    }
    let read = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'accounts'";
    app.execute("SELECT pg_stat_force_next_flush()").await;
    let before = app.one(read).await.get::<_, i64>(0);
    for query in ["", after.as_str()] {
        listed(&app, query).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
    assert_eq!(app.one(read).await.get::<_, i64>(0), before, "a page is read in the order of an index");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_link_can_be_undone_and_what_the_events_did_stays() {
    let app = TestApp::start().await;
    let id = app.account_of("cus_1").await.to_string();
    patch(&app, &id, json!({"stripe_customer_id": "cus_2"})).await;
    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 5))).await;
    let unlinked = app.admin(Method::DELETE, &format!("/api/v1/accounts/{id}/customers/cus_1"), None).await;
    assert_eq!((unlinked.status, &unlinked.body["stripe_customer_ids"]), (200, &json!(["cus_2"])));
    assert_eq!(unlinked.body["subscriptions"][0]["stripe_subscription_id"], "sub_1");
    check_error(
        &app.admin(Method::DELETE, &format!("/api/v1/accounts/{id}/customers/cus_1"), None).await,
        404,
        "not_found",
    );

    let unlinked = patch(&app, &id, json!({"name": "Acme 2", "stripe_customer_id": null})).await;
    assert_eq!((unlinked.status, &unlinked.body["stripe_customer_ids"]), (200, &json!([])));
    assert_eq!(unlinked.body["name"], "Acme 2");
    assert_eq!(
        patch(&app, &id, json!({"stripe_customer_id": null})).await.body,
        unlinked.body,
        "once more is no error"
    );

    // Its subscription follows its events still; another one of the customer waits.
    let later = Event::new("evt_2", "customer.subscription.updated", 200, subscription("sub_1", "cus_1", "active", 7));
    assert_eq!(app.deliver(later).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 7);
    assert_eq!(
        app.deliver(created("evt_3", 100, subscription("sub_2", "cus_1", "active", 1))).await.outcome(),
        "parked"
    );
    let other = app.account().await.to_string();
    let linked = patch(&app, &other, json!({"stripe_customer_id": "cus_1"})).await;
    assert_eq!((linked.status, app.event_row("evt_3").await["account_id"].clone()), (200, json!(other)));
    check_error(&patch(&app, &Uuid::new_v4().to_string(), json!({"stripe_customer_id": null})).await, 404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_to_an_admin_is_kept_by_a_cache() {
    let app = TestApp::start().await;
    let id = app.account_of("cus_1").await;
    let account = format!("/api/v1/accounts/{id}");
    for path in
        ["/events", "/events/evt_none", "/api/v1/accounts", &account, "/metrics", "/admin", "/nowhere", "/health"]
    {
        for token in [ADMIN_TOKEN, "wrong"] {
            let response = app.http.get(app.url(path)).bearer_auth(token).send().await.unwrap();
            assert_eq!(response.headers()["cache-control"], "no-store", "{path}");
        }
    }
    let style = app.http.get(app.url("/admin/style.css")).send().await.unwrap();
    assert!(style.headers()["cache-control"].to_str().unwrap().contains("immutable"));
}
