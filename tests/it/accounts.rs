//! The accounts API: creating, reading, changing, and who may.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::app::{ADMIN_TOKEN, answer};
use crate::support::events::{created, subscription};
use crate::support::{Answer, Settings, TestApp};

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
                         "seat_limit": null, "until": null, "since_event": null});
    let expected = json!({"id": id, "name": "Acme", "stripe_customer_ids": ["cus_1"], "subscriptions": [],
                          "entitlement": nothing});
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
    for body in [json!({"name": null}), json!({"stripe_customer_id": null}), json!({"id": id})] {
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
