//! Applying events again by hand, and whose customer is whose.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::events::{checkout, completed, created, deleted, invoice, paid, subscription, updated};
use crate::support::{Answer, TestApp};

async fn replay(app: &TestApp, id: &str) -> Answer {
    app.admin(Method::POST, &format!("/events/{id}/replay"), None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_event_is_applied_by_its_replay_and_then_is_a_duplicate() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
    let event = updated("evt_1", 100, subscription("sub_1", "cus_1", "active", 5));
    assert_eq!(app.deliver(&event).await.error_code(), "event_failed");
    assert_eq!(replay(&app, "evt_1").await.error_code(), "event_failed");
    let shown = app.get("/events/evt_1").await.body;
    assert_eq!((&shown["status"], &shown["payload"]), (&json!("failed"), &event.0));
    assert_eq!(shown["failures"].as_array().unwrap().len(), 2);
    assert_eq!(app.count("stripe_events").await, 0);

    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    let replayed = replay(&app, "evt_1").await;
    assert_eq!((replayed.status, replayed.body), (200, json!({"applied": true, "outcome": "applied"})));
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 5);
    assert_eq!(app.event_row("evt_1").await["payload"], event.0);
    assert_eq!(replay(&app, "evt_1").await.body, json!({"applied": false, "outcome": "duplicate"}));
    assert_eq!(app.deliver(&event).await.body, json!({"applied": false, "outcome": "duplicate"}));
    assert_eq!(app.get("/events/evt_1").await.body["status"], "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_is_replayed_only_once_it_can_be_placed() {
    let app = TestApp::start().await;
    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 1))).await;
    assert_eq!(replay(&app, "evt_1").await.body["outcome"], "parked");
    app.account_of("cus_1").await;
    let replayed = replay(&app, "evt_1").await;
    assert_eq!((replayed.status, replayed.body), (200, json!({"applied": true, "outcome": "applied"})));
    assert_eq!(app.subscription("sub_1").await["status"], "active");
    assert_eq!(replay(&app, "evt_1").await.body["outcome"], "duplicate");
    let absent = replay(&app, "evt_2").await;
    assert_eq!((absent.status, absent.error_code()), (404, "not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_that_is_no_accounts_id_is_no_error() {
    for reference in ["user 7", "", "7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11", "7F0C1C9E-55F4-4D5E-9D0B-0F3F3C7B8A1"] {
        let app = TestApp::start().await;
        let session = completed("evt_1", 100, checkout("cus_1", "sub_1", Some(reference)));
        assert_eq!(app.deliver(session).await.outcome(), "parked", "{reference}");
        // The next rule: the customer itself, and the metadata before it.
        let account = app.account_of("cus_1").await;
        let mut session = checkout("cus_2", "sub_2", Some(reference));
        session["metadata"]["account_id"] = json!(account);
        assert_eq!(app.deliver(completed("evt_2", 100, session)).await.outcome(), "applied", "{reference}");
        let session = completed("evt_3", 100, checkout("cus_1", "sub_1", Some(reference)));
        assert_eq!(app.deliver(session).await.outcome(), "applied", "{reference}");
        assert_eq!(app.event_row("evt_1").await["outcome"], "applied", "{reference}");
        let customers = app.get(&format!("/api/v1/accounts/{account}")).await.body["stripe_customer_ids"].clone();
        assert_eq!(customers, json!(["cus_1", "cus_2"]), "{reference}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_that_is_linked_stays_with_its_account_whatever_a_checkout_names() {
    let app = TestApp::start().await;
    let (owner, other) = (app.account_of("cus_1").await, app.account().await);
    let session = checkout("cus_1", "sub_1", Some(&other.to_string()));
    assert_eq!(app.deliver(completed("evt_1", 100, session)).await.outcome(), "applied");
    let mut object = subscription("sub_1", "cus_1", "active", 1);
    object["metadata"]["account_id"] = json!(other);
    assert_eq!(app.deliver(created("evt_2", 100, object)).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["account_id"], json!(owner));
    assert_eq!(app.event_row("evt_1").await["account_id"], json!(owner));
    let untouched = app.get(&format!("/api/v1/accounts/{other}")).await.body;
    assert_eq!((&untouched["stripe_customer_ids"], &untouched["subscriptions"]), (&json!([]), &json!([])));
    let path = format!("/api/v1/accounts/{other}");
    let refused = app.admin(Method::PATCH, &path, Some(json!({"stripe_customer_id": "cus_1"}))).await;
    assert_eq!((refused.status, refused.error_code()), (409, "conflict"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_checkout_with_a_new_customer_links_a_further_one() {
    let app = TestApp::start().await;
    let account = app.account().await;
    for number in 1..=3 {
        let (customer, subscription_id) = (format!("cus_{number}"), format!("sub_{number}"));
        let session = checkout(&customer, &subscription_id, Some(&account.to_string()));
        app.deliver(completed(&format!("evt_{number}"), 100, session)).await;
        let object = subscription(&subscription_id, &customer, "active", number);
        assert_eq!(app.deliver(created(&format!("evt_1{number}"), 100, object)).await.outcome(), "applied");
    }
    let view = app.get(&format!("/api/v1/accounts/{account}")).await.body;
    assert_eq!(view["stripe_customer_ids"], json!(["cus_1", "cus_2", "cus_3"]));
    assert_eq!(view["subscriptions"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_late_deletion_of_an_old_subscription_leaves_the_new_one_alone() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.deliver(created("evt_1", 100, subscription("sub_old", "cus_1", "active", 1))).await;
    app.deliver(created("evt_2", 200, subscription("sub_new", "cus_1", "active", 5))).await;
    let before = app.subscription("sub_new").await;
    let deletion = deleted("evt_3", 300, subscription("sub_old", "cus_1", "canceled", 1));
    assert_eq!(app.deliver(deletion).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_old").await["status"], "canceled");
    assert_eq!(app.subscription("sub_new").await, before);
    let entitlement = &app.get(&format!("/api/v1/accounts/{account}")).await.body["entitlement"];
    assert_eq!((&entitlement["entitled"], &entitlement["seat_limit"]), (&json!(true), &json!(5)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_is_the_first_that_is_heard_of_a_subscription_cannot_be_revived() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    // Whatever the object says: the event's type decides.
    let deletion = deleted("evt_1", 100, subscription("sub_1", "cus_1", "active", 1));
    assert_eq!(app.deliver(deletion).await.outcome(), "applied");
    for late in [
        created("evt_2", 90, subscription("sub_1", "cus_1", "active", 1)),
        updated("evt_3", 500, subscription("sub_1", "cus_1", "active", 9)),
    ] {
        assert_eq!(app.deliver(late).await.outcome(), "stale");
    }
    let failed = paid("evt_4", 600, invoice("in_1", "cus_1", "sub_1"));
    assert_eq!(app.deliver(failed).await.outcome(), "applied", "an invoice counts also after the end");
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["status"], &row["last_event_id"]), (&json!("canceled"), &json!("evt_1")));
    assert_eq!((&row["latest_invoice_id"], &row["seat_limit"]), (&json!("in_1"), &json!(1)));
    assert_ne!(row["last_event_created"], Value::Null);
}
