//! Events that arrive at once and go together in one transaction: what befalls one of them is not the others'.

use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use serde_json::json;

use crate::support::app::Answer;
use crate::support::events::{created, invoice, paid, subscription, updated};
use crate::support::{Event, TestApp};

const SUBSCRIPTIONS: i64 = 60;

/// More at once than go together.
const AT_ONCE: usize = 60;

/// A server with subscriptions `sub_1` and so on, each of a customer of its own.
async fn start() -> TestApp {
    let app = TestApp::start().await;
    app.execute(&format!(
        "INSERT INTO accounts (name, stripe_customer_id) SELECT 'Acme', 'cus_' || n FROM generate_series(1, {SUBSCRIPTIONS}) n;
         INSERT INTO subscriptions (account_id, status, stripe_subscription_id, last_event_created, last_event_type)
         SELECT id, 'active', 'sub_' || substr(stripe_customer_id, 5), to_timestamp(100), 'customer.subscription.created'
         FROM accounts",
    ))
    .await;
    app
}

/// The `n`-th event that changes subscription `n`.
fn change(n: i64) -> Event {
    updated(&format!("evt_{n}"), 200, subscription(&format!("sub_{n}"), &format!("cus_{n}"), "active", n))
}

fn changes() -> Vec<Event> {
    (1..=SUBSCRIPTIONS).map(change).collect()
}

async fn deliver(app: &TestApp, events: &[Event]) -> Vec<Answer> {
    app.deliver_all(&events.iter().collect::<Vec<_>>(), AT_ONCE).await
}

/// How many transactions have recorded what is recorded.
async fn transactions(app: &TestApp) -> i64 {
    app.one("SELECT count(DISTINCT xmin::text) FROM stripe_events").await.get(0)
}

