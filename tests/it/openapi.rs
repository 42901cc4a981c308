//! The description of the API is valid, and true: every answer that it documents is provoked and held against it.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::app::{ADMIN_TOKEN, signature};
use crate::support::events::subscription;
use crate::support::{Document, Event, Raw, Settings, TestApp};

const WEBHOOK: &str = "/api/v1/webhooks/stripe";

const CUSTOMER: &str = "/api/v1/accounts/{id}/customers/{customer}";

/// Documented answers that cannot be provoked from outside.
const UNPROVOKED: [(&str, &str, &str); 1] = [("get", "/metrics", "500")];

/// The page, and the stream that does not end, have tests of their own.
const ELSEWHERE: [&str; 2] = ["/admin", "/api/v1/changes/stream"];

async fn sent(request: reqwest::RequestBuilder) -> Raw {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Raw { status, headers, body: response.text().await.unwrap() }
}

/// A request to a path of the document; `{id}` is put into it.
struct Call<'a> {
    app: &'a TestApp,
    method: &'a str,
    path: &'a str,
    id: &'a str,
}

impl Call<'_> {
    fn url(&self) -> String {
        self.path.replace("{id}", self.id).replace("{customer}", "cus_1")
    }

    fn request(&self) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(self.method.to_uppercase().as_bytes()).unwrap();
        self.app.http.request(method, self.app.url(&self.url()))
    }

    async fn with(&self, document: &mut Document, expected: u16, body: Option<Value>) -> Raw {
        let mut request = self.request().bearer_auth(ADMIN_TOKEN);
        if let Some(body) = body {
            request = request.json(&body);
        }
        self.hold(document, expected, sent(request).await)
    }

    async fn deliver(&self, document: &mut Document, expected: u16, body: String) {
        let signature = signature(body.as_bytes());
        let request = self.request().header("Stripe-Signature", signature).body(body);
        self.hold(document, expected, sent(request).await);
    }

    fn hold(&self, document: &mut Document, expected: u16, answer: Raw) -> Raw {
        assert_eq!(answer.status, expected, "{} {}: {}", self.method, self.url(), answer.body);
        document.check(self.method, self.path, &answer);
        answer
    }
}

