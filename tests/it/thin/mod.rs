//! Thin events: how a notification becomes the event that it stands for, whatever Stripe answers.

mod failures;
mod load;
mod orders;

use reqwest::Method;
use serde_json::{Value, json};
use subledger::stripe::trust::Mode;

use crate::support::events::{checkout, completed, invoice, subscription, thin, updated};
use crate::support::{Event, Settings, StripeApi, TestApp, fixture, job};

const UPDATED: &str = "v1.customer.subscription.updated";

fn shown(status: &str, seats: i64) -> Value {
    subscription("sub_1", "cus_1", status, seats)
}

async fn start() -> (StripeApi, TestApp) {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&stripe)).await;
    app.account_of("cus_1").await;
    (stripe, app)
}

/// The paths that were read, in order.
fn paths(stripe: &StripeApi) -> Vec<String> {
    stripe.asked().into_iter().map(|asked| asked.path).collect()
}

/// Every notification with its event.
async fn notifications(app: &TestApp) -> Vec<Value> {
    let query = "SELECT to_jsonb(n) FROM event_notifications n ORDER BY notification_id";
    app.json(query, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_event_is_applied_under_its_own_id() {
    let (stripe, app) = start().await;
    let snapshot = updated("evt_1", 100, shown("active", 2));
    stripe.has(&snapshot.0);
    let notification = thin("evt_test_1", UPDATED, 100, snapshot.object(), Some("evt_1"));
    assert_eq!(app.deliver(&notification).await.body, json!({"applied": true, "outcome": "applied"}));
    assert_eq!(paths(&stripe), ["/v1/events/evt_1"]);
    let row = app.event_row("evt_1").await;
    assert_eq!(
        (&row["type"], &row["notification_id"]),
        (&json!("customer.subscription.updated"), &json!("evt_test_1"))
    );
    assert_eq!(app.subscription("sub_1").await["last_event_id"], "evt_1");
    assert_eq!(app.count("stripe_events").await, 1);

    // Whatever comes again is a duplicate, without a call.
    let finer = thin("evt_test_2", "v1.customer.subscription.active", 100, snapshot.object(), Some("evt_1"));
    for again in [&notification, &snapshot, &finer, &finer] {
        assert_eq!(app.deliver(again).await.body, json!({"applied": false, "outcome": "duplicate"}), "{again}");
    }
    assert_eq!(stripe.asked().len(), 1);
    assert_eq!(
        notifications(&app).await,
        [
            json!({"notification_id": "evt_test_1", "event_id": "evt_1"}),
            json!({"notification_id": "evt_test_2", "event_id": "evt_1"}),
        ]
    );
    assert_eq!(app.event_row("evt_1").await["notification_id"], "evt_test_1", "the first one");
    for id in ["evt_1", "evt_test_1", "evt_test_2"] {
        let found = app.get(&format!("/events/{id}")).await;
        assert_eq!((found.status, &found.body["id"]), (200, &json!("evt_1")), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_of_a_recorded_snapshot_is_a_duplicate_without_a_call() {
    let (stripe, app) = start().await;
    let snapshot = updated("evt_1", 100, shown("active", 2));
    assert_eq!(app.deliver(&snapshot).await.outcome(), "applied");
    let notification = thin("evt_test_1", UPDATED, 100, snapshot.object(), Some("evt_1"));
    assert_eq!(app.deliver(&notification).await.outcome(), "duplicate");
    assert_eq!(stripe.asked(), []);
    assert_eq!(app.event_row("evt_1").await["notification_id"], "evt_test_1");
    assert_eq!(app.get("/events/evt_test_1").await.body["id"], "evt_1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_is_looked_up_where_the_notification_does_not_name_it() {
    let (stripe, app) = start().await;
    let snapshot = updated("evt_1", 100, shown("active", 2));
    stripe.has(&snapshot.0);
    let notification = |id: &str| thin(id, UPDATED, 100, snapshot.object(), None);
    for id in ["evt_test_1", "evt_test_2"] {
        stripe.has(&notification(id).with("snapshot_event", json!("evt_1")).0);
    }
    assert_eq!(app.deliver(notification("evt_test_1")).await.outcome(), "applied");
    assert_eq!(paths(&stripe), ["/v2/core/events/evt_test_1", "/v1/events/evt_1"]);
    assert_eq!(app.deliver(notification("evt_test_2")).await.outcome(), "duplicate");
    assert_eq!(paths(&stripe)[2..], ["/v2/core/events/evt_test_2"], "the event is recorded");
    assert_eq!(app.count("stripe_events").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_snapshot_the_object_counts_as_of_the_notification() {
    let (stripe, app) = start().await;
    let now = shown("past_due", 3);
    stripe.has(&now);
    let types = ["updated", "past_due", "item_added", "created", "some_future_type"];
    for (n, name) in (0..).zip(types) {
        let (id, event_type) = (format!("evt_test_{n}"), format!("v1.customer.subscription.{name}"));
        // One whose snapshot is gone, too.
        let snapshot = (n == 1).then_some("evt_gone");
        let notification = thin(&id, &event_type, 100 + n, &now, snapshot);
        assert_eq!(app.deliver(&notification).await.outcome(), "applied", "{name}");
        let row = app.event_row(&id).await;
        assert_eq!((&row["type"], &row["outcome"]), (&json!(event_type), &json!("applied")));
        assert_eq!((&row["subscription_id"], &row["customer_id"]), (&json!("sub_1"), &json!("cus_1")));
        assert_eq!(row["notification_id"], json!(id));
        let stored = notification.with("data", json!({"object": now}));
        assert_eq!(row["payload"], stored.0);
        let row = app.subscription("sub_1").await;
        let second = format!("1970-01-01T00:01:4{n}+00:00");
        assert_eq!((&row["last_event_id"], &row["last_event_created"]), (&json!(id), &json!(second)));
        assert_eq!(app.deliver(&stored).await.outcome(), "duplicate");
    }
    let read: Vec<_> = paths(&stripe).into_iter().filter(|path| path.starts_with("/v1/subscriptions")).collect();
    assert_eq!(read.len(), types.len());
    // What happened before the notification is older, what happened after it is newer.
    assert_eq!(app.deliver(updated("evt_1", 99, shown("active", 1))).await.outcome(), "stale");
    assert_eq!(app.deliver(updated("evt_2", 105, shown("active", 1))).await.outcome(), "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_subscription_is_canceled_for_good() {
    let (stripe, app) = start().await;
    stripe.has(&shown("canceled", 1));
    let deleted = thin("evt_test_1", "v1.customer.subscription.deleted", 100, &shown("canceled", 1), None);
    assert_eq!(app.deliver(&deleted).await.outcome(), "applied");
    assert_eq!(app.deliver(updated("evt_1", 200, shown("active", 1))).await.outcome(), "stale");
    assert_eq!(app.subscription("sub_1").await["status"], "canceled");
}

#[tokio::test(flavor = "multi_thread")]
async fn checkouts_and_invoices_come_thin_too() {
    let (stripe, app) = start().await;
    let account = app.account().await.to_string();
    let session = checkout("cus_2", "sub_2", Some(&account));
    let bought = subscription("sub_2", "cus_2", "active", 4);
    stripe.has(&session);
    stripe.has(&bought);
    let notification = thin("evt_test_1", "v1.checkout.session.completed", 100, &session, None);
    assert_eq!(app.deliver(&notification).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_2").await["account_id"], json!(account));
    // An invoice's own status says more than the type.
    for (n, status, event_type, word) in [
        (1, "open", "v1.invoice.payment_failed", "payment_failed"),
        (2, "paid", "v1.invoice.payment_failed", "paid"),
        (3, "paid", "v1.invoice.paid", "paid"),
    ] {
        let mut invoice = invoice(&format!("in_{n}"), "cus_2", "sub_2");
        invoice["status"] = status.into();
        stripe.has(&invoice);
        let notification = thin(&format!("evt_test_in_{n}"), event_type, 100 + n, &invoice, None);
        assert_eq!(app.deliver(&notification).await.outcome(), "applied");
        let row = app.subscription("sub_2").await;
        assert_eq!((&row["latest_invoice_id"], &row["latest_invoice_status"]), (&invoice["id"], &json!(word)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_handler_wants_is_ignored_without_a_call() {
    let (stripe, app) = start().await;
    let customer = json!({"id": "cus_1", "object": "customer"});
    for notification in [
        fixture("thin/v1.billing.meter.no_meter_found"),
        fixture("thin/v2.core.account.updated"),
        thin("evt_test_1", "v1.customer.deleted", 100, &customer, Some("evt_1")),
        thin("evt_test_2", "v2.customer.subscription.updated", 100, &shown("active", 1), None),
        thin("evt_test_3", "customer.subscription.updated", 100, &shown("active", 1), None),
    ] {
        assert_eq!(app.deliver(&notification).await.body, json!({"applied": true, "outcome": "ignored"}));
        assert_eq!(app.deliver(&notification).await.outcome(), "duplicate");
        assert_eq!(app.event_row(notification.id()).await["payload"], notification.0);
    }
    assert_eq!(stripe.asked(), []);
    assert_eq!(app.count("subscriptions").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_made_in_the_notifications_context() {
    let (stripe, app) = start().await;
    let snapshot = updated("evt_1", 100, shown("active", 2));
    stripe.has(&snapshot.0);
    stripe.has(&shown("active", 2));
    let context = json!("acct_platform/acct_shop");
    let named = thin("evt_test_1", UPDATED, 100, snapshot.object(), Some("evt_1")).with("context", context.clone());
    let unnamed = thin("evt_test_2", UPDATED, 101, snapshot.object(), None).with("context", context);
    for notification in [named, unnamed] {
        assert_eq!(app.deliver(&notification).await.outcome(), "applied");
    }
    let asked = stripe.asked();
    assert_eq!(asked.len(), 3);
    for asked in asked {
        let headers = (asked.context.as_deref(), asked.connect_account);
        assert_eq!(headers, (Some("acct_platform/acct_shop"), None), "{}", asked.path);
    }
    for id in ["evt_1", "evt_test_2"] {
        let row = app.event_row(id).await;
        assert_eq!(
            (&row["connect_account"], &row["payload"]["context"]),
            (&json!("acct_shop"), &json!("acct_platform/acct_shop"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_thin_event_is_applied_without_a_key() {
    let (stripe, app) = start().await;
    let object = subscription("sub_2", "cus_2", "active", 1);
    stripe.has(&object);
    let notification = thin("evt_test_1", UPDATED, 100, &object, None);
    assert_eq!(app.deliver(&notification).await.outcome(), "parked");
    stripe.has_not(&object);
    let before = stripe.asked().len();
    let account = app.create_account(json!({"name": "Late", "stripe_customer_id": "cus_2"})).await;
    assert_eq!(account.status, 201);
    assert_eq!(app.subscription("sub_2").await["status"], "active");
    assert_eq!(stripe.asked().len(), before);
    let session = completed("evt_1", 100, checkout("cus_2", "sub_2", None));
    assert_eq!(app.deliver(session).await.outcome(), "applied");
}

/// The id of an event as it stands in an error or a log.
fn failure_of(app_failures: &[Value]) -> (&str, &str) {
    let failure = app_failures.first().unwrap();
    (failure["event_id"].as_str().unwrap(), failure["error"].as_str().unwrap())
}

async fn failures_of(app: &TestApp) -> Vec<Value> {
    app.json("SELECT to_jsonb(f) FROM event_failures f ORDER BY id DESC", &[]).await
}

/// Whether an event stands in the list of those that fail.
async fn is_failing(app: &TestApp, id: &str) -> bool {
    let failing = app.get("/events?status=failed").await.body;
    failing["data"].as_array().unwrap().iter().any(|event: &Value| event["id"] == id)
}

/// Delivers until the event is there.
async fn deliver_until_recorded(app: &TestApp, event: &Event) -> usize {
    for attempt in 1..=100 {
        if app.deliver(event).await.status == 200 {
            return attempt;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("never recorded: {event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_of_the_other_mode_can_be_replayed_once_the_mode_is_right() {
    for has_snapshot in [true, false] {
        let (stripe, app) = start().await;
        let live = TestApp::start_beside(&app, Settings { mode: Mode::Live, ..Settings::default() }).await;
        let snapshot = updated("evt_1", 100, shown("active", 2));
        stripe.has(if has_snapshot { &snapshot.0 } else { snapshot.object() });
        let notification = thin("evt_test_1", UPDATED, 100, snapshot.object(), has_snapshot.then_some("evt_1"));
        assert_eq!(live.deliver(&notification).await.outcome(), "ignored");
        let path = "/events/evt_test_1/replay";
        assert_eq!(live.admin(Method::POST, path, None).await.body, json!({"applied": false, "outcome": "duplicate"}));
        assert_eq!(app.count("subscriptions").await, 0);
        assert_eq!(stripe.asked().len(), 0);

        let replayed = app.admin(Method::POST, path, None).await;
        assert_eq!(replayed.body, json!({"applied": true, "outcome": "applied"}), "{has_snapshot}");
        let id = if has_snapshot { "evt_1" } else { "evt_test_1" };
        assert_eq!(app.subscription("sub_1").await["last_event_id"], id);
        let row = app.event_row(id).await;
        assert_eq!((&row["outcome"], &row["subscription_id"]), (&json!("applied"), &json!("sub_1")));
        assert_eq!((&row["customer_id"], &row["notification_id"]), (&json!("cus_1"), &json!("evt_test_1")));
        assert_eq!(row["payload"]["data"]["object"]["id"], "sub_1", "a replay needs no key");
        assert_eq!(notifications(&app).await, [json!({"notification_id": "evt_test_1", "event_id": id})]);
        assert_eq!(app.admin(Method::POST, path, None).await.body["outcome"], "duplicate");
        assert_eq!(app.deliver(&notification).await.outcome(), "duplicate");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thin_invoice_that_waits_for_its_subscription_is_not_tried_for_its_customers_sake() {
    let (stripe, app) = start().await;
    let invoice = invoice("in_1", "cus_1", "sub_1");
    stripe.has(&invoice);
    let notification = thin("evt_test_1", "v1.invoice.paid", 100, &invoice, None);
    assert_eq!(app.deliver(&notification).await.outcome(), "parked");
    let ran = job::run(&app, None, &["replay", "--parked"]).await;
    assert_eq!(ran.out, "nothing to replay, 1 stay parked\n");
}
