//! The main job over HTTP: what each delivery answers, and what is then in the tables.

use serde_json::json;

use crate::support::events::{checkout, subscription};
use crate::support::{Event, Settings, StripeApi, TestApp, fixture, fixture_json};

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_checkout_activates_the_accounts_trialing_row() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&stripe)).await;
    let account = app.account().await;
    let trial = app.local_trial(account).await;
    stripe.has(&subscription("sub_1", "cus_1", "active", 5));
    let session = checkout("cus_1", "sub_1", Some(&account.to_string()));
    let answer = app.deliver(Event::new("evt_1", "checkout.session.completed", 1_760_000_000, session)).await;
    assert_eq!((answer.status, answer.body), (200, json!({"applied": true, "outcome": "applied"})));

    let row = app.subscription("sub_1").await;
    assert_eq!(row["id"], json!(trial), "the trial's row is the subscription's row");
    assert_eq!(row["status"], "active");
    assert_eq!(row["seat_limit"], 5);
    assert_eq!(row["plan"], "trial", "no price names the plan, so the local row's stays");
    assert_eq!(row["current_period_start"], "2025-10-09T08:53:20+00:00");
    assert_eq!(row["current_period_end"], "2025-11-08T11:06:40+00:00");
    assert_eq!(row["last_event_id"], "evt_1");
    assert_eq!(app.count("subscriptions").await, 1);
    let linked = app.one("SELECT stripe_customer_id, local_plan FROM accounts").await;
    assert_eq!((linked.get(0), linked.get(1)), (Some("cus_1"), Some("trial")));
    let asked = stripe.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].authorization.as_deref(), Some("Bearer sk_test_key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_subscription_is_canceled() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let created =
        Event::new("evt_1", "customer.subscription.created", 100, subscription("sub_1", "cus_1", "active", 1));
    assert_eq!(app.deliver(created).await.outcome(), "applied");
    let deleted =
        Event::new("evt_2", "customer.subscription.deleted", 200, subscription("sub_1", "cus_1", "active", 1));
    assert_eq!(app.deliver(deleted).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["status"], "canceled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delivery_changes_nothing() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let event = Event::new("evt_1", "customer.subscription.updated", 100, subscription("sub_1", "cus_1", "active", 5));
    assert_eq!(app.deliver(&event).await.body, json!({"applied": true, "outcome": "applied"}));
    app.execute("UPDATE subscriptions SET seat_limit = 99").await;
    let again = app.deliver(&event).await;
    assert_eq!((again.status, again.body), (200, json!({"applied": false, "outcome": "duplicate"})));
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 99);
    assert_eq!(app.count("stripe_events").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_fails_leaves_nothing_and_its_retry_applies() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.local_trial(account).await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
    let event = Event::new("evt_1", "customer.subscription.updated", 100, subscription("sub_1", "cus_1", "active", 5));
    let failed = app.deliver(&event).await;
    assert_eq!((failed.status, failed.error_code()), (500, "event_failed"));
    assert!(!failed.body.to_string().contains("few_seats"), "{failed:?}");
    assert_eq!(app.count("stripe_events").await, 0);
    assert_eq!(app.count("subscriptions WHERE stripe_subscription_id IS NULL AND status = 'trialing'").await, 1);
    assert_eq!(app.count("accounts WHERE local_plan IS NULL").await, 1);
    let failure = app.one("SELECT event_id, type, error, payload->>'id' FROM event_failures").await;
    assert_eq!((failure.get(0), failure.get(1)), ("evt_1", "customer.subscription.updated"));
    assert!(failure.get::<_, &str>(2).contains("few_seats"));
    assert_eq!(failure.get::<_, &str>(3), "evt_1");

    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    assert_eq!(app.deliver(&event).await.body, json!({"applied": true, "outcome": "applied"}));
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 5);
    assert_eq!(app.count("subscriptions").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handlers_own_unique_violation_is_a_failure_even_under_the_name_of_the_primary_key() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.execute(
        "CREATE FUNCTION pretend() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE unique_violation USING CONSTRAINT = 'stripe_events_pkey', TABLE = 'stripe_events';
         END $$;
         CREATE TRIGGER pretend BEFORE INSERT ON subscriptions FOR EACH ROW EXECUTE FUNCTION pretend()",
    )
    .await;
    let event = Event::new("evt_1", "customer.subscription.created", 100, subscription("sub_1", "cus_1", "active", 5));
    let failed = app.deliver(&event).await;
    assert_eq!((failed.status, failed.error_code()), (500, "event_failed"));
    assert_eq!(app.count("stripe_events").await, 0);
    app.execute("DROP TRIGGER pretend ON subscriptions").await;
    assert_eq!(app.deliver(&event).await.outcome(), "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_commit_is_a_failure_and_nothing_persists() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let event = |number: i64, name: &str| {
        let object = subscription("sub_1", "cus_1", "active", number);
        Event::new(&format!("evt_{number}"), &format!("customer.subscription.{name}"), 100 * number, object)
    };
    // The first takes a transaction of many statements, the second one of a single statement.
    for event in [event(1, "created"), event(2, "updated")] {
        refuse_at_commit(&app).await;
        let failed = app.deliver(&event).await;
        assert_eq!((failed.status, failed.error_code()), (500, "event_failed"));
        assert_eq!(app.count(&format!("stripe_events WHERE id = '{}'", event.id())).await, 0);
        assert_eq!(app.count(&format!("subscriptions WHERE last_event_id = '{}'", event.id())).await, 0);
        assert_eq!(app.count(&format!("event_failures WHERE event_id = '{}'", event.id())).await, 1);
        app.execute("DROP FUNCTION refuse() CASCADE").await;
        assert_eq!(app.deliver(&event).await.outcome(), "applied");
    }
}

async fn refuse_at_commit(app: &TestApp) {
    app.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             RAISE EXCEPTION 'not at commit';
         END $$;
         CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON subscriptions DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_deliveries_at_once_one_applies() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let event = Event::new("evt_1", "customer.subscription.created", 100, subscription("sub_1", "cus_1", "active", 5));
    let answers = futures_util::future::join_all((0..50).map(|_| app.deliver(&event))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.body["applied"] == true).count(), 1);
    assert_eq!(app.count("subscriptions").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_delivery_in_flight_rolls_back_exactly_one_waiter_applies() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    // Holds the id as a delivery in flight does, and then rolls back.
    let in_flight = app.database.client().await;
    in_flight
        .batch_execute(
            "BEGIN; INSERT INTO stripe_events (id, type, outcome, livemode, payload)
                    VALUES ('evt_1', 'x', 'applied', false, '{}')",
        )
        .await
        .unwrap();
    let event = Event::new("evt_1", "customer.subscription.created", 100, subscription("sub_1", "cus_1", "active", 5));
    let waiters = futures_util::future::join_all((0..6).map(|_| app.deliver(&event)));
    let release = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        in_flight.batch_execute("ROLLBACK").await.unwrap();
    };
    let (answers, ()) = tokio::join!(waiters, release);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.body["applied"] == true).count(), 1);
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_nobody_knows_are_recorded_and_ignored() {
    let app = TestApp::start().await;
    for name in ["basil/customer.subscription.hibernated", "basil/balance.available", "basil/invoice.upcoming"] {
        let event = fixture(name);
        let answer = app.deliver(&event).await;
        assert_eq!((answer.status, answer.outcome()), (200, "ignored"), "{name}");
        let row = app.event_row(event.id()).await;
        assert_eq!(row["payload"], event.0, "{name}");
        assert_eq!(row["outcome"], "ignored", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_shapes_of_the_billing_period_are_projected() {
    let app = TestApp::start().await;
    for shape in ["classic", "basil"] {
        let event = fixture(&format!("{shape}/customer.subscription.created"));
        let object = event.object();
        app.account_of(object["customer"].as_str().unwrap()).await;
        assert_eq!(app.deliver(&event).await.outcome(), "applied", "{shape}");
        let holder = if shape == "classic" { object } else { &object["items"]["data"][0] };
        let row = app.subscription(object["id"].as_str().unwrap()).await;
        for column in ["current_period_start", "current_period_end"] {
            let expected = chrono::DateTime::from_timestamp(holder[column].as_i64().unwrap(), 0).unwrap();
            let found: chrono::DateTime<chrono::Utc> = row[column].as_str().unwrap().parse().unwrap();
            assert_eq!(found, expected, "{shape} {column}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signatures_of_the_official_sdks_verify() {
    let vectors = fixture_json("signatures");
    let vectors = vectors.as_array().unwrap();
    assert!(vectors.len() >= 10);
    for vector in vectors {
        let text = |field: &str| vector[field].as_str().unwrap_or_else(|| panic!("{field} in {vector}"));
        let verified = subledger::stripe::signature::verify(
            Some(text("header").as_bytes()),
            text("payload").to_owned().into(),
            &[subledger::secret::Secret::new(text("secret"))],
            300,
            chrono::DateTime::from_timestamp(vector["timestamp"].as_i64().unwrap(), 0).unwrap(),
        );
        assert_eq!(Some(verified.is_ok()), vector["valid"].as_bool(), "{vector}");
    }
}
