//! Which of two states is newer: the contract's rules, one by one.

use serde_json::{Value, json};

use crate::support::events::{created, deleted, invoice, paid, subscription, updated};
use crate::support::{Event, TestApp};

/// Subscription 1 with this status and number of seats.
fn shown(status: &str, seats: i64) -> Value {
    subscription("sub_1", "cus_1", status, seats)
}

/// `updated` of second 100 in which the seats changed from one number to another.
fn reseated(id: &str, from: i64, to: i64) -> Event {
    let previous = json!({"items": shown("active", from)["items"]});
    updated(id, 100, shown("active", to)).with_previous(previous)
}

async fn app() -> TestApp {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app
}

/// Delivers the first, then the second, and says what became of the second and which one the row then shows.
async fn after(first: &Event, second: &Event) -> (String, String) {
    let app = app().await;
    assert_eq!(app.deliver(first).await.outcome(), "applied", "{first}");
    let answer = app.deliver(second).await;
    assert_eq!(app.count("event_failures").await, 0);
    let row = app.subscription("sub_1").await;
    (answer.outcome().to_owned(), row["last_event_id"].as_str().unwrap().to_owned())
}

#[track_caller]
fn check(found: (String, String), outcome: &str, shows: &str) {
    assert_eq!((found.0.as_str(), found.1.as_str()), (outcome, shows));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_state_beats_every_other_whatever_the_times() {
    let living = updated("evt_living", 200, shown("active", 1));
    let finals = [
        updated("evt_final", 100, shown("canceled", 2)),
        updated("evt_final", 100, shown("incomplete_expired", 2)),
        deleted("evt_final", 100, shown("active", 2)),
    ];
    for last in finals {
        check(after(&living, &last).await, "applied", "evt_final");
        check(after(&last, &living).await, "stale", "evt_final");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn among_final_states_the_later_second_wins() {
    let earlier = updated("evt_b", 100, shown("canceled", 1));
    let later = deleted("evt_a", 101, shown("canceled", 2));
    check(after(&earlier, &later).await, "applied", "evt_a");
    check(after(&later, &earlier).await, "stale", "evt_a");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_later_second_wins_and_what_is_stale_changes_nothing() {
    let earlier = updated("evt_b", 100, shown("active", 1));
    let later = updated("evt_a", 101, shown("past_due", 2));
    check(after(&earlier, &later).await, "applied", "evt_a");
    check(after(&later, &earlier).await, "stale", "evt_a");

    let app = app().await;
    app.deliver(&later).await;
    let before = app.subscription("sub_1").await;
    app.deliver(&earlier).await;
    assert_eq!(app.subscription("sub_1").await, before, "not even updated_at");
    assert_eq!(app.event_row("evt_b").await["outcome"], "stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_second_created_comes_before_all_others() {
    let birth = created("evt_b", 100, shown("incomplete", 1));
    let types = ["updated", "paused", "resumed", "trial_will_end", "pending_update_applied", "pending_update_expired"];
    for event_type in types {
        let event = Event::new("evt_a", &format!("customer.subscription.{event_type}"), 100, shown("active", 2));
        check(after(&birth, &event).await, "applied", "evt_a");
        check(after(&event, &birth).await, "stale", "evt_a");
    }
    // But not before what is of an earlier second.
    let earlier = updated("evt_a", 99, shown("active", 2));
    check(after(&birth, &earlier).await, "stale", "evt_b");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_previous_attributes_decide_a_second() {
    for (first, second) in [("evt_a", "evt_b"), ("evt_b", "evt_a")] {
        let first = reseated(first, 1, 2);
        let second = reseated(second, 2, 3);
        check(after(&first, &second).await, "applied", second.id());
        check(after(&second, &first).await, "stale", second.id());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_the_newcomer_wins_where_previous_attributes_tell_nothing_or_undo_each_other() {
    let undoing = [reseated("evt_a", 1, 2), reseated("evt_b", 2, 1)];
    let silent = [updated("evt_a", 100, shown("active", 2)), updated("evt_b", 100, shown("past_due", 3))];
    let strangers = [reseated("evt_a", 1, 2), reseated("evt_b", 7, 8)];
    for [a, b] in [undoing, silent, strangers] {
        check(after(&a, &b).await, "applied", "evt_b");
        check(after(&b, &a).await, "applied", "evt_a");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invoices_are_ordered_among_themselves_and_never_touch_the_status() {
    let app = app().await;
    app.deliver(created("evt_1", 500, shown("active", 1))).await;
    let state = app.subscription("sub_1").await;
    let steps = [
        ("invoice.paid", 110, "in_2", "applied", "in_2", "paid"),
        ("invoice.payment_failed", 109, "in_3", "stale", "in_2", "paid"),
        ("invoice.payment_failed", 110, "in_3", "applied", "in_3", "payment_failed"),
        ("invoice.paid", 110, "in_1", "stale", "in_3", "payment_failed"),
        ("invoice.paid", 110, "in_3", "applied", "in_3", "paid"),
        ("invoice.payment_failed", 111, "in_3", "applied", "in_3", "payment_failed"),
        ("invoice.payment_failed", 111, "in_4", "applied", "in_4", "payment_failed"),
        ("invoice.paid", 111, "in_0", "stale", "in_4", "payment_failed"),
    ];
    for (number, (event_type, second, id, outcome, latest, status)) in steps.into_iter().enumerate() {
        let event = Event::new(&format!("evt_in_{number}"), event_type, second, invoice(id, "cus_1", "sub_1"));
        assert_eq!(app.deliver(&event).await.outcome(), outcome, "{event}");
        let row = app.subscription("sub_1").await;
        assert_eq!(row["latest_invoice_id"], latest, "{event}");
        assert_eq!(row["latest_invoice_status"], status, "{event}");
        for column in ["status", "last_event_id", "last_event_created", "seat_limit"] {
            assert_eq!(row[column], state[column], "{column} after {event}");
        }
    }
    app.deliver(deleted("evt_2", 600, shown("canceled", 1))).await;
    assert_eq!(app.deliver(paid("evt_3", 700, invoice("in_9", "cus_1", "sub_1"))).await.outcome(), "applied");
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["status"], &row["latest_invoice_id"]), (&json!("canceled"), &json!("in_9")));
}
