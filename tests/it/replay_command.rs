//! `subledger replay`: from what is stored, without a server.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::events::{invoice, subscription};
use crate::support::{Event, TestApp, binary, job};

fn update(id: &str, created: i64, sub: &str, customer: &str, seats: i64) -> Event {
    Event::new(id, "customer.subscription.updated", created, subscription(sub, customer, "active", seats))
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
async fn parked_events_are_applied_once_their_account_is_there() {
    let app = TestApp::start().await;
    app.deliver(Event::new("evt_0", "invoice.paid", 50, invoice("in_1", "cus_1", "sub_1"))).await;
    app.deliver(update("evt_1", 100, "sub_1", "cus_1", 1)).await;
    app.deliver(update("evt_2", 100, "sub_2", "cus_2", 1)).await;
    app.account_of("cus_1").await;
    let ran = job::run(&app, None, &["replay", "--parked"]).await;
    ran.ends_with(0);
    assert_eq!(
        ran.out,
        "evt_1 applied\nevt_2 parked\nevt_0 already recorded\n1 already recorded, 1 applied, 1 parked\n"
    );
    assert_eq!(app.subscription("sub_1").await["latest_invoice_id"], "in_1");
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
    let parked = "evt_Sample1Created0001 parked\n1 parked\n";
    assert_eq!(binary::text(&replay(&["--parked"]).stdout), parked);
    server.signal(Signal::SIGTERM);
    assert!(server.child.wait().unwrap().success());
    for _ in 0..2 {
        let alone = replay(&["--parked"]);
        assert_eq!(binary::text(&alone.stdout), parked, "{}", binary::text(&alone.stderr));
    }
}
