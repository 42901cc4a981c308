//! `subledger setup`: the webhook endpoint at Stripe is made once, kept up to date, and made anew for an upgrade.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use subledger::stripe::api::API_VERSION;
use subledger::stripe::handled_types;

use crate::support::binary::subledger;
use crate::support::{StripeApi, job};

const URL: &str = "https://app.example/api/v1/webhooks/stripe";

async fn setup(stripe: &StripeApi, args: &[&str]) -> job::Ran {
    let mut command = subledger(&std::env::temp_dir());
    command.arg("setup").args(args);
    command.env("STRIPE_API_BASE", stripe.base().as_str()).env("STRIPE_SECRET_KEY", "sk_test_key");
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    job::wait(command.spawn().unwrap()).await
}

fn types_of(endpoint: &Value) -> BTreeSet<&str> {
    endpoint["enabled_events"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_made_once_with_the_handled_types_and_its_secret_is_printed_once() {
    let stripe = StripeApi::start().await;
    let first = setup(&stripe, &["--url", URL]).await;
    first.ends_with(0);
    assert_eq!(first.lines("STRIPE_WEBHOOK_SECRET="), ["STRIPE_WEBHOOK_SECRET=whsec_of_1"]);
    let made = stripe.endpoints.all();
    assert_eq!(made.len(), 1);
    assert_eq!(types_of(&made[0]), handled_types().collect());
    assert_eq!((&made[0]["url"], &made[0]["api_version"]), (&json!(URL), &json!(API_VERSION)));
    assert_eq!(made[0]["metadata"], json!({"managed_by": "subledger"}));

    let again = setup(&stripe, &["--url", URL]).await;
    again.ends_with(0);
    assert!(again.out.contains("up to date") && !again.out.contains("whsec_"), "{}", again.out);
    assert_eq!(stripe.endpoints.all(), made);
    assert_eq!(stripe.endpoints.posted.lock().unwrap().len(), 1);
    let versions = stripe.endpoints.versions.lock().unwrap().clone();
    assert!(versions.iter().all(|version| version.as_deref() == Some(API_VERSION)), "{versions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_made_before_is_brought_up_to_date_and_what_others_made_is_left_alone() {
    let stripe = StripeApi::start().await;
    setup(&stripe, &["--url", "https://app.example"]).await.ends_with(0);
    assert_eq!(stripe.endpoints.all()[0]["url"], URL);
    stripe.endpoints.set(0, "enabled_events", json!(["invoice.paid", "charge.succeeded"]));
    stripe.endpoints.set(0, "status", json!("disabled"));
    let foreign = json!({"id": "we_foreign", "object": "webhook_endpoint", "url": URL, "status": "enabled",
                         "enabled_events": ["*"], "metadata": {}, "livemode": false, "created": 1});
    stripe.endpoints.list.lock().unwrap().push(foreign.clone());

    let ran = setup(&stripe, &["--url", URL]).await;
    ran.ends_with(0);
    let now = stripe.endpoints.all();
    assert_eq!((now.len(), types_of(&now[0])), (2, handled_types().collect()));
    assert_eq!((&now[0]["status"], &now[1]), (&json!("enabled"), &foreign));
    for words in ["removed charge.succeeded", "added customer.subscription.deleted", "we_foreign has the same URL"] {
        assert!(ran.out.contains(words), "{words}: {}", ran.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_makes_a_second_endpoint_and_says_when_the_old_one_can_go() {
    let stripe = StripeApi::start().await;
    setup(&stripe, &["--url", URL]).await.ends_with(0);
    stripe.endpoints.set(0, "api_version", json!("2024-06-20"));
    let told = setup(&stripe, &["--url", URL]).await;
    told.ends_with(0);
    assert!(told.out.contains("setup --upgrade"), "{}", told.out);
    assert_eq!(stripe.endpoints.all().len(), 1);

    let upgraded = setup(&stripe, &["--url", URL, "--upgrade"]).await;
    upgraded.ends_with(0);
    assert_eq!(upgraded.lines("STRIPE_WEBHOOK_SECRET="), ["STRIPE_WEBHOOK_SECRET=whsec_of_2"]);
    assert!(
        upgraded.lines("we_1 (2024-06-20) can be deleted in Stripe's dashboard from ").len() == 1,
        "{}",
        upgraded.out
    );
    let both = stripe.endpoints.all();
    assert_eq!((both.len(), &both[1]["api_version"]), (2, &json!(API_VERSION)));

    stripe.endpoints.set(1, "created", json!(1_700_000_000));
    let later = setup(&stripe, &["--url", URL, "--upgrade"]).await;
    later.ends_with(0);
    assert!(later.lines("we_1 (2024-06-20) can be deleted in Stripe's dashboard once").len() == 1, "{}", later.out);
    assert_eq!(stripe.endpoints.all().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_accounts_have_an_endpoint_of_their_own() {
    let stripe = StripeApi::start().await;
    setup(&stripe, &["--url", URL]).await.ends_with(0);
    setup(&stripe, &["--url", URL, "--connect"]).await.ends_with(0);
    setup(&stripe, &["--url", URL, "--connect"]).await.ends_with(0);
    let posted = stripe.endpoints.posted.lock().unwrap().clone();
    let connect = posted.iter().map(|(_, fields)| fields.contains(&("connect".to_owned(), "true".to_owned())));
    assert_eq!(connect.collect::<Vec<_>>(), [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_or_with_a_url_that_stripe_would_refuse_it_is_wrong_usage() {
    let stripe = StripeApi::start().await;
    setup(&stripe, &["--url", "http://app.example"]).await.ends_with(2);
    setup(&stripe, &[]).await.ends_with(2);
    let mut command = subledger(&std::env::temp_dir());
    let output = command.args(["setup", "--url", URL]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("STRIPE_SECRET_KEY"));
    assert!(stripe.endpoints.all().is_empty());
}
