//! Whatever is sent, by the document or against it, gets an answer that the document describes, and never a 500.

use std::sync::Arc;

use percent_encoding::percent_decode_str;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::{Strategy, Union};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::app::{ADMIN_TOKEN, signature};
use crate::support::events::{created, subscription};
use crate::support::raw::exchange;
use crate::support::{Document, Raw, Settings, TestApp};

mod request;

use request::{Request, assert_is_error, body, path_id, query, request};

const BODY_LIMIT: usize = 6_000;
const ACCOUNT: &str = "7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11";

/// One server for all the cases of a test, and its document.
struct Subject {
    runtime: Runtime,
    app: TestApp,
    document: Document,
}

impl Subject {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let (app, document) = runtime.block_on(async {
            let app = TestApp::start_with(Settings { body_limit: BODY_LIMIT, ..Settings::default() }, None).await;
            let account = json!({"id": ACCOUNT, "name": "Acme", "stripe_customer_id": "cus_1"});
            assert_eq!(app.create_account(account).await.status, 201);
            for number in 0..3 {
                let id = format!("evt_{number}");
                app.deliver(created(&id, 100, subscription(&id.replace("evt", "sub"), "cus_1", "active", 5))).await;
            }
            let mut document = Document::of(&app).await;
            // What does not end, or only after half a minute, has tests of its own.
            let paths = document.json["paths"].as_object_mut().unwrap();
            paths.remove("/api/v1/changes/stream").unwrap();
            let parameters = paths["/api/v1/changes"]["get"]["parameters"].as_array_mut().unwrap();
            parameters.retain(|parameter| parameter["name"] != "wait");
            (app, document)
        });
        Self { runtime, app, document }
    }

    /// Runs `test` on `cases` requests; the first that fails is made smaller and shown.
    fn hold<S>(&mut self, cases: u32, requests: S, test: impl Fn(&Request, &Raw, &Document))
    where
        S: Strategy<Value = Request>,
    {
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
        let Self { runtime, app, document } = self;
        let document = std::cell::RefCell::new(document);
        let result = TestRunner::new(config).run(&requests, |request| {
            let answer = runtime.block_on(Raw::answer(app.address, &request.bytes()));
            let mut document = document.borrow_mut();
            request.check(&mut document, &answer);
            test(&request, &answer, &document);
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}"));
        let still = self.runtime.block_on(self.app.get("/health"));
        assert_eq!(still.status, 200, "{still:?}");
    }

    fn operations(&self) -> Vec<(String, String, Value)> {
        let operations = self.document.operations();
        operations.map(|(method, path, operation)| (method.to_owned(), path.to_owned(), operation.clone())).collect()
    }
}

/// Requests to every operation, whose query and body come from the document.
fn documented(subject: &Subject) -> impl Strategy<Value = Request> + use<> {
    Union::new(subject.operations().into_iter().map(|(method, path, operation)| {
        let parts = (path_id(), query(&subject.document, &operation), body(&subject.document, &operation));
        parts.prop_map(move |(id, (query, mut given), body)| {
            let mut request = Request { id, query, ..request(&method, &path) };
            if let Some((schema, value)) = body {
                request.body = value.to_string().into();
                given.push((schema, value));
                request.headers.push(("Stripe-Signature".to_owned(), signature(&request.body)));
            }
            Request { given: Arc::new(given), ..request }
        })
    }))
}

#[test]
fn what_fits_the_document_is_taken_and_what_does_not_is_400() {
    let mut subject = Subject::start();
    let requests = documented(&subject);
    subject.hold(800, requests, |request, answer, document| {
        // The webhook counts bytes, which a schema cannot say.
        if request.path.ends_with("/stripe") && request.body.len() > 255 && !request.body.is_ascii() {
            return;
        }
        let decoded = percent_decode_str(&request.query).decode_utf8_lossy();
        // That an event is unknown is no matter of a schema.
        if answer.status == 404 || decoded.contains("starting_after=") || answer.status == 413 {
            return;
        }
        assert_eq!(answer.status != 400, request.fits(document), "{answer:?}");
    });
}

