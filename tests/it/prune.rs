//! `subledger prune`: what is old goes, in batches; what is young or parked stays.

use crate::support::events::subscription;
use crate::support::{Event, TestApp, job};

/// Rows of `outcome`, received so many days ago.
async fn received(app: &TestApp, ids: &str, count: i32, outcome: &str, days_ago: i32) {
    app.execute(&format!(
        "INSERT INTO stripe_events (id, type, outcome, livemode, received_at, payload)
         SELECT '{ids}_' || n, 'x', '{outcome}', false, now() - interval '{days_ago} days', '{{}}'
         FROM generate_series(1, {count}) AS n"
    ))
    .await;
}

async fn failed(app: &TestApp, event: &str, days_ago: i32) {
    app.execute(&format!(
        "INSERT INTO event_failures (event_id, type, error, failed_at)
         VALUES ('{event}', 'x', 'no', now() - interval '{days_ago} days')"
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_goes_in_batches_and_what_is_young_or_parked_stays() {
    let app = TestApp::start().await;
    app.execute(
        "CREATE TABLE batches (size bigint);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO batches SELECT count(*) FROM gone;
             RETURN NULL;
         END $$;
         CREATE TRIGGER note AFTER DELETE ON stripe_events REFERENCING OLD TABLE AS gone
             FOR EACH STATEMENT EXECUTE FUNCTION note()",
    )
    .await;
    received(&app, "old", 2_500, "applied", 91).await;
    received(&app, "young", 10, "applied", 89).await;
    received(&app, "parked", 5, "parked", 400).await;
    failed(&app, "evt_only_failed", 91).await;
    failed(&app, "old_1", 91).await;
    failed(&app, "parked_1", 91).await;
    failed(&app, "young_1", 1).await;
    let ran = job::run(&app, None, &["prune", "--older-than", "90d"]).await;
    ran.ends_with(0);
    assert_eq!(ran.out, "deleted 2500 events, 2 failures and 0 changes\n");
    assert_eq!(app.count("stripe_events").await, 15);
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 5);
    let left = app.json("SELECT to_jsonb(event_id) FROM event_failures ORDER BY 1", &[]).await;
    assert_eq!(left, ["parked_1", "young_1"]);
    let sizes: i64 = app.one("SELECT max(size) FROM batches").await.get(0);
    assert_eq!((sizes, app.count("batches").await), (1_000, 3));
    assert_eq!(
        job::run(&app, None, &["prune", "--older-than", "90d"]).await.out,
        "deleted 0 events, 0 failures and 0 changes\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_event_does_not_come_to_look_like_one_that_only_failed() {
    let app = TestApp::start().await;
    received(&app, "evt", 1, "applied", 100).await;
    failed(&app, "evt_1", 100).await;
    failed(&app, "evt_1", 89).await;
    job::run(&app, None, &["prune", "--older-than", "90d"]).await.ends_with(0);
    assert_eq!((app.count("stripe_events").await, app.count("event_failures").await), (1, 1));
    assert_eq!(job::run(&app, None, &["replay", "--failed"]).await.out, "nothing to replay\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_still_fails_is_listed_after_its_first_failure_was_pruned() {
    let app = TestApp::start().await;
    failed(&app, "evt_1", 100).await;
    failed(&app, "evt_1", 1).await;
    app.execute("UPDATE event_failures SET is_open = (id = 1)").await;
    job::run(&app, None, &["prune", "--older-than", "90d"]).await.ends_with(0);
    let page = app.get("/events?status=failed").await;
    assert_eq!((page.body["data"].as_array().unwrap().len(), &page.body["data"][0]["id"]), (1, &"evt_1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pruned_event_that_comes_again_revives_nothing() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let seats = |seats| subscription("sub_1", "cus_1", "active", seats);
    let events = [
        Event::new("evt_1", "customer.subscription.created", 100, seats(1)),
        Event::new("evt_2", "customer.subscription.updated", 200, seats(2)),
    ];
    for event in &events {
        assert_eq!(app.deliver(event).await.outcome(), "applied");
    }
    app.execute("UPDATE stripe_events SET received_at = now() - interval '31 days'").await;
    job::run(&app, None, &["prune", "--older-than", "30d"]).await.ends_with(0);
    assert_eq!(app.count("stripe_events").await, 0);
    let row = app.subscription("sub_1").await;
    for event in &events {
        assert_eq!(app.deliver(event).await.status, 200);
    }
    for column in ["seat_limit", "last_event_id", "last_event_created", "status"] {
        assert_eq!(app.subscription("sub_1").await[column], row[column], "{column}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn less_than_thirty_days_is_a_mistake() {
    let app = TestApp::start().await;
    received(&app, "old", 3, "applied", 400).await;
    for args in [
        &["prune", "--older-than", "29d"][..],
        &["prune", "--older-than", "719h"],
        &["prune"],
        &["prune", "--older-than", "90"],
    ] {
        let ran = job::run(&app, None, args).await;
        ran.ends_with(2);
        assert_eq!(app.count("stripe_events").await, 3);
    }
    job::run(&app, None, &["prune", "--older-than", "720h"]).await.ends_with(0);
    assert_eq!(app.count("stripe_events").await, 0);
}
