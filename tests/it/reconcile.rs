//! `subledger reconcile`: what Stripe lists and never arrived is applied, and what differs is told.

use chrono::Utc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::events::{invoice, subscription};
use crate::support::{Event, StripeApi, TestApp, job};

/// An event `secs_ago`, of a subscription with so many seats.
fn update(id: &str, secs_ago: i64, sub: &str, seats: i64) -> Event {
    let created = Utc::now().timestamp() - secs_ago;
    Event::new(id, "customer.subscription.updated", created, subscription(sub, "cus_1", "active", seats))
}

async fn reconcile(app: &TestApp, stripe: &StripeApi, args: &[&str]) -> job::Ran {
    job::run(app, Some(stripe), &[&["reconcile"], args].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_arrived_is_applied_oldest_first_and_what_did_is_not() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let events: Vec<_> = (1..=5).map(|n| update(&format!("evt_{n}"), 1_000 - n, "sub_1", n)).collect();
    assert_eq!(app.deliver(&events[2]).await.outcome(), "applied");
    stripe.lists_events(&events);
    stripe.has(&subscription("sub_1", "cus_1", "active", 5));

    let ran = reconcile(&app, &stripe, &["--since", "1h"]).await;
    ran.ends_with(0);
    let applied: Vec<_> = ran.lines("evt_").iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(applied, ["evt_1", "evt_2", "evt_4", "evt_5"], "{}", ran.out);
    let outcomes = app.json("SELECT to_jsonb(outcome) FROM stripe_events ORDER BY id", &[]).await;
    assert_eq!(outcomes, ["stale", "stale", "applied", "applied", "applied"]);
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["seat_limit"], &row["last_event_id"]), (&json!(5), &json!("evt_5")));

    let again = reconcile(&app, &stripe, &["--since", "1h"]).await;
    again.ends_with(0);
    assert!(again.lines("evt_").is_empty(), "{}", again.out);
    assert_eq!(app.subscription("sub_1").await, row);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_second_across_pages_are_neither_lost_nor_applied_twice() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let secs_ago = 500;
    let events: Vec<_> =
        (0..250).map(|n| update(&format!("evt_{n:03}"), secs_ago, &format!("sub_{n:03}"), n + 1)).collect();
    events.iter().for_each(|event| stripe.has(event.object()));
    stripe.lists_events(&events);
    stripe.refuse_once(500, None);
    let ran = reconcile(&app, &stripe, &[]).await;
    ran.ends_with(0);
    assert_eq!(app.count("stripe_events WHERE outcome = 'applied'").await, 250);
    assert_eq!(app.count("subscriptions").await, 250);
    let pages: Vec<_> = stripe.listed();
    let after: Vec<_> = pages.iter().map(|page| page.param("starting_after")).collect();
    assert_eq!(after, [None, None, Some("evt_150"), Some("evt_050")], "one request was refused");
    assert!(pages.iter().all(|page| page.param("limit") == Some("100")));
    assert!(pages.iter().all(|page| page.param("delivery_success").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_reaches_a_little_further_than_asked_and_no_further() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let events =
        [update("evt_old", 7_200, "sub_1", 1), update("evt_edge", 3_700, "sub_2", 1), update("evt_new", 9, "sub_3", 1)];
    events.iter().for_each(|event| stripe.has(event.object()));
    stripe.lists_events(&events);
    reconcile(&app, &stripe, &["--since", "1h"]).await.ends_with(0);
    let ids = app.json("SELECT to_jsonb(id) FROM stripe_events ORDER BY id", &[]).await;
    assert_eq!(ids, ["evt_edge", "evt_new"]);
    let long = reconcile(&app, &stripe, &["--since", "45d"]).await;
    long.ends_with(0);
    assert!(long.err.contains("30 days"), "{}", long.err);
    assert_eq!(app.count("stripe_events").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_and_writes_nothing() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    app.deliver(update("evt_1", 900, "sub_1", 1)).await;
    let missing = update("evt_2", 800, "sub_1", 2);
    stripe.lists_events(&[update("evt_1", 900, "sub_1", 1), missing.clone()]);
    stripe.has(missing.object());
    let before = app.json("SELECT to_jsonb(s) FROM subscriptions s", &[]).await;
    let ran = reconcile(&app, &stripe, &["--dry-run"]).await;
    ran.ends_with(0);
    assert!(ran.lines("evt_2")[0].ends_with("would be applied"), "{}", ran.out);
    assert!(ran.lines("drift sub_1 seat_limit: ours 1, Stripe's 2").len() == 1, "{}", ran.out);
    assert_eq!(app.json("SELECT to_jsonb(s) FROM subscriptions s", &[]).await, before);
    assert_eq!(app.count("stripe_events").await + app.count("event_failures").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_that_no_event_explains_is_told_and_fails() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let event = update("evt_1", 900, "sub_1", 3);
    app.deliver(&event).await;
    let parked = Event::new(
        "evt_2",
        "customer.subscription.updated",
        Utc::now().timestamp(),
        subscription("sub_2", "cus_2", "active", 1),
    );
    stripe.lists_events(&[event.clone(), parked.clone()]);
    stripe.has(event.object());
    stripe.has(parked.object());
    app.execute("UPDATE subscriptions SET status = 'past_due', plan = 'wrong'").await;
    let ran = reconcile(&app, &stripe, &[]).await;
    ran.ends_with(1);
    assert_eq!(
        ran.lines("drift"),
        ["drift sub_1 status: ours past_due, Stripe's active", "drift sub_1 plan: ours wrong, Stripe's price_team"]
    );
    assert!(ran.err.contains("1 subscriptions differ"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_does_not_stop_the_others_but_fails_the_run() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit <> 2)").await;
    let events: Vec<_> = (1..=3).map(|n| update(&format!("evt_{n}"), 100 - n, &format!("sub_{n}"), n)).collect();
    events.iter().for_each(|event| stripe.has(event.object()));
    stripe.lists_events(&events);
    let ran = reconcile(&app, &stripe, &[]).await;
    ran.ends_with(1);
    assert!(ran.lines("evt_2")[0].contains("failed: "), "{}", ran.out);
    assert_eq!(ran.lines("drift"), ["drift sub_2: there is no row"]);
    assert_eq!(app.count("stripe_events").await, 2);
    assert_eq!(app.count("event_failures WHERE event_id = 'evt_2'").await, 1);
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    reconcile(&app, &stripe, &[]).await.ends_with(0);
    assert_eq!(app.count("stripe_events WHERE outcome = 'applied'").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn stripes_wish_to_wait_is_followed() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    stripe.lists_events(&[]);
    stripe.refuse_once(429, Some(2));
    reconcile(&app, &stripe, &[]).await.ends_with(0);
    let requests = stripe.listed();
    assert_eq!(requests.len(), 2);
    assert!(requests[1].at - requests[0].at >= std::time::Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_accounts_events_carry_it() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let event = update("evt_1", 100, "sub_1", 1);
    stripe.lists_events(std::slice::from_ref(&event));
    stripe.has(event.object());
    reconcile(&app, &stripe, &["--connect-account", "acct_9"]).await.ends_with(0);
    let row = app.event_row("evt_1").await;
    assert_eq!((&row["connect_account"], &row["payload"]["account"]), (&json!("acct_9"), &json!("acct_9")));
    assert!(stripe.listed().iter().all(|page| page.connect_account.as_deref() == Some("acct_9")));
    assert!(stripe.asked().iter().all(|asked| asked.connect_account.as_deref() == Some("acct_9")));
    reconcile(&app, &stripe, &["--connect-account", "nonsense"]).await.ends_with(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_handled_types_are_read_and_an_odd_payload_is_no_obstacle() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let now = Utc::now().timestamp();
    let mut odd = subscription("sub_1", "cus_1", "active", 1);
    odd["metadata"]["note"] = json!("a\u{0}b");
    stripe.has(&odd);
    stripe.lists_events(&[
        Event::new("evt_1", "customer.subscription.created", now - 60, odd),
        Event::new("evt_2", "invoice.paid", now - 50, invoice("in_1", "cus_1", "sub_1")),
        Event::new("evt_3", "balance.available", now - 40, json!({"id": "bal_1"})),
    ]);
    reconcile(&app, &stripe, &[]).await.ends_with(0);
    let ids = app.json("SELECT to_jsonb(id) FROM stripe_events ORDER BY id", &[]).await;
    assert_eq!(ids, ["evt_1", "evt_2"]);
    assert_eq!(app.subscription("sub_1").await["latest_invoice_status"], "paid");
    let note: Value = app.event_row("evt_1").await["payload"]["data"]["object"]["metadata"]["note"].clone();
    assert_eq!(note, "a\u{fffd}b");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_stopped_in_the_middle_and_run_again() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let events: Vec<_> = (1..=3).map(|n| update(&format!("evt_{n}"), 100 - n, &format!("sub_{n}"), n)).collect();
    events.iter().for_each(|event| stripe.has(event.object()));
    stripe.lists_events(&events);
    // Holds up the second event.
    let in_the_way = app.database.client().await;
    in_the_way
        .batch_execute(
            "BEGIN; INSERT INTO stripe_events (id, type, outcome, livemode, payload)
                    VALUES ('evt_2', 'x', 'applied', false, '{}')",
        )
        .await
        .unwrap();
    let child = job::command(&app, Some(&stripe), &["reconcile"]).spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    for _ in 0..500 {
        if app.count("pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'").await > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    kill(pid, Signal::SIGTERM).unwrap();
    let ran = job::wait(child).await;
    ran.ends_with(1);
    assert!(ran.err.contains("run it again"), "{}", ran.err);
    in_the_way.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(app.event_row("evt_2").await, Value::Null);
    reconcile(&app, &stripe, &[]).await.ends_with(0);
    assert_eq!(app.count("stripe_events WHERE outcome = 'applied'").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_wrongly_is_told_in_one_line() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    let ran = job::run(&app, None, &["reconcile"]).await;
    ran.ends_with(2);
    assert!(ran.err.starts_with("subledger: STRIPE_SECRET_KEY: ") && ran.err.lines().count() == 1, "{}", ran.err);
    for since in ["72", "3 days", "-1h", "0h"] {
        reconcile(&app, &stripe, &["--since", since]).await.ends_with(2);
    }
    stripe.lists_events(&[]);
    stripe.refuse_once(401, None);
    let refused = reconcile(&app, &stripe, &[]).await;
    refused.ends_with(1);
    assert_eq!(stripe.listed().len(), 1, "a wrong key gets no better by asking again");

    let folder = tempfile::tempdir().unwrap();
    let mut nowhere = job::command(&app, Some(&stripe), &["reconcile"]);
    nowhere.env_remove("DATABASE_URL").current_dir(folder.path());
    let ran = job::wait(nowhere.spawn().unwrap()).await;
    ran.ends_with(2);
    assert!(ran.err.starts_with("subledger: DATABASE_URL: "), "{}", ran.err);

    app.execute(
        "DELETE FROM __diesel_schema_migrations
         WHERE version = (SELECT max(version) FROM __diesel_schema_migrations)",
    )
    .await;
    let ran = reconcile(&app, &stripe, &[]).await;
    ran.ends_with(1);
    assert!(ran.err.contains("subledger migrate"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stripe_refuses_fails_alone_and_the_comparison_is_partial() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let mut events: Vec<_> = (1..=3).map(|n| update(&format!("evt_{n}"), 100, &format!("sub_{n}"), n)).collect();
    events.iter().for_each(|event| stripe.has(event.object()));
    // Which of two states of one second is newer, only Stripe knows.
    let mut tie = events[1].clone();
    tie.0["id"] = "evt_4".into();
    tie.0["data"]["object"]["items"]["data"][0]["quantity"] = 9.into();
    events.push(tie);
    stripe.answer("sub_2", 403, json!({"error": {"message": "no access"}}));
    stripe.lists_events(&events);
    let ran = reconcile(&app, &stripe, &[]).await;
    ran.ends_with(1);
    let said = "compared 2 subscriptions with Stripe's, 0 differ; 1 were not compared";
    assert_eq!(ran.lines("compared"), [said], "{}", ran.err);
    assert!(ran.lines("sub_2 was not compared: ")[0].contains("403"), "{}", ran.out);
    assert_eq!(ran.lines("evt_").iter().filter(|line| line.contains("failed: ")).count(), 1, "{}", ran.out);
    let problems = "1 events failed, 1 subscriptions were not compared with Stripe's";
    assert!(ran.err.ends_with(&format!("subledger: {problems}\n")), "{}", ran.err);
    assert_eq!(app.count("stripe_events WHERE outcome = 'applied'").await, 3);
    assert_eq!(app.count("event_failures").await, 1, "it was tried once");

    // The partial comparison alone is a failure, too.
    stripe.lists_events(&events[..3]);
    let ran = reconcile(&app, &stripe, &[]).await;
    ran.ends_with(1);
    assert_eq!(ran.lines("compared"), [said], "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_that_stripe_asks_to_wait_with_wait_together() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let events: Vec<_> = (1..=64).map(|n| update(&format!("evt_{n}"), 200 - n, &format!("sub_{n}"), n)).collect();
    app.deliver_all(&events.iter().collect::<Vec<_>>(), 16).await;
    events.iter().for_each(|event| stripe.turns_away_once(event.object(), "3"));
    stripe.lists_events(&events);
    let began = std::time::Instant::now();
    let ran = reconcile(&app, &stripe, &[]).await;
    ran.ends_with(0);
    assert_eq!(ran.lines("compared"), ["compared 64 subscriptions with Stripe's, 0 differ"]);
    assert_eq!(stripe.asked().len(), 128);
    let took = began.elapsed();
    println!("64 subscriptions that Stripe turns away for 3 s: {took:?}");
    assert!(took >= std::time::Duration::from_secs(3) && took < std::time::Duration::from_secs(24), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_missing_events_than_are_kept_in_memory_are_applied_in_order_and_share_commits() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let events: Vec<_> =
        (0..2_300).map(|n| update(&format!("evt_{n:04}"), 10_000 - n / 50, &format!("sub_{}", n % 50), n)).collect();
    events[2_250..].iter().for_each(|event| stripe.has(event.object()));
    stripe.lists_events(&events);
    let ran = reconcile(&app, &stripe, &[]).await;
    ran.ends_with(0);
    assert_eq!(ran.lines("read "), ["read 2300 events, 2300 never arrived"]);
    assert_eq!(ran.lines("compared"), ["compared 50 subscriptions with Stripe's, 0 differ"]);
    let ids: Vec<_> = ran.lines("evt_").iter().map(|line| &line[..8]).collect();
    assert!(ids.is_sorted() && ids.len() == 2_300, "oldest first");
    assert_eq!(app.count("stripe_events WHERE outcome = 'applied'").await, 2_300, "none was stale");
    assert_eq!(app.count("subscription_changes").await, 2_300);
    let commits: i64 = app.one("SELECT count(DISTINCT xmin::text) FROM stripe_events").await.get(0);
    assert!(commits <= 800, "{commits} commits for 2300 events");
    let pages = stripe.listed().len();
    assert_eq!(pages, 23 + 3, "the oldest 300 events were read again");
}