async fn assert_all_show_their_events(app: &TestApp) {
    let shown = "subscriptions WHERE last_event_id = 'evt_' || seat_limit
                 AND stripe_subscription_id = 'sub_' || seat_limit";
    assert_eq!(app.count(shown).await, SUBSCRIPTIONS);
    assert_eq!(app.count("stripe_events WHERE outcome = 'applied' AND account_id IS NOT NULL").await, SUBSCRIPTIONS);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_arrive_at_once_share_transactions_and_each_is_answered_for_itself() {
    let app = start().await;
    let mut events = changes();
    let (stale, missed, ignored, bought) = (
        updated("evt_stale", 50, subscription("sub_1", "cus_1", "active", 99)),
        // Nobody knows the subscription: it goes the long way.
        created("evt_new", 300, subscription("sub_new", "cus_2", "active", 1)),
        Event::new("evt_ignored", "customer.updated", 300, json!({"id": "cus_3"})),
        paid("evt_paid", 300, invoice("in_1", "cus_4", "sub_4")),
    );
    let others = [(stale, "stale"), (missed, "applied"), (ignored, "ignored"), (bought, "applied")];
    for (position, (event, _)) in others.iter().enumerate() {
        events.insert(11 * (position + 1), event.clone());
    }
    let answers = deliver(&app, &events).await;
    for (event, answer) in events.iter().zip(&answers) {
        let expected = others.iter().find(|(other, _)| other.id() == event.id()).map_or("applied", |(_, word)| word);
        assert_eq!(answer.outcome(), expected, "{event}: {answer:?}");
        assert_eq!(app.event_row(event.id()).await["outcome"], expected);
    }
    assert_eq!(app.subscription("sub_4").await["latest_invoice_id"], "in_1");
    assert!(transactions(&app).await < SUBSCRIPTIONS / 2, "{} transactions", transactions(&app).await);
    for answer in deliver(&app, &events).await {
        assert_eq!((answer.status, answer.outcome()), (200, "duplicate"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_subscription_that_wait_are_applied_together_in_the_order_of_their_arrival() {
    let app = start().await;
    let event = |n: i64| updated(&format!("evt_{n}"), 200 + n, subscription("sub_1", "cus_1", "active", n));
    // While the first is applied, the others are queued.
    app.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
         CREATE TRIGGER dawdles BEFORE UPDATE ON subscriptions
         FOR EACH ROW WHEN (NEW.seat_limit = 1) EXECUTE FUNCTION dawdle()",
    )
    .await;
    let deliveries = (1..=20).map(|n| {
        let (app, event) = (&app, event(n));
        async move {
            tokio::time::sleep(Duration::from_millis(30) * n as u32).await;
            app.deliver(event).await
        }
    });
    let answers = join_all(deliveries).await;
    assert!(answers.iter().all(|answer| answer.outcome() == "applied"), "{answers:?}");
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["seat_limit"], &row["last_event_id"]), (&json!(20), &json!("evt_20")));
    assert_eq!((app.count("stripe_events").await, transactions(&app).await), (20, 2), "the first, and all the others");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_fails_alone_at_its_statement_and_at_the_commit() {
    for trigger in ["TRIGGER fails BEFORE UPDATE", "CONSTRAINT TRIGGER fails AFTER UPDATE"] {
        let app = start().await;
        let when = if trigger.starts_with("CONSTRAINT") { "DEFERRABLE INITIALLY DEFERRED" } else { "" };
        app.execute(&format!(
            "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.seat_limit % 20 = 0 THEN RAISE EXCEPTION 'not this one'; END IF;
                 RETURN NEW;
             END $$;
             CREATE {trigger} ON subscriptions {when} FOR EACH ROW EXECUTE FUNCTION fail()"
        ))
        .await;
        let events = changes();
        for (n, answer) in (1..).zip(deliver(&app, &events).await) {
            let expected = if n % 20 == 0 { (500, "event_failed") } else { (200, "applied") };
            let word = if n % 20 == 0 { answer.error_code() } else { answer.outcome() };
            assert_eq!((answer.status, word), expected, "{trigger}, {n}");
        }
        assert_eq!(app.count("stripe_events").await, SUBSCRIPTIONS - 3, "{trigger}");
        assert_eq!(app.count("subscriptions WHERE seat_limit IS NULL").await, 3, "{trigger}");
        let failures = app.one("SELECT array_agg(event_id ORDER BY event_id) FROM event_failures").await;
        assert_eq!(failures.get::<_, Vec<String>>(0), ["evt_20", "evt_40", "evt_60"], "{trigger}");

        app.execute("DROP TRIGGER fails ON subscriptions").await;
        let failed: Vec<_> = [20, 40, 60].map(change).into();
        assert!(deliver(&app, &failed).await.iter().all(|answer| answer.outcome() == "applied"));
        assert_all_show_their_events(&app).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_locked_holds_up_its_own_event_alone() {
    let app = start().await;
    let locker = app.database.client().await;
    let lock = "BEGIN; SELECT 1 FROM subscriptions WHERE stripe_subscription_id IN ('sub_5', 'sub_30') FOR UPDATE";
    locker.batch_execute(lock).await.unwrap();
    let (locked, free): (Vec<_>, Vec<_>) =
        changes().into_iter().partition(|event| ["evt_5", "evt_30"].contains(&event.id()));
    let held = async {
        // With the others, and yet not before the lock is free.
        let answers = deliver(&app, &locked).await;
        assert!(answers.iter().all(|answer| answer.outcome() == "applied"), "{answers:?}");
    };
    let others = async {
        let started = Instant::now();
        let answers = deliver(&app, &free).await;
        assert!(answers.iter().all(|answer| answer.outcome() == "applied"), "{answers:?}");
        assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
        assert_eq!(app.count("stripe_events").await, SUBSCRIPTIONS - 2);
        locker.batch_execute("ROLLBACK").await.unwrap();
    };
    join(held, others).await;
    assert_all_show_their_events(&app).await;
    assert_eq!(app.count("event_failures").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_many_times_among_others_is_applied_once() {
    let app = start().await;
    let events: Vec<_> = changes().into_iter().flat_map(|event| [event.clone(), event.clone(), event]).collect();
    let answers = deliver(&app, &events).await;
    for of_one in answers.chunks(3) {
        assert!(of_one.iter().all(|answer| answer.status == 200), "{of_one:?}");
        let applied = of_one.iter().filter(|answer| answer.body["applied"] == true).count();
        assert_eq!(applied, 1, "{of_one:?}");
    }
    assert_all_show_their_events(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_on_a_connection_that_is_cut_are_there_or_delivered_again() {
    let app = start().await;
    let events = changes();
    let cut = async {
        for _ in 0..40 {
            let ours = "application_name = 'subledger' AND datname = current_database() AND state = 'active'";
            app.execute(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (answers, ()) = join(deliver(&app, &events), cut).await;
    for (event, answer) in events.iter().zip(&answers) {
        let is_recorded = app.count(&format!("stripe_events WHERE id = '{}'", event.id())).await == 1;
        assert!(is_recorded || answer.status >= 500, "acknowledged and not there: {event}: {answer:?}");
    }
    let again = deliver(&app, &events).await;
    assert!(again.iter().all(|answer| answer.status == 200), "{again:?}");
    assert_all_show_their_events(&app).await;
}
