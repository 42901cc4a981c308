//! Many thin events at a Stripe that allows few reads: nothing is lost, and those that wait together share reads.

use std::time::Instant;

use futures_util::{StreamExt, stream};

use super::*;

struct Ran {
    reads: usize,
    refused_by_stripe: usize,
    attempts: usize,
}

/// Delivers `events` thin events of `subscriptions` subscriptions, `at_once` at a time, each until it is recorded.
async fn run(events: usize, subscriptions: usize, reads_per_second: u32, at_once: usize) -> Ran {
    let stripe = StripeApi::start().await;
    let settings = Settings { stripe_reads_per_second: reads_per_second, ..Settings::default() };
    let app = TestApp::start_with(settings, Some(&stripe)).await;
    app.account_of("cus_1").await;
    stripe.allow_per_second(reads_per_second as usize + reads_per_second as usize / 5);
    let object = |n: usize| subscription(&format!("sub_{n}"), "cus_1", "active", 1);
    let began = Instant::now();
    let attempts: Vec<usize> = stream::iter(0..events)
        .map(async |n| {
            let (app, stripe) = (&app, &stripe);
            let object = object(n % subscriptions);
            stripe.has(&object);
            // The events of one subscription follow each other, second by second.
            let second = 100 + i64::try_from(n / subscriptions).unwrap();
            deliver_until_recorded(app, &thin(&format!("evt_test_{n}"), UPDATED, second, &object, None)).await
        })
        .buffer_unordered(at_once)
        .collect()
        .await;
    assert_eq!(app.count("stripe_events").await, i64::try_from(events).unwrap());
    assert_eq!(app.count("subscriptions").await, i64::try_from(subscriptions).unwrap());
    let last = 100 + (events - 1) / subscriptions;
    let behind = format!("subscriptions WHERE last_event_created < to_timestamp({last})");
    assert_eq!(app.count(&behind).await, 0);
    let asked = stripe.asked();
    let refused_by_stripe = asked.iter().filter(|asked| asked.status == 429).count();
    let ran = Ran { reads: asked.len(), refused_by_stripe, attempts: attempts.iter().sum() };
    println!(
        "{events} events, {} reads, {} of them answered 429, {} deliveries, {:?}",
        ran.reads,
        ran.refused_by_stripe,
        ran.attempts,
        began.elapsed()
    );
    ran
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_that_wait_together_share_reads_and_none_is_lost() {
    let ran = run(120, 2, 10, 40).await;
    // Each has a call for its own event at Stripe; the reads of the subscriptions are shared.
    assert!(ran.reads < ran.attempts + 60, "{} reads, {} attempts", ran.reads, ran.attempts);
    assert!(ran.refused_by_stripe < 12, "{}", ran.refused_by_stripe);
    assert!(ran.attempts < 240, "{}", ran.attempts);
}

/// The whole size, by hand: `cargo test --test it -- --ignored --nocapture ten_thousand`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn ten_thousand_notifications_of_a_hundred_subscriptions() {
    run(10_000, 100, 50, 64).await;
}
