//! `subledger replay`: from what is stored, without a server.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::events::{invoice, subscription};
use crate::support::{Event, Settings, StripeApi, TestApp, binary, job};

fn update(id: &str, created: i64, sub: &str, customer: &str, seats: i64) -> Event {
    Event::new(id, "customer.subscription.updated", created, subscription(sub, customer, "active", seats))
}

/// An account that the server's sweep does not notice.
async fn link_unnoticed(app: &TestApp, insert: &str) {
    let insert = format!("INSERT INTO accounts {insert}; UPDATE accounts SET has_new_links = false");
    app.execute(&format!("BEGIN; {insert}; COMMIT")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_events_are_applied_in_their_order() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT no_seats CHECK (seat_limit < 0)").await;
    for event in [update("evt_2", 200, "sub_1", "cus_1", 2), update("evt_1", 100, "sub_1", "cus_1", 1)] {
        assert_eq!(app.deliver(&event).await.status, 500);
        assert_eq!(app.deliver(&event).await.status, 500);
    }
    let ran = job::run(&app, None, &["replay", "--failed"]).await;
    ran.ends_with(1);
    assert!(ran.out.contains("evt_1 failed: ") && ran.out.ends_with("2 failed\n"), "{}", ran.out);
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT no_seats").await;
    let ran = job::run(&app, None, &["replay", "--failed"]).await;
    ran.ends_with(0);
    assert_eq!(ran.out, "evt_1 applied\nevt_2 applied\n2 applied\n");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 2);
    let none = job::run(&app, None, &["replay", "--failed"]).await;
    none.ends_with(0);
    assert_eq!(none.out, "nothing to replay\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_events_are_applied_once_their_account_is_there_and_others_are_not_tried() {
    let app = TestApp::start().await;
    app.deliver(Event::new("evt_0", "invoice.paid", 50, invoice("in_1", "cus_1", "sub_1"))).await;
    app.deliver(update("evt_1", 100, "sub_1", "cus_1", 1)).await;
    app.deliver(update("evt_2", 100, "sub_2", "cus_2", 1)).await;
    link_unnoticed(&app, "(stripe_customer_id) VALUES ('cus_1')").await;
    let ran = job::run(&app, None, &["replay", "--parked"]).await;
    ran.ends_with(0);
    assert_eq!(ran.lines("evt_1"), ["evt_1 applied"]);
    assert!(ran.lines("evt_2").is_empty() && ran.out.ends_with(", 1 stay parked\n"), "{}", ran.out);
    assert_eq!(app.subscription("sub_1").await["latest_invoice_id"], "in_1");
    let none = job::run(&app, None, &["replay", "--parked"]).await;
    none.ends_with(0);
    assert_eq!(none.out, "nothing to replay, 1 stay parked\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_parked_event_that_something_links_is_found() {
    let app = TestApp::start().await;
    let named = uuid::Uuid::new_v4();
    let mut by_name = subscription("sub_1", "cus_1", "active", 1);
    by_name["metadata"]["account_id"] = json!(named);
    let mut by_customer_account = subscription("sub_2", "cus_2", "active", 1);
    by_customer_account["customer_account"] = "acct_2".into();
    app.deliver(Event::new("evt_1", "customer.subscription.updated", 100, by_name)).await;
    app.deliver(Event::new("evt_2", "customer.subscription.updated", 100, by_customer_account)).await;
    // Its subscription is placed by its metadata, its customer is not linked.
    app.deliver(Event::new("evt_3", "invoice.paid", 110, invoice("in_1", "cus_1", "sub_1"))).await;
    app.deliver(update("evt_4", 100, "sub_4", "cus_4", 1)).await;
    link_unnoticed(&app, &format!("(id) VALUES ('{named}')")).await;
    link_unnoticed(&app, "(stripe_customer_id) VALUES ('acct_2')").await;
    let ran = job::run(&app, None, &["replay", "--parked"]).await;
    ran.ends_with(0);
    assert_eq!((ran.lines("evt_1"), ran.lines("evt_2")), (vec!["evt_1 applied"], vec!["evt_2 applied"]), "{}", ran.out);
    let outcomes = app.json("SELECT to_jsonb(outcome) FROM stripe_events ORDER BY id", &[]).await;
    assert_eq!(outcomes, ["applied", "applied", "applied", "parked"], "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_type_and_the_time_restrict_what_is_replayed() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT no_seats CHECK (seat_limit < 0)").await;
    let created = subscription("sub_3", "cus_1", "active", 1);
    for event in [
        update("evt_1", 100, "sub_1", "cus_1", 1),
        update("evt_2", 100, "sub_2", "cus_1", 2),
        Event::new("evt_3", "customer.subscription.created", 100, created),
    ] {
        assert_eq!(app.deliver(&event).await.status, 500);
    }
    for (id, sub) in [("evt_4", "sub_4"), ("evt_5", "sub_5")] {
        assert_eq!(app.deliver(update(id, 100, sub, "cus_4", 1)).await.outcome(), "parked");
    }
    link_unnoticed(&app, "(stripe_customer_id) VALUES ('cus_4')").await;
    app.execute(
        "ALTER TABLE subscriptions DROP CONSTRAINT no_seats;
         UPDATE event_failures SET failed_at = failed_at - interval '3 hours' WHERE event_id = 'evt_1';
         UPDATE stripe_events SET received_at = received_at - interval '3 hours' WHERE id = 'evt_4'",
    )
    .await;
    let replay = async |args: &[&str]| job::run(&app, None, &[&["replay"], args].concat()).await;
    let updated = ["--type", "customer.subscription.updated"];
    let some = replay(&[&["--failed", "--since", "2h"], &updated[..]].concat()).await;
    assert_eq!((some.code, some.out.as_str()), (Some(0), "evt_2 applied\n1 applied\n"));
    let some = replay(&[&["--failed"], &updated[..]].concat()).await;
    assert_eq!((some.code, some.out.as_str()), (Some(0), "evt_1 applied\n1 applied\n"));
    let some = replay(&["--failed", "--since", "2h"]).await;
    assert_eq!((some.code, some.out.as_str()), (Some(0), "evt_3 applied\n1 applied\n"));
    let none = replay(&["--parked", "--type", "invoice.paid"]).await;
    assert_eq!((none.code, none.out.as_str()), (Some(0), "nothing to replay\n"));
    let some = replay(&["--parked", "--since", "2h"]).await;
    assert_eq!((some.code, some.out.as_str()), (Some(0), "evt_5 applied\n1 applied\n"));
    let some = replay(&[&["--parked"], &updated[..]].concat()).await;
    assert_eq!((some.code, some.out.as_str()), (Some(0), "evt_4 applied\n1 applied\n"));
    for args in
        [&["evt_1", "--type", "x"][..], &["evt_1", "--since", "1h"], &["--type", "x"], &["--failed", "--since", "2"]]
    {
        replay(args).await.ends_with(2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_events_than_a_page_holds_are_replayed_and_share_commits() {
    let app = TestApp::start().await;
    app.execute(
        r#"INSERT INTO event_failures (event_id, type, error, created, payload)
           SELECT 'evt_' || n, 'balance.available', 'x', to_timestamp(n / 10), jsonb_build_object(
                      'id', 'evt_' || n, 'type', 'balance.available', 'created', n / 10, 'livemode', false,
                      'data', jsonb_build_object('object', jsonb_build_object('id', 'bal_1', 'object', 'balance')))
           FROM generate_series(1, 5001) AS n"#,
    )
    .await;
    let ran = job::run(&app, None, &["replay", "--failed"]).await;
    ran.ends_with(0);
    assert!(ran.out.ends_with("\n5001 ignored\n"), "{}", ran.out.lines().last().unwrap());
    assert_eq!(app.count("stripe_events").await, 5_001);
    let commits: i64 = app.one("SELECT count(DISTINCT xmin::text) FROM stripe_events").await.get(0);
    assert!(commits <= 2_500, "{commits} commits for 5001 events");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_stripe_refuses_to_tell_of_fails_alone() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&stripe)).await;
    app.account_of("cus_1").await;
    app.deliver(update("evt_1", 100, "sub_1", "cus_1", 1)).await;
    stripe.answer("sub_1", 403, json!({"error": {"message": "no access"}}));
    assert_eq!(
        app.deliver(update("evt_2", 100, "sub_1", "cus_1", 2)).await.status,
        503,
        "a tie, which only Stripe can break"
    );
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 3)").await;
    assert_eq!(app.deliver(update("evt_3", 200, "sub_3", "cus_1", 3)).await.status, 500);
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    let ran = job::run(&app, Some(&stripe), &["replay", "--failed"]).await;
    ran.ends_with(1);
    assert!(ran.lines("evt_2 failed: ")[0].contains("403"), "{}", ran.out);
    assert_eq!(ran.lines("evt_3"), ["evt_3 applied"], "{}", ran.out);
    assert_eq!(app.count("event_failures WHERE event_id = 'evt_2'").await, 2, "it was tried once more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_that_fails_fails_the_run() {
    let app = TestApp::start().await;
    app.deliver(update("evt_1", 100, "sub_1", "cus_1", 1)).await;
    app.account_of("cus_1").await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT no_seats CHECK (seat_limit < 0)").await;
    let ran = job::run(&app, None, &["replay", "evt_1"]).await;
    ran.ends_with(1);
    assert!(ran.out.contains("evt_1 failed: ") && ran.out.contains("no_seats"), "{}", ran.out);
    assert_eq!(app.event_row("evt_1").await["outcome"], "parked");
    assert_eq!(app.count("event_failures WHERE event_id = 'evt_1'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_id_what_is_recorded_is_left_alone_and_what_is_unknown_fails() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.deliver(update("evt_1", 100, "sub_1", "cus_1", 1)).await;
    app.execute("UPDATE subscriptions SET seat_limit = 99").await;
    let ran = job::run(&app, None, &["replay", "evt_1", "evt_nowhere"]).await;
    ran.ends_with(1);
    assert!(ran.out.starts_with("evt_1 already recorded\nevt_nowhere not found\n"), "{}", ran.out);
    assert_eq!(app.subscription("sub_1").await["seat_limit"], json!(99));
    for args in [&["replay"][..], &["replay", "--failed", "--parked"], &["replay", "evt_1", "--failed"]] {
        job::run(&app, None, args).await.ends_with(2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_private_database_is_found_whether_or_not_a_server_runs_it() {
    let folder = tempfile::tempdir().unwrap();
    let replay = |ids: &[&str]| binary::run(binary::subledger(folder.path()).arg("replay").args(ids));
    assert_eq!(replay(&["--failed"]).status.code(), Some(2), "there is none yet");
    let mut server = binary::Server::start(binary::subledger(folder.path()).stdout(Stdio::null()));
    let sent = binary::run(binary::subledger(folder.path()).args([
        "send",
        "customer.subscription.created",
        "--life",
        "1",
        "--url",
        &server.url("/api/v1/webhooks/stripe"),
    ]));
    assert!(sent.status.success(), "{}", binary::text(&sent.stderr));
    let parked = "nothing to replay, 1 stay parked\n";
    assert_eq!(binary::text(&replay(&["--parked"]).stdout), parked);
    server.signal(Signal::SIGTERM);
    assert!(server.child.wait().unwrap().success());
    for _ in 0..2 {
        let alone = replay(&["--parked"]);
        assert_eq!(binary::text(&alone.stdout), parked, "{}", binary::text(&alone.stderr));
    }
}