fn event(id: &str, seats: i64) -> String {
    let object = subscription("sub_1", "cus_1", "active", seats);
    Event::new(id, "customer.subscription.updated", 1_760_000_000, object).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_valid() {
    let app = TestApp::start().await;
    let document = Document::of(&app).await;
    let json = &document.json;
    assert!(json["openapi"].as_str().unwrap().starts_with("3.1."));
    assert_eq!(
        (&json["info"]["title"], &json["info"]["version"]),
        (&json!("subledger"), &json!(env!("CARGO_PKG_VERSION")))
    );
    for (name, schema) in json["components"]["schemas"].as_object().unwrap() {
        if let Err(error) = jsonschema::draft202012::meta::validate(schema) {
            panic!("{name}: {error}");
        }
    }
    resolve_all(&document, json);

    let mut operation_ids = BTreeSet::new();
    for (method, path, operation) in document.operations() {
        let case = format!("{method} {path}");
        assert!(operation_ids.insert(operation["operationId"].as_str().expect(&case)), "{case}: its id is taken");
        assert!(operation["summary"].is_string(), "{case}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{case}");
        for (status, response) in responses {
            assert!(status.parse::<u16>().is_ok_and(|status| (200..600).contains(&status)), "{case}: {status}");
            assert!(document.resolved(response)["description"].is_string(), "{case}: {status}");
        }
        let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
        let in_path: Vec<_> = parameters.iter().filter(|parameter| parameter["in"] == "path").collect();
        assert_eq!(in_path.len(), path.matches('{').count(), "{case}");
        for parameter in in_path {
            assert_eq!(parameter["required"], true, "{case}");
            assert!(path.contains(&format!("{{{}}}", parameter["name"].as_str().unwrap())), "{case}");
        }
        for requirement in operation["security"].as_array().into_iter().flatten() {
            for scheme in requirement.as_object().unwrap().keys() {
                assert!(json["components"]["securitySchemes"].get(scheme).is_some(), "{case}: {scheme}");
            }
        }
        let is_admins = responses.contains_key("401");
        assert_eq!(operation.get("security").is_some(), is_admins, "{case}");
    }
}

fn resolve_all(document: &Document, value: &Value) {
    document.resolved(value);
    match value {
        Value::Object(members) => members.values().for_each(|member| resolve_all(document, member)),
        Value::Array(items) => items.iter().for_each(|item| resolve_all(document, item)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parameters_bounds_are_those_that_hold() {
    let app = TestApp::start().await;
    let document = Document::of(&app).await;
    let parameters = document.json["paths"]["/events"]["get"]["parameters"].as_array().unwrap();
    let schema = |name: &str| &parameters.iter().find(|parameter| parameter["name"] == name).unwrap()["schema"];
    assert_eq!((&schema("limit")["minimum"], &schema("limit")["maximum"]), (&json!(1), &json!(100)));
    assert_eq!(schema("limit")["default"], 20);
    for (name, value, text) in [
        ("limit", json!(1), "1"),
        ("limit", json!(100), "100"),
        ("limit", json!(0), "0"),
        ("limit", json!(101), "101"),
        ("status", json!("failed"), "failed"),
        ("status", json!("done"), "done"),
        ("account", json!("7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11"), "7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11"),
        ("account", json!("acme"), "acme"),
        ("customer", json!("é".repeat(255)), &"%C3%A9".repeat(255)),
        ("customer", json!("é".repeat(256)), &"%C3%A9".repeat(256)),
        ("type", json!(""), ""),
    ] {
        let fits = document.problems(schema(name), &value).is_empty();
        let expected = if fits { 200 } else { 400 };
        assert_eq!(app.get(&format!("/events?{name}={text}")).await.status, expected, "{name}={value}");
    }
    let new_account = &document.json["components"]["schemas"]["NewAccount"];
    let id = "7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11";
    for body in [
        json!({"name": ""}),
        json!({"name": "é".repeat(255)}),
        json!({"name": "é".repeat(256)}),
        json!({"name": "a\u{0}b"}),
        json!({"name": null}),
        json!({}),
        json!({"name": "Acme", "id": id}),
        json!({"name": "Acme", "id": null, "stripe_customer_id": null}),
        json!({"name": "Acme", "id": "acme"}),
        json!({"name": "Acme", "stripe_customer_id": ""}),
        json!({"name": "Acme", "stripe_customer_id": format!("cus_{}", "c".repeat(251))}),
        json!({"name": "Acme", "stripe_customer_id": format!("cus_{}", "c".repeat(252))}),
        json!({"name": "Acme", "stripe_customer_id": "acct_1"}),
        json!({"name": "Acme", "stripe_customer_id": "sub_1"}),
        json!({"name": "Acme", "colour": "red"}),
    ] {
        let expected = if document.problems(new_account, &body).is_empty() { 201 } else { 400 };
        assert_eq!(app.create_account(body.clone()).await.status, expected, "{body}");
    }
    let change = &document.json["components"]["schemas"]["AccountChange"];
    for body in [json!({}), json!({"name": null}), json!({"name": "x"}), json!({"stripe_customer_id": null}), json!([])]
    {
        let expected = if document.problems(change, &body).is_empty() { 200 } else { 400 };
        let path = format!("/api/v1/accounts/{id}");
        assert_eq!(app.admin(Method::PATCH, &path, Some(body.clone())).await.status, expected, "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_answer_is_given_as_documented() {
    let settings = || Settings {
        body_limit: 4_000,
        body_timeout: Duration::from_millis(300),
        pool_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let app = TestApp::start_with(settings(), None).await;
    let document = &mut Document::of(&app).await;
    successes(&app, document).await;
    refusals(&app, document).await;
    let nobodys = TestApp::start_with(Settings { admin_token: None, ..settings() }, None).await;
    everywhere(&nobodys, document, "403", 403).await;
    failures(&app, document).await;

    let documented: BTreeSet<_> = document
        .operations()
        .filter(|(_, path, _)| !ELSEWHERE.contains(path))
        .flat_map(|(method, path, operation)| {
            let statuses = operation["responses"].as_object().unwrap().keys();
            statuses.map(move |status| (method.to_owned(), path.to_owned(), status.clone()))
        })
        .filter(|(method, path, status)| !UNPROVOKED.contains(&(method.as_str(), path.as_str(), status.as_str())))
        .collect();
    let missing: Vec<_> = documented.difference(&document.seen).collect();
    assert!(missing.is_empty(), "documented, but never seen: {missing:#?}");
}

/// Asks every operation that documents `status`, as somebody whose token is `status`.
async fn everywhere(app: &TestApp, document: &mut Document, status: &str, expected: u16) {
    let operations: Vec<_> = document
        .operations()
        .filter(|(_, path, operation)| operation["responses"].get(status).is_some() && !ELSEWHERE.contains(path))
        .map(|(method, path, _)| (method.to_owned(), path.to_owned()))
        .collect();
    assert!(!operations.is_empty());
    for (method, path) in operations {
        let call = Call { app, method: &method, path: &path, id: "evt_1" };
        let answer = sent(call.request().bearer_auth("wrong")).await;
        call.hold(document, expected, answer);
    }
}

async fn successes(app: &TestApp, document: &mut Document) {
    let call = |method, path, id| Call { app, method, path, id };
    let webhook = call("post", WEBHOOK, "");
    // Events in every state, so that every field is there once.
    webhook.deliver(document, 200, event("evt_parked", 1).replace("cus_1", "cus_2").replace("sub_1", "sub_2")).await;
    let account = call("post", "/api/v1/accounts", "");
    let account = account.with(document, 201, Some(json!({"name": "Acme", "stripe_customer_id": "cus_1"}))).await;
    let account: Value = serde_json::from_str(&account.body).unwrap();
    let account = account["id"].as_str().unwrap();
    webhook.deliver(document, 200, event("evt_1", 1)).await;
    webhook.deliver(document, 200, event("evt_1", 1)).await;
    webhook.deliver(document, 200, r#"{"id": "evt_2", "type": "nobody.knows"}"#.to_owned()).await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
    webhook.deliver(document, 500, event("evt_failed", 5)).await;
    app.local_trial(account.parse().unwrap()).await;
    for id in ["evt_1", "evt_2", "evt_parked", "evt_failed"] {
        call("get", "/events/{id}", id).with(document, 200, None).await;
    }
    call("get", "/events", "").with(document, 200, None).await;
    app.execute(
        "INSERT INTO subscription_changes (subscription_id, account_id, kinds, after)
         VALUES (gen_random_uuid(), gen_random_uuid(), '{started}', '{\"status\": \"active\"}')",
    )
    .await;
    call("get", "/api/v1/changes", "").with(document, 200, None).await;
    call("post", "/events/{id}/replay", "evt_failed").with(document, 500, None).await;
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    for id in ["evt_failed", "evt_1", "evt_parked"] {
        call("post", "/events/{id}/replay", id).with(document, 200, None).await;
    }
    call("get", "/api/v1/accounts/{id}", account).with(document, 200, None).await;
    call("patch", "/api/v1/accounts/{id}", account).with(document, 200, Some(json!({"name": "Acme 2"}))).await;
    call("get", "/api/v1/accounts", "").with(document, 200, None).await;
    call("delete", CUSTOMER, account).with(document, 200, None).await;
    let again = Some(json!({"stripe_customer_id": "cus_1"}));
    call("patch", "/api/v1/accounts/{id}", account).with(document, 200, again).await;
    for path in ["/health", "/health/live", "/metrics", "/openapi.json"] {
        call("get", path, "").with(document, 200, None).await;
    }
}

async fn refusals(app: &TestApp, document: &mut Document) {
    let call = |method, path, id| Call { app, method, path, id };
    let nobody = "7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11";
    everywhere(app, document, "401", 401).await;
    let operations: Vec<_> =
        document.operations().map(|(method, path, _)| (method.to_owned(), path.to_owned())).collect();
    for (method, path) in operations.iter().filter(|(_, path)| !ELSEWHERE.contains(&path.as_str())) {
        let wrong = if path == CUSTOMER { "put" } else { "delete" };
        let wrong = Call { app, method: wrong, path, id: "evt_1" }.request();
        call(method, path, "").hold(document, 405, sent(wrong).await);
    }
    for (path, id, query) in [
        ("/events", "", "limit=0"),
        ("/api/v1/accounts", "", "limit=0"),
        ("/api/v1/changes", "", "limit=0"),
        ("/api/v1/accounts/{id}", nobody, "at=now"),
    ] {
        let call = call("get", path, id);
        let url = app.url(&format!("{}?{query}", call.url()));
        call.hold(document, 400, sent(app.http.get(url).bearer_auth(ADMIN_TOKEN)).await);
    }
    call("delete", CUSTOMER, nobody).with(document, 404, None).await;
    call("get", "/events/{id}", "evt_nobody").with(document, 404, None).await;
    call("post", "/events/{id}/replay", "evt_nobody").with(document, 404, None).await;
    call("get", "/api/v1/accounts/{id}", nobody).with(document, 404, None).await;
    call("patch", "/api/v1/accounts/{id}", nobody).with(document, 404, Some(json!({}))).await;
    let webhook = call("post", WEBHOOK, "");
    webhook.deliver(document, 400, "no event".to_owned()).await;
    webhook.with(document, 400, Some(json!({"not": "signed"}))).await;

    let create = call("post", "/api/v1/accounts", "");
    create.with(document, 201, Some(json!({"name": "Other", "id": nobody}))).await;
    create.with(document, 409, Some(json!({"name": "Other", "id": nobody}))).await;
    let change = call("patch", "/api/v1/accounts/{id}", nobody);
    change.with(document, 409, Some(json!({"stripe_customer_id": "cus_1"}))).await;
    for endpoint in [&create, &change] {
        endpoint.with(document, 400, Some(json!({"colour": "red"}))).await;
    }
    let large = json!({"name": "x".repeat(5_000)});
    for endpoint in [&webhook, &create, &change] {
        endpoint.with(document, 413, Some(large.clone())).await;
        let unfinished = format!(
            "{} {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\nContent-Length: 9\r\n\r\n{{",
            endpoint.method.to_uppercase(),
            endpoint.url()
        );
        endpoint.hold(document, 408, Raw::answer(app.address, unfinished.as_bytes()).await);
    }
}

/// Breaks the database under the server, first in part and then altogether.
async fn failures(app: &TestApp, document: &mut Document) {
    let id = "7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11";
    app.execute(
        "ALTER TABLE stripe_events RENAME TO gone; ALTER TABLE accounts RENAME TO gone_too;
         ALTER VIEW committed_changes RENAME TO gone_as_well",
    )
    .await;
    break_everything(app, document, id, 500).await;
    app.database.shut();
    break_everything(app, document, id, 503).await;
    Call { app, method: "get", path: "/health", id }.with(document, 503, None).await;
}

async fn break_everything(app: &TestApp, document: &mut Document, id: &str, status: u16) {
    let call = |method, path| Call { app, method, path, id };
    let name = Some(json!({"name": "Acme"}));
    call("post", WEBHOOK).deliver(document, status, event("evt_9", 1)).await;
    call("get", "/events").with(document, status, None).await;
    call("get", "/api/v1/changes").with(document, status, None).await;
    call("get", "/events/{id}").with(document, status, None).await;
    call("post", "/events/{id}/replay").with(document, status, None).await;
    call("post", "/api/v1/accounts").with(document, status, name.clone()).await;
    call("get", "/api/v1/accounts").with(document, status, None).await;
    call("get", "/api/v1/accounts/{id}").with(document, status, None).await;
    call("patch", "/api/v1/accounts/{id}").with(document, status, name).await;
    call("delete", CUSTOMER).with(document, status, None).await;
}

/// To update it: start a server and `curl -s http://127.0.0.1:8080/openapi.json | python3 -m json.tool > docs/openapi.json`.
#[tokio::test(flavor = "multi_thread")]
async fn the_committed_document_is_what_the_server_serves() {
    let app = TestApp::start().await;
    let served: Value =
        serde_json::from_str(&app.http.get(app.url("/openapi.json")).send().await.unwrap().text().await.unwrap())
            .unwrap();
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let committed: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(committed, served, "docs/openapi.json is out of date");
}
