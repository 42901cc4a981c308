//! Asking Stripe: when, with what, and what becomes of the answer or of its absence.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::events::{checkout, completed, created, deleted, invoice, paid, subscription, updated};
use crate::support::{Event, Settings, StripeApi, TestApp, fixture_json};

/// Subscription 1 with this status and number of seats.
fn shown(status: &str, seats: i64) -> Value {
    subscription("sub_1", "cus_1", status, seats)
}

async fn start(settings: Settings) -> (StripeApi, TestApp) {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(settings, Some(&stripe)).await;
    app.account_of("cus_1").await;
    (stripe, app)
}

/// Two changes of one second, of which only Stripe knows the order.
fn tie() -> [Event; 2] {
    [updated("evt_a", 100, shown("active", 2)), updated("evt_b", 100, shown("past_due", 3))]
}

#[tokio::test(flavor = "multi_thread")]
async fn stripe_is_asked_where_two_changes_of_one_second_meet_and_not_otherwise() {
    let (stripe, app) = start(Settings::default()).await;
    stripe.has(&shown("past_due", 3));
    let unasked = [
        created("evt_0", 100, shown("incomplete", 1)),
        updated("evt_1", 100, shown("active", 1)),
        created("evt_2", 100, shown("incomplete", 1)),
        updated("evt_3", 105, shown("active", 2)),
        updated("evt_4", 104, shown("active", 9)),
        paid("evt_5", 105, invoice("in_1", "cus_1", "sub_1")),
        paid("evt_6", 105, invoice("in_2", "cus_1", "sub_1")),
        updated("evt_3", 105, shown("active", 2)),
        Event::new("evt_7", "customer.deleted", 105, json!({"id": "cus_1", "object": "customer"})),
    ];
    for event in unasked {
        assert_eq!(app.deliver(&event).await.status, 200);
        assert_eq!(stripe.asked(), [], "{event}");
    }
    assert_eq!(app.deliver(updated("evt_8", 105, shown("past_due", 3))).await.outcome(), "applied");
    let asked = stripe.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].subscription.as_str(), asked[0].connect_account.as_deref()), ("sub_1", None));
    assert_eq!(asked[0].authorization.as_deref(), Some("Bearer sk_test_key"));
    // Against a final state nothing has to be asked either, also within its second.
    app.deliver(deleted("evt_9", 105, shown("canceled", 3))).await;
    app.deliver(updated("evt_10", 105, shown("active", 3))).await;
    assert_eq!(stripe.asked().len(), 1);
    assert_eq!(app.subscription("sub_1").await["status"], "canceled");
}