#[test]
fn rubbish_gets_an_answer_that_is_documented() {
    let mut subject = Subject::start();
    let operations: Vec<_> = subject.operations().into_iter().map(|(method, path, _)| (method, path)).collect();
    let visible = "[ -~]{0,60}";
    let header = prop_oneof![
        select(vec!["Content-Type", "Accept", "Cookie", "Stripe-Signature", "X-Request-Id", "X-CSRF-Token", "Origin"])
            .prop_map(str::to_owned),
        "[a-zA-Z0-9-]{1,20}".prop_filter("frames the request", |name| {
            !["connection", "content-length", "transfer-encoding", "expect", "upgrade", "host"]
                .contains(&name.to_lowercase().as_str())
        }),
    ];
    let authorization = prop_oneof![
        2 => Just(Some(format!("Bearer {ADMIN_TOKEN}"))),
        1 => prop::option::of(visible),
        1 => prop::option::of("Bearer [ -~]{0,30}"),
    ];
    let query = prop_oneof![Just(String::new()), "[!$-;=?-Z_a-z~%]{0,80}".prop_map(|rubbish| format!("?{rubbish}"))];
    let length = prop_oneof![5 => 0..200_usize, 1 => BODY_LIMIT..BODY_LIMIT + 2];
    let body = length.prop_flat_map(|length| prop::collection::vec(any::<u8>(), length));
    let headers = prop::collection::vec((header, visible), 0..4);
    let requests = (select(operations), path_id(), query, authorization, headers, body).prop_map(
        |((method, path), id, query, authorization, headers, body)| Request {
            id,
            query,
            authorization,
            headers,
            body: body.into(),
            ..request(&method, &path)
        },
    );
    subject.hold(600, requests, |_, _, _| ());
}

#[test]
fn other_methods_and_other_paths_have_the_one_form_of_error() {
    let subject = Subject::start();
    let paths: Vec<_> = subject.operations().into_iter().map(|(_, path, _)| path).collect();
    let method = prop_oneof![
        select(vec!["GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"]).prop_map(str::to_owned),
        "[A-Z]{1,12}".prop_filter("opens a tunnel, or has no body", |method| method != "CONNECT" && method != "HEAD"),
    ];
    let path = prop_oneof![
        2 => select(paths).prop_map(|path| path.replace("{id}", "evt_0").replace("{customer}", "cus_1")),
        1 => "/[!$-.0-;=@-Z_a-z~/]{0,60}".prop_filter("the page has errors of its own", |path| !path.starts_with("/admin")),
        1 => (1_000..30_000_usize).prop_map(|length| format!("/{}", "x/".repeat(length / 2))),
    ];
    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&(method, path), |(method, path)| {
        let text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = subject.runtime.block_on(Raw::answer(subject.app.address, text.as_bytes()));
        match answer.status {
            404 => assert_is_error(&answer, "not_found"),
            405 => {
                assert_is_error(&answer, "method_not_allowed");
                assert!(answer.headers.contains_key("allow") && !answer.headers["allow"].is_empty(), "{answer:?}");
            }
            status => assert!([200, 400, 401].contains(&status), "{answer:?}"),
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn bytes_that_are_no_request_end_the_connection_and_nothing_else() {
    let subject = Subject::start();
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    let bytes = prop::collection::vec(any::<u8>(), 1..400);
    let result = TestRunner::new(config).run(&bytes, |mut bytes| {
        // Without an end of the head, the server would rightly wait for more.
        bytes.extend_from_slice(b"\r\n\r\n");
        let received = subject.runtime.block_on(exchange(subject.app.address, &bytes));
        let text = String::from_utf8_lossy(&received);
        prop_assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{}", text);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(subject.runtime.block_on(subject.app.get("/health")).status, 200);
}
