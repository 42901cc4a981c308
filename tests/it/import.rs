//! `subledger import`: the first fill, and how what it brings stands to events that come before and after.

use std::process::Child;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::events::subscription;
use crate::support::{Event, Settings, StripeApi, TestApp, job};

const BORN: i64 = 1_760_000_000;

fn born(id: &str, customer: &str, status: &str, seats: i64) -> Value {
    let mut object = subscription(id, customer, status, seats);
    object["created"] = BORN.into();
    object["livemode"] = false.into();
    object
}

fn update(id: &str, after: i64, object: Value) -> Event {
    Event::new(id, "customer.subscription.updated", BORN + after, object)
}

async fn import(app: &TestApp, stripe: &StripeApi, args: &[&str]) -> job::Ran {
    job::run(app, Some(stripe), &[&["import"], args].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_subscription_finds_its_account_or_waits_for_it() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    let linked = app.account_of("cus_1").await;
    let named = app.account().await;
    let mut by_name = born("sub_2", "cus_2", "past_due", 2);
    by_name["metadata"]["account_id"] = named.to_string().into();
    let nobodys = born("sub_3", "cus_3", "canceled", 3);
    stripe.lists_events(&[]);
    stripe.lists_subscriptions(&[born("sub_1", "cus_1", "active", 1), by_name, nobodys]);
    let ran = import(&app, &stripe, &[]).await;
    ran.ends_with(0);
    assert_eq!(ran.out, "3 subscriptions: 2 applied, 1 parked\n");
    assert_eq!(app.subscription("sub_1").await["account_id"], json!(linked));
    let row = app.subscription("sub_2").await;
    assert_eq!(
        (&row["account_id"], &row["status"], &row["seat_limit"]),
        (&json!(named), &json!("past_due"), &json!(2))
    );
    assert_eq!(app.count("subscriptions").await, 2);

    let answer = app.create_account(json!({"name": "Late", "stripe_customer_id": "cus_3"})).await;
    assert_eq!(answer.status, 201);
    assert_eq!(app.subscription("sub_3").await["status"], "canceled");
    assert!(stripe.listed().iter().any(|page| page.path == "subscriptions" && page.param("status") == Some("all")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_import_changes_nothing_that_is_unchanged() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let many: Vec<_> = (0..230)
        .map(|n| born(&format!("sub_{n:03}"), if n % 2 == 0 { "cus_1" } else { "cus_2" }, "active", n))
        .collect();
    stripe.lists_events(&[update("evt_1", 50, many[0].clone())]);
    stripe.lists_subscriptions(&many);
    import(&app, &stripe, &[]).await.ends_with(0);
    let everything =
        "SELECT to_jsonb(s) FROM subscriptions s UNION ALL SELECT to_jsonb(e) FROM stripe_events e ORDER BY 1";
    let before = app.json(everything, &[]).await;
    assert_eq!(before.len(), 115 + 230);
    // The list begins elsewhere on another day; that alone is no change.
    stripe.lists_events(&[
        update("evt_1", 50, many[0].clone()),
        update("evt_0", 20, born("sub_x", "cus_1", "active", 1)),
    ]);
    let again = import(&app, &stripe, &[]).await;
    again.ends_with(0);
    assert_eq!(again.out, "230 subscriptions: 230 unchanged\n");
    assert_eq!(app.json(everything, &[]).await, before);

    let mut changed = many.clone();
    changed[4] = born("sub_004", "cus_1", "unpaid", 4);
    stripe.lists_subscriptions(&changed);
    stripe.lists_events(&[update("evt_2", 60, changed[4].clone())]);
    assert_eq!(import(&app, &stripe, &[]).await.out, "230 subscriptions: 1 applied, 229 unchanged\n");
    assert_eq!(app.subscription("sub_004").await["status"], "unpaid");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_older_than_what_was_imported_lose_and_newer_ones_win() {
    for server_has_key in [false, true] {
        let stripe = StripeApi::start().await;
        let app = TestApp::start_with(Settings::default(), server_has_key.then_some(&stripe)).await;
        app.account_of("cus_1").await;
        let seats = |seats| born("sub_1", "cus_1", "active", seats);
        let listed = [
            Event::new("evt_0", "customer.subscription.created", BORN, seats(1)),
            update("evt_1", 10, seats(2)),
            // Two of one second; the state that is read is the second one's.
            update("evt_2", 20, seats(3)),
            update("evt_3", 20, seats(4)),
        ];
        stripe.lists_events(&listed);
        stripe.lists_subscriptions(&[seats(4)]);
        import(&app, &stripe, &[]).await.ends_with(0);
        let row = app.subscription("sub_1").await;
        assert_eq!(row["seat_limit"], 4);
        assert_eq!(row["last_event_created"], "2025-10-09T08:53:40+00:00", "as of the newest listed event");
        for event in listed.iter().rev() {
            assert_eq!(app.deliver(event).await.outcome(), "stale", "{event}");
        }
        assert_eq!(app.subscription("sub_1").await, row);

        stripe.has(&seats(5));
        assert_eq!(app.deliver(update("evt_4", 21, seats(5))).await.outcome(), "applied");
        assert_eq!(app.subscription("sub_1").await["seat_limit"], 5);
        // And in the second of the import's, but not listed then.
        stripe.has(&seats(4));
        app.execute("DELETE FROM subscriptions; DELETE FROM stripe_events").await;
        import(&app, &stripe, &[]).await.ends_with(0);
        stripe.has(&seats(6));
        let unlisted = update("evt_5", 20, seats(6)).with_previous(json!({"items": seats(4)["items"]}));
        assert_eq!(app.deliver(unlisted).await.outcome(), "applied");
        assert_eq!(app.subscription("sub_1").await["seat_limit"], 6);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_while_it_ran_is_not_overwritten() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    stripe.lists_events(&[update("evt_1", 10, born("sub_1", "cus_1", "active", 1))]);
    stripe.lists_subscriptions(&[born("sub_1", "cus_1", "active", 1), born("sub_2", "cus_1", "active", 1)]);
    // Delivered after the lists were read: newer, and final.
    app.deliver(update("evt_2", 11, born("sub_1", "cus_1", "active", 2))).await;
    let deleted = Event::new("evt_3", "customer.subscription.deleted", BORN + 5, born("sub_2", "cus_1", "canceled", 1));
    app.deliver(deleted).await;
    let ran = import(&app, &stripe, &[]).await;
    ran.ends_with(0);
    assert_eq!(ran.out, "2 subscriptions: 2 stale\n");
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 2);
    assert_eq!(app.subscription("sub_2").await["status"], "canceled");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_listed_event_whatever_comes_from_the_windows_beginning_on_wins() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    stripe.lists_events(&[update("evt_other", 1_000, born("sub_2", "cus_1", "active", 1))]);
    stripe.lists_subscriptions(&[born("sub_1", "cus_1", "active", 1)]);
    import(&app, &stripe, &[]).await.ends_with(0);
    let long_ago = update("evt_1", 699, born("sub_1", "cus_1", "unpaid", 1));
    assert_eq!(app.deliver(long_ago).await.outcome(), "stale", "older than the window");
    let next = update("evt_2", 701, born("sub_1", "cus_1", "past_due", 1));
    assert_eq!(app.deliver(next).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_1").await["status"], "past_due");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_shows_the_state_but_missed_events_is_protected_from_them() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let status = |status| born("sub_1", "cus_1", status, 1);
    let there_and_back = [
        update("evt_1", 10, status("active")),
        update("evt_2", 20, status("past_due")),
        update("evt_3", 30, status("active")),
    ];
    app.deliver(&there_and_back[0]).await;
    stripe.lists_events(&there_and_back);
    stripe.lists_subscriptions(&[status("active")]);
    assert_eq!(import(&app, &stripe, &[]).await.out, "1 subscriptions: 1 applied\n");
    assert_eq!(app.deliver(&there_and_back[1]).await.outcome(), "stale");
    assert_eq!(app.subscription("sub_1").await["status"], "active");
    assert_eq!(import(&app, &stripe, &[]).await.out, "1 subscriptions: 1 unchanged\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_went_wrong_is_mended() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let event = update("evt_1", 10, born("sub_1", "cus_1", "active", 3));
    app.deliver(&event).await;
    stripe.lists_events(&[event]);
    stripe.lists_subscriptions(&[born("sub_1", "cus_1", "active", 3)]);
    app.execute("UPDATE subscriptions SET seat_limit = 99").await;
    import(&app, &stripe, &[]).await.ends_with(0);
    assert_eq!(app.subscription("sub_1").await["seat_limit"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_and_writes_nothing() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    stripe.lists_events(&[]);
    stripe.lists_subscriptions(&[born("sub_1", "cus_1", "active", 1), born("sub_2", "cus_2", "active", 1)]);
    let ran = import(&app, &stripe, &["--dry-run"]).await;
    ran.ends_with(0);
    assert_eq!(ran.lines("sub_"), ["sub_1 would be applied", "sub_2 would be parked"]);
    assert_eq!(app.count("subscriptions").await + app.count("stripe_events").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_read_events_still_imports_and_a_broken_object_fails_alone() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    stripe.lists_events(&[]);
    stripe.refuse_once(403, None);
    let mut broken = born("sub_2", "cus_1", "active", 1);
    broken["status"] = Value::Null;
    stripe.lists_subscriptions(&[born("sub_1", "cus_1", "active", 1), broken]);
    let ran = import(&app, &stripe, &["--connect-account", "acct_1"]).await;
    ran.ends_with(1);
    assert!(ran.err.contains("403"), "{}", ran.err);
    assert_eq!(ran.lines("sub_2 failed").len(), 1, "{}", ran.out);
    let last = app.subscription("sub_1").await["last_event_id"].as_str().unwrap().to_owned();
    assert_eq!(app.event_row(&last).await["connect_account"], "acct_1");
}

/// Subscriptions of a linked customer and of one that is not.
fn many(count: i64) -> Vec<Value> {
    let customer = |n: i64| if n % 2 == 0 { "cus_1" } else { "cus_2" };
    (0..count).map(|n| born(&format!("sub_{n:04}"), customer(n), "active", n)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_share_commits_whether_or_not_their_customers_are_linked() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    stripe.lists_events(&[]);
    stripe.lists_subscriptions(&many(600));
    let ran = import(&app, &stripe, &[]).await;
    ran.ends_with(0);
    assert_eq!(ran.out, "600 subscriptions: 300 applied, 300 parked\n");
    let commits = "SELECT count(DISTINCT xmin::text) FROM stripe_events WHERE outcome =";
    for outcome in ["applied", "parked"] {
        let commits: i64 = app.one(&format!("{commits} '{outcome}'")).await.get(0);
        assert!(commits <= 100, "{commits} commits for 300 subscriptions, {outcome}");
    }
}

/// Kills the import once so many of its records are there.
async fn kill_after(app: &TestApp, mut child: Child, records: i64) {
    while app.count("stripe_events").await < records {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before {records} records");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_killed_at_any_point_is_completed_by_the_next_run() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    stripe.lists_events(&[]);
    let many = many(1_500);
    stripe.lists_subscriptions(&many);
    for records in [0, 1, 300] {
        kill_after(&app, job::command(&app, Some(&stripe), &["import"]).spawn().unwrap(), records).await;
    }
    assert!(app.count("stripe_events").await < 1_500, "it was not killed");
    import(&app, &stripe, &[]).await.ends_with(0);
    assert_eq!(app.count("subscriptions WHERE last_event_id IS NOT NULL").await, 750);
    assert_eq!(app.count("stripe_events WHERE outcome = 'applied'").await, 750);
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 750);
    assert_eq!(app.count("subscription_changes").await, 750, "one first change for each row");
    let seats = "subscriptions WHERE stripe_subscription_id = 'sub_' || lpad(seat_limit::text, 4, '0')";
    assert_eq!(app.count(seats).await, 750);
    assert_eq!(import(&app, &stripe, &[]).await.out, "1500 subscriptions: 1500 unchanged\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stripe_refuses_fails_alone() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    stripe.lists_events(&[]);
    // Its further items have to be read.
    let mut refused = born("sub_0050", "cus_1", "active", 50);
    refused["items"]["has_more"] = true.into();
    stripe.refuse_list("subscription_items", 403);
    let mut many = many(100);
    many[50] = refused;
    stripe.lists_subscriptions(&many);
    let ran = import(&app, &stripe, &[]).await;
    ran.ends_with(1);
    assert_eq!(ran.lines("100 subscriptions"), ["100 subscriptions: 49 applied, 1 failed, 50 parked"]);
    assert!(ran.lines("sub_0050 failed: ")[0].contains("403"), "{}", ran.out);
    assert_eq!(app.count("event_failures").await, 1, "it was tried once");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_row_is_locked_by_another_transaction_fails_alone() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    app.execute(
        "CREATE FUNCTION locked() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'it is locked' USING ERRCODE = 'lock_not_available'; END $$;
         CREATE TRIGGER locked BEFORE INSERT ON subscriptions FOR EACH ROW
             WHEN (NEW.stripe_subscription_id = 'sub_0050') EXECUTE FUNCTION locked()",
    )
    .await;
    stripe.lists_events(&[]);
    stripe.lists_subscriptions(&many(600));
    let ran = import(&app, &stripe, &[]).await;
    ran.ends_with(1);
    assert_eq!(ran.lines("600 subscriptions"), ["600 subscriptions: 299 applied, 1 failed, 300 parked"]);
    assert!(ran.lines("sub_0050 failed: ")[0].contains("55P03"), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_newest_events_are_read() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    app.account_of("cus_1").await;
    let state = |n| born(&format!("sub_{n}"), "cus_1", "active", n);
    let mut events: Vec<_> = (0..500).map(|n| update(&format!("evt_old_{n}"), n, state(1))).collect();
    events.push(update("evt_edge", 10_000, state(2)));
    events.push(update("evt_new", 10_300, state(3)));
    stripe.lists_events(&events);
    stripe.lists_subscriptions(&[state(1), state(2), state(3)]);
    let ran = import(&app, &stripe, &[]).await;
    ran.ends_with(0);
    assert_eq!(stripe.listed().iter().filter(|page| page.path == "events").count(), 1);
    for part in ["part 1 of 2: newest events read", "part 2 of 2: subscriptions imported"] {
        assert!(ran.err.contains(part), "{}", ran.err);
    }
    let as_of =
        "SELECT to_jsonb(extract(epoch FROM last_event_created)::bigint) FROM subscriptions ORDER BY seat_limit";
    let as_of = app.json(as_of, &[]).await;
    assert_eq!(as_of, [json!(BORN + 10_000), json!(BORN + 10_000), json!(BORN + 10_300)]);
    assert_eq!(app.deliver(&events[499]).await.outcome(), "stale", "not read, and older than the window");
}