#[tokio::test(flavor = "multi_thread")]
async fn stripes_word_decides_also_against_previous_attributes_and_arrival() {
    for (current, outcome, shows) in
        [(shown("past_due", 3), "applied", "evt_b"), (shown("active", 2), "stale", "evt_a")]
    {
        let (stripe, app) = start(Settings::default()).await;
        stripe.has(&current);
        let [a, b] = tie();
        app.deliver(&a).await;
        let b = b.with_previous(json!({"status": current["status"]}));
        assert_eq!(app.deliver(&b).await.outcome(), outcome);
        let row = app.subscription("sub_1").await;
        assert_eq!((&row["status"], &row["last_event_id"]), (&current["status"], &json!(shows)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_accounts_subscription_is_asked_for_in_its_name() {
    let (stripe, app) = start(Settings::default()).await;
    stripe.has(&shown("past_due", 3));
    for event in tie() {
        assert_eq!(app.deliver(event.with("account", json!("acct_1"))).await.outcome(), "applied");
    }
    let session = checkout("cus_1", "sub_1", None);
    let event = completed("evt_c", 101, session).with("account", json!("acct_2"));
    assert_eq!(app.deliver(event).await.outcome(), "applied");
    let named: Vec<_> = stripe.asked().into_iter().map(|asked| asked.connect_account.unwrap()).collect();
    assert_eq!(named, ["acct_1", "acct_2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_events_context_alone_says_in_whose_name_is_asked() {
    let (stripe, app) = start(Settings::default()).await;
    stripe.has(&shown("past_due", 3));
    for event in tie() {
        let event = event.with("account", json!("acct_3")).with("context", json!("acct_1/acct_2"));
        assert_eq!(app.deliver(event).await.outcome(), "applied");
    }
    let session = completed("evt_c", 101, checkout("cus_1", "sub_1", None)).with("context", json!("acct_2"));
    assert_eq!(app.deliver(session).await.outcome(), "applied");
    let asked = stripe.asked().into_iter().map(|asked| (asked.connect_account, asked.context.unwrap()));
    let asked: Vec<_> = asked.collect();
    assert_eq!(asked, [(None, "acct_1/acct_2".to_owned()), (None, "acct_2".to_owned())]);
    assert_eq!(app.event_row("evt_c").await["connect_account"], "acct_2");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_counts_as_of_the_event_that_caused_the_fetch() {
    let (stripe, app) = start(Settings::default()).await;
    stripe.has(&shown("unpaid", 9));
    for event in tie() {
        assert_eq!(app.deliver(&event).await.outcome(), "applied");
    }
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["status"], &row["last_event_id"]), (&json!("unpaid"), &json!("evt_b")));
    assert_eq!(row["last_event_created"], "1970-01-01T00:01:40+00:00");
    // So what happened a second later is newer, whenever it was fetched.
    assert_eq!(app.deliver(updated("evt_c", 101, shown("active", 1))).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["status"], "active");
    // The same for a checkout: fetched now, but as of then.
    assert_eq!(app.deliver(completed("evt_d", 100, checkout("cus_1", "sub_1", None))).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["last_event_id"], "evt_c");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_does_not_have_is_decided_by_previous_attributes() {
    let (stripe, app) = start(Settings::default()).await;
    stripe.answer("sub_1", 404, fixture_json("api/error.404.resource_missing"));
    let [a, b] = tie();
    let a = a.with_previous(json!({"status": "past_due", "items": b.object()["items"]}));
    app.deliver(&a).await;
    assert_eq!(app.deliver(&b).await.outcome(), "stale", "a follows b");
    assert_eq!(stripe.asked().len(), 1);
    assert_eq!(app.subscription("sub_1").await["last_event_id"], "evt_a");
    // A checkout then only links.
    let account = app.account().await;
    let session = checkout("cus_2", "sub_2", Some(&account.to_string()));
    assert_eq!(app.deliver(completed("evt_c", 100, session)).await.outcome(), "applied");
    assert_eq!(app.count("subscriptions WHERE stripe_subscription_id = 'sub_2'").await, 0);
    assert_eq!(app.count("accounts WHERE stripe_customer_id = 'cus_2'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_failure_of_stripe_is_unavailable_and_the_retry_applies() {
    let failures = [
        (500, fixture_json("api/error.500")),
        (429, fixture_json("api/error.429.rate_limit")),
        (429, fixture_json("api/error.429.lock_timeout")),
        (401, fixture_json("api/error.401")),
        (200, json!({})),
        (200, json!([])),
        (200, json!("<html>")),
        (200, invoice("in_1", "cus_1", "sub_1")),
        (200, subscription("sub_2", "cus_1", "active", 1)),
        (200, json!({"id": "sub_1", "status": "active"})),
        (302, json!({})),
    ];
    for (status, body) in failures {
        let (stripe, app) = start(Settings::default()).await;
        let [a, b] = tie();
        app.deliver(&a).await;
        stripe.answer("sub_1", status, body.clone());
        assert_eq!(deliver_raw(&app, &b).await, (503, true, "unavailable".to_owned()), "{body}");
        check_nothing_stored(&app).await;
        stripe.has(&shown("past_due", 3));
        assert_eq!(app.deliver(&b).await.outcome(), "applied", "{body}");
        assert_eq!(app.subscription("sub_1").await["last_event_id"], "evt_b");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stripe_that_does_not_answer_in_time_is_unavailable_and_the_retry_applies() {
    let settings = Settings { stripe_timeout: Duration::from_millis(200), ..Settings::default() };
    let (stripe, app) = start(settings).await;
    let [a, b] = tie();
    app.deliver(&a).await;
    let gate = stripe.queue_gated(&shown("past_due", 3));
    let started = std::time::Instant::now();
    assert_eq!(deliver_raw(&app, &b).await, (503, true, "unavailable".to_owned()));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    check_nothing_stored(&app).await;
    gate.open();
    assert_eq!(app.deliver(&b).await.outcome(), "applied");
    // A connection that is refused is no different.
    let elsewhere = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&elsewhere)).await;
    drop(elsewhere);
    tokio::time::sleep(Duration::from_millis(200)).await;
    app.account_of("cus_1").await;
    let session = completed("evt_b", 100, checkout("cus_1", "sub_1", None));
    assert_eq!(deliver_raw(&app, &session).await, (503, true, "unavailable".to_owned()));
    assert_eq!(app.count("stripe_events").await, 0);
}

/// Status, whether `Retry-After` is there, and the error's code.
async fn deliver_raw(app: &TestApp, event: &Event) -> (u16, bool, String) {
    let body = event.to_string();
    let signature = crate::support::app::signature(body.as_bytes());
    let request = app.http.post(app.url("/api/v1/webhooks/stripe")).header("Stripe-Signature", signature).body(body);
    let response = request.send().await.unwrap();
    let (status, has_hint) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
    let body: Value = response.json().await.unwrap();
    (status, has_hint, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

/// Of the tie's second event there is a failure, and nothing else.
async fn check_nothing_stored(app: &TestApp) {
    assert_eq!(app.event_row("evt_b").await, Value::Null);
    assert_eq!(app.subscription("sub_1").await["last_event_id"], "evt_a");
    let failures = app.json("SELECT to_jsonb(event_id) FROM event_failures", &[]).await;
    assert_eq!(failures, ["evt_b"]);
}
