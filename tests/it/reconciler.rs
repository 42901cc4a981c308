//! A server that reconciles by itself: what never arrived is applied, overdue subscriptions are read, one replica at a
//! time.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::events::subscription;
use crate::support::{Event, Settings, StripeApi, TestApp};

fn every(millis: u64) -> Settings {
    Settings { reconcile_every: Some(Duration::from_millis(millis)), ..Settings::default() }
}

fn update(id: &str, secs_ago: i64, sub: &str, seats: i64) -> Event {
    let created = Utc::now().timestamp() - secs_ago;
    let mut object = subscription(sub, "cus_1", "active", seats);
    object["items"]["data"][0]["current_period_end"] = json!(Utc::now().timestamp() + 900_000);
    Event::new(id, "customer.subscription.updated", created, object)
}

/// Waits for a condition in SQL.
async fn until(app: &TestApp, condition: &str) {
    for _ in 0..600 {
        if app.one(&format!("SELECT coalesce(({condition}), false)")).await.get(0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let state = app.json("SELECT to_jsonb(r) FROM reconcile_state r", &[]).await;
    panic!("never: {condition}; {state:?}");
}

async fn metric(app: &TestApp, name: &str) -> f64 {
    let text = app.http.get(app.url("/metrics")).bearer_auth(crate::support::app::ADMIN_TOKEN).send().await.unwrap();
    let text = text.text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn state(app: &TestApp) -> Value {
    app.json("SELECT to_jsonb(r) FROM reconcile_state r", &[]).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_arrived_is_applied_by_itself_and_the_youngest_are_left_alone() {
    let stripe = StripeApi::start().await;
    let lost = update("evt_lost", 3_600, "sub_1", 4);
    let young = update("evt_young", 5, "sub_2", 1);
    [&lost, &young].iter().for_each(|event| stripe.has(event.object()));
    stripe.lists_events(&[lost, young]);
    let app = TestApp::start_with(every(400), Some(&stripe)).await;
    app.account_of("cus_1").await;
    until(&app, "SELECT succeeded_at IS NOT NULL FROM reconcile_state").await;
    assert_eq!(app.event_row("evt_lost").await["outcome"], "applied");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 4);
    assert_eq!(app.event_row("evt_young").await, Value::Null);
    until(&app, "SELECT events_missing = 0 AND started_at > succeeded_at - interval '1 hour' FROM reconcile_state")
        .await;
    assert_eq!(metric(&app, "subledger_reconcile_missing_total").await, 1.0);
    let succeeded = metric(&app, "subledger_reconcile_last_success_timestamp_seconds").await;
    assert!((Utc::now().timestamp() as f64 - succeeded).abs() < 60.0, "{succeeded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_window_overlaps_the_last_by_an_hour_and_ends_a_minute_ago() {
    let stripe = StripeApi::start().await;
    stripe.lists_events(&[]);
    let app = TestApp::start_with(every(300), Some(&stripe)).await;
    until(&app, "SELECT succeeded_at IS NOT NULL FROM reconcile_state").await;
    let first = stripe.listed();
    let cursor = app.one("SELECT extract(epoch FROM read_until)::bigint FROM reconcile_state").await.get::<_, i64>(0);
    assert!((Utc::now().timestamp() - 60 - cursor).abs() < 20, "{cursor}");
    for _ in 0..200 {
        if stripe.listed().len() > first.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let bounds = |listed: &crate::support::stripe::Listed| {
        let bound = |name| listed.param(name).unwrap().parse::<i64>().unwrap();
        (bound("created[gte]"), bound("created[lte]"))
    };
    let windows: Vec<_> = first.iter().map(bounds).collect();
    let now = Utc::now().timestamp();
    assert!((now - 60 - 72 * 3_600 - windows[0].0).abs() < 30, "the first window is what Stripe retries");
    assert!(windows.windows(2).all(|pair| pair[0].1 == pair[1].0), "no gap: {windows:?}");
    let second = bounds(&stripe.listed()[first.len()]);
    assert!((now - 60 - 3_600 - second.0).abs() < 30, "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn overdue_subscriptions_are_read_from_stripe_as_of_its_answer() {
    let stripe = StripeApi::start().await;
    stripe.lists_events(&[]);
    let app =
        TestApp::start_with(Settings { overdue_after: Duration::from_secs(3_600), ..every(400) }, Some(&stripe)).await;
    app.account_of("cus_1").await;
    let mut stale = update("evt_1", 90_000, "sub_1", 4);
    stale.0["data"]["object"]["items"]["data"][0]["current_period_end"] = json!(Utc::now().timestamp() - 7_200);
    let renewed = update("evt_none", 0, "sub_1", 6);
    let as_of = Utc::now() - TimeDelta::seconds(30);
    stripe.says_it_is(as_of);
    stripe.has(renewed.object());
    app.deliver(&stale).await;
    until(&app, "SELECT seat_limit = 6 FROM subscriptions").await;
    let row = app.subscription("sub_1").await;
    let created = chrono::DateTime::parse_from_rfc3339(row["last_event_created"].as_str().unwrap()).unwrap();
    assert_eq!(created.timestamp(), as_of.timestamp(), "by Stripe's clock");
    until(&app, "SELECT succeeded_at IS NOT NULL FROM reconcile_state").await;
    // A later event wins, an earlier one does not.
    app.deliver(update("evt_old", 60, "sub_1", 2)).await;
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 6);
    app.deliver(update("evt_new", 1, "sub_1", 7)).await;
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 7);
}

/// An event of a connected account, whose subscription and customer are named after it.
fn of_account(id: &str, secs_ago: i64, account: &str, seats: i64) -> Event {
    let mut event = update(id, secs_ago, &format!("sub_of_{account}"), seats);
    event.0["account"] = json!(account);
    event.0["data"]["object"]["customer"] = json!(format!("cus_of_{account}"));
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn each_connected_account_that_sent_an_event_is_read_and_one_that_has_left_hinders_none() {
    let stripe = StripeApi::start().await;
    let accounts = ["acct_1", "acct_2", "acct_3"];
    let lost = accounts.map(|account| of_account(&format!("evt_lost_{account}"), 3_600, account, 4));
    lost.iter().for_each(|event| stripe.has(event.object()));
    stripe.lists_events(&lost);
    stripe.refuses_account("acct_2", 403);
    let app = TestApp::start_with(every(600), Some(&stripe)).await;
    for account in accounts {
        app.account_of(&format!("cus_of_{account}")).await;
        app.deliver(of_account(&format!("evt_first_{account}"), 7_200, account, 1)).await;
    }
    until(&app, "SELECT succeeded_at IS NOT NULL AND events_missing = 2 FROM reconcile_state").await;
    for (account, seats) in [("acct_1", 4), ("acct_2", 1), ("acct_3", 4)] {
        let row = app.subscription(&format!("sub_of_{account}")).await;
        assert_eq!((&row["seat_limit"], &row["connect_account"]), (&json!(seats), &json!(account)));
    }
    let stored = "SELECT jsonb_agg(jsonb_build_array(connect_account, read_until IS NULL, error) ORDER BY 1)
                  FROM reconcile_accounts";
    let stored = app.json(stored, &[]).await.remove(0);
    assert_eq!((&stored[0], &stored[2]), (&json!(["acct_1", false, null]), &json!(["acct_3", false, null])));
    assert!(stored[1][1] == true && stored[1][2].as_str().unwrap().contains("403"), "{stored}");
    // Each has a cursor of its own: the next window of one that was read overlaps by an hour, that of one that comes
    // back begins 72 hours ago.
    let before = stripe.listed().len();
    stripe.refuses_account("acct_2", 200);
    until(&app, "SELECT seat_limit = 4 FROM subscriptions WHERE connect_account = 'acct_2'").await;
    until(&app, "SELECT error IS NULL FROM reconcile_accounts WHERE connect_account = 'acct_2'").await;
    let first_bound = |account: &str| {
        let listed = stripe.listed();
        let page = listed[before..].iter().find(|page| page.connect_account.as_deref() == Some(account)).unwrap();
        Utc::now().timestamp() - page.param("created[gte]").unwrap().parse::<i64>().unwrap()
    };
    assert!((first_bound("acct_1") - 3_660).abs() < 60, "{}", first_bound("acct_1"));
    assert!((first_bound("acct_2") - 72 * 3_600 - 60).abs() < 60, "{}", first_bound("acct_2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overdue_subscription_that_stripe_refuses_to_show_hinders_no_other() {
    let stripe = StripeApi::start().await;
    stripe.lists_events(&[]);
    stripe.refuses_account("acct_1", 403);
    let app =
        TestApp::start_with(Settings { overdue_after: Duration::from_secs(3_600), ..every(400) }, Some(&stripe)).await;
    for (account, hours) in [("acct_1", 3), ("acct_2", 2)] {
        app.account_of(&format!("cus_of_{account}")).await;
        let mut stale = of_account(&format!("evt_{account}"), 90_000, account, 4);
        let ended = Utc::now().timestamp() - hours * 3_600;
        stale.0["data"]["object"]["items"]["data"][0]["current_period_end"] = json!(ended);
        app.deliver(&stale).await;
        stripe.has(of_account("evt_none", 0, account, 6).object());
    }
    until(&app, "SELECT seat_limit = 6 FROM subscriptions WHERE connect_account = 'acct_2'").await;
    until(&app, "SELECT succeeded_at IS NOT NULL FROM reconcile_state").await;
    assert!(stripe.asked().iter().any(|asked| asked.status == 403));
    assert_eq!(app.subscription("sub_of_acct_1").await["seat_limit"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_overdue_at_stripe_too_is_counted_and_written_once() {
    let stripe = StripeApi::start().await;
    stripe.lists_events(&[]);
    let app = TestApp::start_with(every(300), Some(&stripe)).await;
    app.account_of("cus_1").await;
    let mut stale = update("evt_1", 900_000, "sub_1", 4);
    stale.0["data"]["object"]["items"]["data"][0]["current_period_end"] = json!(Utc::now().timestamp() - 800_000);
    stripe.has(stale.object());
    app.deliver(&stale).await;
    let asked = stripe.asked().len();
    for _ in 0..200 {
        if stripe.asked().len() >= asked + 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    until(&app, "SELECT succeeded_at IS NOT NULL FROM reconcile_state").await;
    assert_eq!(app.count("stripe_events").await, 1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(metric(&app, "subledger_overdue_subscriptions").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_take_turns() {
    let stripe = StripeApi::start().await;
    stripe.lists_events(&[]);
    let database = Database::migrated();
    let first = TestApp::start_on(database, every(3_000), Some(&stripe)).await;
    let url = first.database.target();
    // A second server on the same database.
    let config = crate::support::app::config(&every(3_000), Some(&stripe));
    let second = subledger::server::Application::build(config, url).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let second = tokio::spawn(second.run_until_stopped(async {
        stopped.await.ok();
    }));
    until(&first, "SELECT succeeded_at IS NOT NULL FROM reconcile_state").await;
    let pages = stripe.listed().len();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(stripe.listed().len(), pages, "one pass within the interval, whoever makes it");
    // A lease that another one holds is respected; one that has run out is not.
    first
        .execute(
            "UPDATE reconcile_state SET holder = gen_random_uuid(), leased_until = now() + interval '1 hour',
                    started_at = now() - interval '2 hours'",
        )
        .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(stripe.listed().len(), pages);
    first.execute("UPDATE reconcile_state SET leased_until = now() - interval '1 second', succeeded_at = NULL").await;
    until(&first, "SELECT succeeded_at IS NOT NULL FROM reconcile_state").await;
    assert!(stripe.listed().len() > pages);
    stop.send(()).unwrap();
    second.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_fails_says_why_and_is_made_again() {
    let stripe = StripeApi::start().await;
    stripe.refuse_once(401, None);
    let app = TestApp::start_with(every(1_500), Some(&stripe)).await;
    until(&app, "SELECT error IS NOT NULL FROM reconcile_state").await;
    let failed = state(&app).await;
    assert!(failed["error"].as_str().unwrap().contains("401"), "{failed}");
    assert_eq!(
        (&failed["succeeded_at"], &failed["read_until"], &failed["holder"]),
        (&json!(null), &json!(null), &json!(null))
    );
    stripe.lists_events(&[]);
    until(&app, "SELECT succeeded_at IS NOT NULL AND error IS NULL FROM reconcile_state").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopped_gives_up_its_lease() {
    let stripe = StripeApi::start().await;
    let lost = update("evt_lost", 3_600, "sub_1", 4);
    let gate = stripe.queue_gated(lost.object());
    stripe.lists_events(std::slice::from_ref(&lost));
    let app = TestApp::start_with(every(300), Some(&stripe)).await;
    app.account_of("cus_1").await;
    until(&app, "SELECT holder IS NOT NULL FROM reconcile_state").await;
    stripe.wait_until_asked(1).await;
    let client = app.database.client().await;
    let database = app.database.url();
    app.tell_to_stop();
    for _ in 0..200 {
        let row = client.query_one("SELECT holder IS NULL, error FROM reconcile_state", &[]).await.unwrap();
        if row.get::<_, bool>(0) {
            assert_eq!(
                row.get::<_, Option<String>>(1).unwrap(),
                "the server was stopped during the pass",
                "{database}"
            );
            drop(gate);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the lease is still held");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_refuses_fails_alone_and_the_pass_goes_on() {
    let stripe = StripeApi::start().await;
    let mut lost: Vec<_> = (1..=3).map(|n| update(&format!("evt_{n}"), 3_600, &format!("sub_{n}"), n)).collect();
    lost.iter().for_each(|event| stripe.has(event.object()));
    // Which of two states of one second is newer, only Stripe knows.
    let mut tie = lost[1].clone();
    tie.0["id"] = json!("evt_4");
    tie.0["data"]["object"]["items"]["data"][0]["quantity"] = json!(9);
    lost.push(tie);
    stripe.answer("sub_2", 403, json!({"error": {"message": "no access"}}));
    stripe.lists_events(&lost);
    let settings = Settings { overdue_after: Duration::from_secs(3_600), ..every(2_000) };
    let app = TestApp::start_with(settings, Some(&stripe)).await;
    app.account_of("cus_1").await;
    // Both are overdue; the first one cannot be read.
    for (sub, ended) in [("sub_5", 90_000), ("sub_6", 80_000)] {
        let mut stale = update(&format!("evt_of_{sub}"), 100_000, sub, 1);
        stale.0["data"]["object"]["items"]["data"][0]["current_period_end"] = json!(Utc::now().timestamp() - ended);
        assert_eq!(app.deliver(&stale).await.outcome(), "applied");
    }
    stripe.answer("sub_5", 403, json!({"error": {"message": "no access"}}));
    stripe.has(update("evt_none", 0, "sub_6", 6).object());
    until(&app, "SELECT succeeded_at IS NOT NULL FROM reconcile_state").await;
    assert_eq!(app.count("stripe_events WHERE id LIKE 'evt__' AND outcome = 'applied'").await, 3);
    assert_eq!(app.count("event_failures WHERE event_id IN ('evt_2', 'evt_4')").await, 1);
    assert_eq!(app.subscription("sub_6").await["seat_limit"], 6);
    assert_eq!(app.subscription("sub_5").await["seat_limit"], 1);
    assert_eq!(state(&app).await["error"], Value::Null);
}
