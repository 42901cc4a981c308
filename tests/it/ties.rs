//! Two changes of one second: which of them a row shows, whatever the order of arrival.

use serde_json::{Value, json};

use crate::local_rows::orders;
use crate::support::database::Database;
use crate::support::events::{created, subscription, updated};
use crate::support::{Event, Settings, StripeApi, TestApp};

/// Delivers the events in every order, each to a subscription of its own, and checks that all end with the same status and
/// seats, and that nothing was undecided. Ids end with `suffix`.
async fn check_all_orders(events: impl Fn(&str) -> Vec<Event>, status: &str, seats: i64) {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    for (copy, order) in orders(events("").len()).into_iter().enumerate() {
        let suffix = format!("c{copy}c");
        let events = events(&suffix);
        for &number in &order {
            assert_eq!(app.deliver(&events[number]).await.status, 200, "{order:?}");
        }
        let row = app.subscription(&format!("sub_{suffix}")).await;
        assert_eq!((&row["status"], &row["seat_limit"]), (&json!(status), &json!(seats)), "{order:?}");
    }
    let metrics = app.http.get(app.url("/metrics")).bearer_auth(crate::support::app::ADMIN_TOKEN).send().await.unwrap();
    let text = metrics.text().await.unwrap();
    assert!(text.lines().any(|line| line == "subledger_undecided_ties_total 0"), "{text}");
}

fn object(suffix: &str, status: &str, price: &str, seats: i64) -> Value {
    let mut object = subscription(&format!("sub_{suffix}"), "cus_1", status, seats);
    object["items"]["data"][0]["price"]["id"] = price.into();
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_trial_and_the_change_of_its_second() {
    // The change follows the trial's state, or a state that no event shows.
    for previous in [
        json!({"status": "trialing", "items": {"data": [{"price": {"id": "price_starter"}}]}}),
        json!({"status": "incomplete"}),
        json!({"metadata": {"campaign": "spring"}}),
    ] {
        // Either of them may have the larger id.
        for (ends, changes) in [("evt_3", "evt_5"), ("evt_5", "evt_3")] {
            let events = |suffix: &str| {
                let trial = object(suffix, "trialing", "price_starter", 1);
                let ends = format!("{ends}{suffix}");
                vec![
                    created(&format!("evt_1{suffix}"), 100, trial.clone()),
                    Event::new(&ends, "customer.subscription.trial_will_end", 105, trial),
                    updated(&format!("{changes}{suffix}"), 105, object(suffix, "active", "price_pro", 7))
                        .with_previous(previous.clone()),
                ]
            };
            check_all_orders(events, "active", 7).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_expired_and_the_change_of_its_second() {
    for (expires, changes) in [("evt_3", "evt_5"), ("evt_5", "evt_3")] {
        let events = |suffix: &str| {
            let before = object(suffix, "active", "price_team", 2);
            let expires = format!("{expires}{suffix}");
            vec![
                created(&format!("evt_1{suffix}"), 100, before.clone()),
                Event::new(&expires, "customer.subscription.pending_update_expired", 105, before),
                updated(&format!("{changes}{suffix}"), 105, object(suffix, "past_due", "price_team", 9))
                    .with_previous(json!({"latest_invoice": "in_0", "status": "active"})),
            ]
        };
        check_all_orders(events, "past_due", 9).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn previous_values_that_are_empty_say_nothing() {
    for empty in [json!({"metadata": {}}), json!({}), json!({"metadata": {}, "plan": {"metadata": {}}})] {
        for (noted, changed) in [("evt_3", "evt_5"), ("evt_5", "evt_3")] {
            let events = |suffix: &str| {
                let mut with_note = object(suffix, "active", "price_team", 2);
                with_note["metadata"] = json!({"note": "first"});
                let mut after = object(suffix, "past_due", "price_team", 2);
                after["metadata"] = json!({"note": "first"});
                vec![
                    updated(&format!("{noted}{suffix}"), 105, with_note).with_previous(empty.clone()),
                    updated(&format!("{changed}{suffix}"), 105, after).with_previous(json!({"status": "active"})),
                    created(&format!("evt_1{suffix}"), 100, object(suffix, "active", "price_team", 2)),
                ]
            };
            check_all_orders(events, "past_due", 2).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_from_before_the_last_change_of_the_second_does_not_count() {
    // The first change of the second, one to two seats, and back. The first has the largest id, so that the row names it
    // before and after the last: only that a further event has become known shows that the answer is old.
    for (first, up, down) in [("evt_9", "evt_2", "evt_3"), ("evt_1", "evt_2", "evt_3"), ("evt_5", "evt_9", "evt_3")] {
        let stripe = StripeApi::start().await;
        let settings = || Settings { pool_size: 4, ..Settings::default() };
        let app = TestApp::start_with(settings(), Some(&stripe)).await;
        let target = app.database.target();
        let beside = TestApp::start_at(Database::empty(), target, settings(), Some(&stripe)).await;
        app.account_of("cus_1").await;
        let (one, two) = (subscription("sub_1", "cus_1", "active", 1), subscription("sub_1", "cus_1", "active", 2));
        app.deliver(created("evt_0", 100, subscription("sub_1", "cus_1", "trialing", 1))).await;
        let first = updated(first, 105, one.clone()).with_previous(json!({"status": "trialing"}));
        assert_eq!(app.deliver(first).await.outcome(), "applied");

        let seats = |seats: i64| json!({"items": {"data": [{"quantity": seats}]}});
        let gate = stripe.queue_gated(&two);
        stripe.has_second(&one);
        let (up, down) =
            (updated(up, 105, two).with_previous(seats(1)), updated(down, 105, one).with_previous(seats(2)));
        let late = async {
            stripe.wait_until_asked(1).await;
            assert_eq!(beside.deliver(&down).await.status, 200);
            gate.open();
        };
        let (answer, ()) = tokio::join!(app.deliver(&up), late);
        assert_eq!(answer.status, 200, "{answer:?}");
        let row = app.subscription("sub_1").await;
        assert_eq!((&row["seat_limit"], &row["status"]), (&json!(1), &json!("active")), "{row:#}");
    }
}
