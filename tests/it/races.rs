//! Races: fetches that cross, events that meet the link they wait for, and first deliveries side by side.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::events::{checkout, completed, created, deleted, invoice, paid, subscription, updated};
use crate::support::{Event, Settings, StripeApi, TestApp};

/// Subscription 1 with this status and number of seats.
fn shown(status: &str, seats: i64) -> Value {
    subscription("sub_1", "cus_1", status, seats)
}

async fn start() -> (StripeApi, TestApp) {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings { pool_size: 16, ..Settings::default() }, Some(&stripe)).await;
    (stripe, app)
}

async fn check_row(app: &TestApp, status: &str, seats: i64, event: &str) {
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["status"], &row["seat_limit"]), (&json!(status), &json!(seats)), "{row:#}");
    assert_eq!(row["last_event_id"], event, "{row:#}");
}

/// PostgreSQL ends a deadlock after a second by failing one of the two. None must have been needed.
async fn check_no_deadlock(app: &TestApp) {
    // Sessions report what they count at most once a second, and when they end.
    app.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(app.one(deadlocks).await.get::<_, i64>(0), 0);
}

async fn check_no_transaction_is_open(app: &TestApp) {
    let open = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                AND backend_type = 'client backend' AND (state <> 'idle' OR xact_start IS NOT NULL)";
    assert_eq!(app.count(open).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_fetches_that_finish_in_the_wrong_order_end_with_the_newer_answer() {
    let (stripe, app) = start().await;
    app.account_of("cus_1").await;
    app.deliver(updated("evt_a", 100, shown("active", 1))).await;
    let (b, c) = (updated("evt_b", 100, shown("active", 2)), updated("evt_c", 100, shown("active", 3)));
    // The first question is answered at once, but the answer takes until the second one was answered and applied.
    let slow = stripe.queue_gated(&shown("active", 2));
    let fast = stripe.queue_gated(&shown("active", 3));
    fast.open();
    let first = app.deliver(&b);
    let second = async {
        stripe.wait_until_asked(1).await;
        assert_eq!(app.deliver(&c).await.outcome(), "applied");
        check_row(&app, "active", 3, "evt_c").await;
        slow.open();
    };
    let (answer, ()) = tokio::join!(first, second);
    assert_eq!((answer.status, answer.outcome()), (200, "stale"));
    check_row(&app, "active", 3, "evt_c").await;
    assert_eq!(stripe.asked().len(), 3, "the old answer was not used");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_overtaken_by_a_newer_second_loses() {
    for newer in [updated("evt_c", 101, shown("past_due", 9)), deleted("evt_c", 99, shown("past_due", 9))] {
        let (stripe, app) = start().await;
        app.account_of("cus_1").await;
        app.deliver(updated("evt_a", 100, shown("active", 1))).await;
        let gate = stripe.queue_gated(&shown("active", 2));
        let overtake = async {
            stripe.wait_until_asked(1).await;
            check_no_transaction_is_open(&app).await;
            assert_eq!(app.deliver(&newer).await.outcome(), "applied");
            gate.open();
        };
        let (answer, ()) = tokio::join!(app.deliver(updated("evt_b", 100, shown("active", 2))), overtake);
        assert_eq!((answer.status, answer.outcome()), (200, "stale"), "{newer}");
        let row = app.subscription("sub_1").await;
        assert_eq!((&row["seat_limit"], &row["last_event_id"]), (&json!(9), &json!("evt_c")), "{newer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkouts_fetch_that_is_overtaken_counts_as_of_the_checkout() {
    // The fetched state is old by the time that it arrives. In the same second it is asked for again.
    for (second, seats, shows, questions) in [(99, 2, "evt_k", 1), (100, 5, "evt_b", 2), (101, 3, "evt_b", 1)] {
        let (stripe, app) = start().await;
        let account = app.account_of("cus_1").await;
        let slow = stripe.queue_gated(&shown("active", 2));
        stripe.queue_gated(&shown("active", 5)).open();
        let overtake = async {
            stripe.wait_until_asked(1).await;
            check_no_transaction_is_open(&app).await;
            let seats = if second == 100 { 5 } else { 3 };
            let event = updated("evt_b", second, shown("active", seats));
            assert_eq!(app.deliver(event).await.outcome(), "applied");
            slow.open();
        };
        let session = checkout("cus_1", "sub_1", Some(&account.to_string()));
        let (answer, ()) = tokio::join!(app.deliver(completed("evt_k", 100, session)), overtake);
        assert_eq!((answer.status, answer.outcome()), (200, "applied"), "second {second}");
        check_row(&app, "active", seats, shows).await;
        assert_eq!(stripe.asked().len(), questions, "second {second}");
    }
}

/// How the application comes to link a customer.
#[derive(Clone, Copy, Debug)]
enum Linking {
    Create,
    Patch,
    Sql,
    Checkout,
}

async fn link(app: &TestApp, linking: Linking, customer: &str, subscription_id: &str) {
    let body = json!({"name": "Acme", "stripe_customer_id": customer});
    let answer = match linking {
        Linking::Create => app.create_account(body).await,
        Linking::Patch => {
            let path = format!("/api/v1/accounts/{}", app.account().await);
            app.admin(Method::PATCH, &path, Some(body)).await
        }
        Linking::Sql => {
            app.account_of(customer).await;
            return;
        }
        Linking::Checkout => {
            let session = checkout(customer, subscription_id, Some(&app.account().await.to_string()));
            app.deliver(completed(&format!("evt_link_{customer}"), 100, session)).await
        }
    };
    assert!([200, 201].contains(&answer.status), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_meets_the_link_it_waits_for_is_never_left_parked() {
    let app = TestApp::start_with(Settings { pool_size: 16, ..Settings::default() }, None).await;
    for round in 0..60 {
        let linking = [Linking::Create, Linking::Patch, Linking::Sql, Linking::Checkout][round % 4];
        let (customer, id) = (format!("cus_{round}"), format!("sub_{round}"));
        let event = |name: &str, second, seats| {
            updated(&format!("evt_{name}_{round}"), second, subscription(&id, &customer, "active", seats))
        };
        // One that waits already: the link wakes it while the others arrive.
        if round % 8 < 4 {
            app.deliver(event("a", 100, 1)).await;
        }
        let bill = paid(&format!("evt_in_{round}"), 100, invoice("in_1", &customer, &id));
        let events = [event("b", 101, 2), event("c", 103, 4), event("d", 102, 3), bill];
        let deliveries = join_all(events.iter().map(|event| app.deliver(event)));
        let (answers, ()) = tokio::join!(deliveries, link(&app, linking, &customer, &id));
        assert!(answers.iter().all(|answer| answer.status == 200), "round {round}, {linking:?}: {answers:?}");
        if matches!(linking, Linking::Sql) {
            // Nothing tells of a link by SQL but the customer's next event.
            assert_eq!(app.deliver(event("e", 50, 9)).await.status, 200);
        }
        app.wait_until_none_is_parked().await;
        let row = app.subscription(&id).await;
        assert_eq!((&row["seat_limit"], &row["latest_invoice_id"]), (&json!(4), &json!("in_1")), "round {round}");
    }
    assert_eq!(app.count("event_failures").await, 0);
    check_no_deadlock(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_deliveries_of_one_subscription_that_race_end_in_one_row() {
    let (stripe, app) = start().await;
    for round in 0..15 {
        let (customer, id) = (format!("cus_{round}"), format!("sub_{round}"));
        let account = app.account().await;
        let object = |status: &str, seats| subscription(&id, &customer, status, seats);
        stripe.has(&object("canceled", 9));
        let name = |name: &str| format!("evt_{name}_{round}");
        let mut events = vec![
            created(&name("created"), 100, object("incomplete", 1)),
            deleted(&name("deleted"), 120, object("canceled", 9)),
            completed(&name("checkout"), 101, checkout(&customer, &id, Some(&account.to_string()))),
        ];
        for seats in 2..7 {
            events.push(updated(&name(&format!("updated_{seats}")), 100 + seats / 2, object("active", seats)));
            events.push(paid(&name(&format!("paid_{seats}")), 100 + seats, invoice("in_1", &customer, &id)));
        }
        let answers = join_all(events.iter().chain(&events).map(|event| app.deliver(event))).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "round {round}: {answers:?}");
        let applied = answers.iter().filter(|answer| answer.body["applied"] == true).count();
        assert_eq!(applied, events.len(), "round {round}");
        app.wait_until_none_is_parked().await;
        let row = app.subscription(&id).await;
        assert_eq!((&row["status"], &row["last_event_id"]), (&json!("canceled"), &json!(name("deleted"))));
        assert_eq!(row["account_id"], json!(account));
        assert_eq!(row["latest_invoice_status"], "paid");
    }
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 0);
    assert_eq!(app.count("event_failures").await, 0);
    check_no_deadlock(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_subscriptions_that_race_for_a_local_row_one_takes_it_over() {
    let app = TestApp::start_with(Settings { pool_size: 16, ..Settings::default() }, None).await;
    for round in 0..20 {
        let account = app.account_of(&format!("cus_{round}_0")).await;
        let link = format!("INSERT INTO account_customers VALUES ('cus_{round}_1', '{account}')");
        app.execute(&link).await;
        let trial = app.local_trial(account).await;
        let event = |number: usize| {
            // The same customer, or two of the same account.
            let customer = format!("cus_{round}_{}", if round % 2 == 0 { 0 } else { number });
            let id = format!("sub_{round}_{number}");
            created(&format!("evt_{round}_{number}"), 100, subscription(&id, &customer, "active", 1))
        };
        let answers = join_all([event(0), event(1)].iter().map(|event| app.deliver(event))).await;
        assert!(answers.iter().all(|answer| answer.outcome() == "applied"), "round {round}: {answers:?}");
        let rows =
            [app.subscription(&format!("sub_{round}_0")).await, app.subscription(&format!("sub_{round}_1")).await];
        assert_eq!(rows.iter().filter(|row| row["id"] == json!(trial)).count(), 1, "round {round}");
        assert!(rows.iter().all(|row| row["plan"] == "trial"), "round {round}: the account's plan, for both alike");
        assert_eq!(app.count(&format!("subscriptions WHERE account_id = '{account}'")).await, 2, "round {round}");
    }
    check_no_deadlock(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_subscriptions_of_one_customer_do_not_deadlock_on_what_is_parked() {
    let app = TestApp::start_with(Settings { pool_size: 16, ..Settings::default() }, None).await;
    for round in 0..10 {
        let customer = format!("cus_{round}");
        let events: Vec<Event> = (0..12)
            .map(|number| {
                let object = subscription(&format!("sub_{round}_{}", number % 4), &customer, "active", number);
                updated(&format!("evt_{round}_{number}"), 100 + number, object)
            })
            .collect();
        for event in &events[..6] {
            assert_eq!(app.deliver(event).await.outcome(), "parked");
        }
        app.account_of(&customer).await;
        let answers = join_all(events[6..].iter().map(|event| app.deliver(event))).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "round {round}: {answers:?}");
        app.wait_until_none_is_parked().await;
        for number in 8..12 {
            assert_eq!(app.subscription(&format!("sub_{round}_{}", number % 4)).await["seat_limit"], number);
        }
    }
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 0);
    check_no_deadlock(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_that_waits_for_a_row_which_is_replaced_by_a_local_one_finds_the_other() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.execute(&format!(
        "INSERT INTO subscriptions (account_id, plan, status) VALUES ('{account}', 'trial', 'trialing')"
    ))
    .await;
    assert_eq!(app.deliver(created("evt_1", 100, shown("incomplete", 1))).await.outcome(), "applied");
    // As a take-over does it, in a transaction that takes its time.
    let mut other = app.database.client().await;
    let taking_over = other.transaction().await.unwrap();
    taking_over
        .batch_execute(
            "DELETE FROM subscriptions WHERE stripe_subscription_id = 'sub_1';
             UPDATE subscriptions SET stripe_subscription_id = 'sub_1', status = 'active', took_local_row = true",
        )
        .await
        .unwrap();
    let invoice = paid("evt_2", 101, invoice("in_1", "cus_1", "sub_1"));
    let delivered = app.deliver(&invoice);
    let committed = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        taking_over.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(delivered, committed);
    assert_eq!(answer.outcome(), "applied", "{answer:?}");
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["latest_invoice_id"], &row["status"]), (&json!("in_1"), &json!("active")), "{row:#}");
}
