//! The client of Stripe's API: what each call carries, and what becomes of answers that are none.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use subledger::secret::Secret;
use subledger::stripe::api::{API_VERSION, ApiError, Client, List, Resource, Scope};

use crate::support::events::{invoice, subscription};
use crate::support::{Event, Settings, StripeApi, TestApp, app, job};

fn client(stripe: &StripeApi, reads_per_second: u32) -> Client {
    // Installs what TLS needs.
    app::config(&Settings::default(), None);
    Client::with_rate(stripe.base(), Secret::new("sk_test_key"), Duration::from_secs(2), reads_per_second).unwrap()
}

fn shown() -> Value {
    subscription("sub_1", "cus_1", "active", 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_carries_the_pinned_version_and_on_whose_behalf_it_is_made() {
    let stripe = StripeApi::start().await;
    let client = client(&stripe, 1_000);
    stripe.has(&shown());
    stripe.lists_events(&[]);
    for (scope, account, context) in [
        (Scope::Own, None, None),
        (Scope::from(Some("acct_1")), Some("acct_1"), None),
        (Scope::Context("acct_1/acct_2".to_owned()), None, Some("acct_1/acct_2")),
    ] {
        client.subscription("sub_1", scope.clone()).await.unwrap().unwrap();
        let asked = stripe.asked().pop().unwrap();
        assert_eq!((asked.connect_account.as_deref(), asked.context.as_deref()), (account, context));
        assert_eq!((asked.version.as_deref(), asked.path.as_str()), (Some(API_VERSION), "/v1/subscriptions/sub_1"));
        assert_eq!(asked.authorization.as_deref(), Some("Bearer sk_test_key"));
        let list = List::Events { types: &["invoice.paid"], since: None, until: None };
        assert_eq!(client.pages(list, scope).next().await.unwrap().unwrap().len(), 0);
        let listed = stripe.listed().pop().unwrap();
        assert_eq!((listed.connect_account.as_deref(), listed.context.as_deref()), (account, context));
        assert_eq!(listed.version.as_deref(), Some(API_VERSION));
    }
    for resource in [Resource::Subscription, Resource::Invoice, Resource::CheckoutSession] {
        let object = json!({"object": resource.object_type(), "id": "x_1"});
        stripe.has(&object);
        assert_eq!(client.resource(resource, "x_1", &Scope::Own).await.unwrap(), Some(object));
        assert_eq!(client.resource(resource, "x_2", &Scope::Own).await.unwrap(), None, "404");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let (stripe, elsewhere) = (StripeApi::start().await, StripeApi::start().await);
    elsewhere.has(&shown());
    let location = format!("{}v1/subscriptions/sub_1", elsewhere.base());
    stripe.answer_path("/v1/subscriptions/sub_1", 307, &[("Location", &location)], "");
    let error = client(&stripe, 1_000).subscription("sub_1", None).await.unwrap_err();
    assert!(matches!(error, ApiError::Status { status, .. } if status.as_u16() == 307), "{error:?}");
    assert_eq!(elsewhere.asked(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_the_object_is_an_error() {
    let stripe = StripeApi::start().await;
    let client = client(&stripe, 1_000);
    let other = subscription("sub_2", "cus_1", "active", 1).to_string();
    let invoice = invoice("in_1", "cus_1", "sub_1").to_string();
    for (body, is_other_type) in [
        ("<html><body>Please log in</body></html>", None),
        ("", None),
        ("{}", Some(false)),
        ("[]", Some(false)),
        (&other, Some(false)),
        (r#"{"object": "subscription"}"#, Some(false)),
        (&invoice, Some(true)),
    ] {
        stripe.answer_path("/v1/subscriptions/sub_1", 200, &[], body);
        match (client.subscription("sub_1", None).await.unwrap_err(), is_other_type) {
            (ApiError::Unreadable(_), None) => {}
            (ApiError::Unexpected { is_other_type, .. }, Some(expected)) => {
                assert_eq!(is_other_type, expected, "{body}")
            }
            (error, _) => panic!("{body}: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_breaks_off_is_no_success() {
    let born = |id: &str| {
        let mut object = subscription(id, "cus_1", "active", 1);
        object["created"] = 1_760_000_000.into();
        object
    };
    let page = |objects: &[Value], has_more: bool| json!({"object": "list", "data": objects, "has_more": has_more});
    let (first, second) = (born("sub_1"), born("sub_2"));
    let whole = page(&[first.clone(), second], true);
    for broken in [page(&[], true), whole.clone(), page(&[json!({"id": 7})], true), json!({}), json!([])] {
        let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
        app.account_of("cus_1").await;
        stripe.queue_pages(&[page(&[], false), whole.clone(), broken.clone()]);
        let ran = job::run(&app, Some(&stripe), &["import"]).await;
        ran.ends_with(1);
        assert!(ran.err.contains("Stripe's API"), "{broken}: {}", ran.err);
        let event = |id: &str| Event::new(id, "customer.subscription.updated", 1_760_000_000, first.clone()).0;
        let events = page(&[event("evt_2"), event("evt_1")], true);
        let broken = if broken == whole { events.clone() } else { broken };
        stripe.queue_pages(&[events, broken]);
        job::run(&app, Some(&stripe), &["reconcile"]).await.ends_with(1);
        assert_eq!(app.event_row("evt_1").await, Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_429_the_call_waits_as_long_as_stripe_asks_for_and_no_other_does() {
    let stripe = StripeApi::start().await;
    let client = client(&stripe, 1_000);
    stripe.has(&subscription("sub_2", "cus_1", "active", 1));
    stripe.answer_path("/v1/subscriptions/sub_1", 429, &[("Retry-After", "1")], "{}");
    let began = Instant::now();
    let error = client.subscription("sub_1", None).await.unwrap_err();
    let one_second = Some(Duration::from_secs(1));
    assert!(matches!(error, ApiError::Status { retry_after, .. } if retry_after == one_second), "{error:?}");
    stripe.has(&shown());
    let again = tokio::spawn({
        let client = client.clone();
        async move { client.subscription("sub_1", None).await }
    });
    client.subscription("sub_2", None).await.unwrap();
    client.subscription("sub_1", Some("acct_1")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1) && !again.is_finished(), "{:?}", began.elapsed());
    again.await.unwrap().unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_one_object_share_one_read_and_no_call_joins_one_that_started() {
    let stripe = StripeApi::start().await;
    let client = client(&stripe, 2);
    let gate = stripe.queue_gated(&shown());
    stripe.has_second(&shown());
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.subscription("sub_1", None).await }
    });
    stripe.wait_until_asked(1).await;
    let later = join_all((0..50).map(|_| client.subscription("sub_1", None)));
    let elsewhere = client.subscription("sub_1", Some("acct_1"));
    let (later, elsewhere) = tokio::join!(later, elsewhere);
    assert!(later.into_iter().all(|answer| answer.unwrap() == Some(shown())));
    assert_eq!(elsewhere.unwrap(), Some(shown()));
    assert_eq!(stripe.asked().len(), 3, "the one that had started, one for fifty, one for another account");
    gate.open();
    first.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usual_variables_name_a_proxy() {
    let (app, proxy) = (TestApp::start().await, StripeApi::start().await);
    proxy.lists_events(&[]);
    proxy.lists_subscriptions(&[]);
    for (variables, code) in [
        (vec![("HTTP_PROXY", proxy.base().to_string())], 0),
        (vec![("http_proxy", proxy.base().to_string())], 0),
        (vec![("HTTP_PROXY", proxy.base().to_string()), ("NO_PROXY", "stripe.invalid".to_owned())], 1),
    ] {
        let before = proxy.listed().len();
        let mut command = job::command(&app, None, &["import", "--dry-run"]);
        command.env("STRIPE_API_BASE", "http://stripe.invalid").env("STRIPE_SECRET_KEY", "sk_test_key");
        command.envs(variables.clone());
        if code == 1 {
            // It cannot succeed; the retries would take half a minute.
            let mut child = command.spawn().unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
            child.kill().unwrap();
            child.wait().unwrap();
        } else {
            job::wait(command.spawn().unwrap()).await.ends_with(code);
        }
        assert_eq!(proxy.listed().len() > before, code == 0, "{variables:?}");
    }
}
