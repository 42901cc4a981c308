//! Migrations beside servers that go on taking deliveries, and after a crash in the middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use subledger::db::migrations::{self, Migration};
use tokio_postgres::Client;

use crate::support::app::Answer;
use crate::support::database::Database;
use crate::support::{Event, TestApp};

/// How long the reader keeps its transaction open, as `pg_dump` does.
const READING: Duration = Duration::from_secs(4);

fn migration(name: &'static str, is_transactional: bool, up: &'static str) -> Migration {
    Migration { name, version: name.split('_').next().unwrap().replace('-', ""), up, is_transactional }
}

/// One of each kind that an upgrade has, on the two largest tables.
fn upgrade() -> Vec<Migration> {
    let mut all = migrations::all().to_vec();
    all.extend([
        migration("2099-01-01-000001_column", true, "ALTER TABLE subscriptions ADD COLUMN added_column text;"),
        migration(
            "2099-01-01-000002_column",
            true,
            "ALTER TABLE stripe_events ADD COLUMN added_column text NOT NULL DEFAULT '';",
        ),
        migration(
            "2099-01-01-000003_fill",
            false,
            "DO $$
             DECLARE last text := '';
             BEGIN
                 LOOP
                     WITH batch AS (SELECT id FROM stripe_events WHERE id > last ORDER BY id LIMIT 50),
                          filled AS (UPDATE stripe_events AS event SET added_column = 'filled'
                                     FROM batch WHERE event.id = batch.id AND event.added_column = '')
                     SELECT max(id) INTO last FROM batch;
                     EXIT WHEN last IS NULL;
                     COMMIT;
                 END LOOP;
             END $$;",
        ),
        migration(
            "2099-01-01-000004_index",
            false,
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_added_idx ON stripe_events (added_column, id);",
        ),
    ]);
    all
}

async fn is_valid(sql: &Client, index: &str) -> Option<bool> {
    let query = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)";
    sql.query_opt(query, &[&index]).await.unwrap().map(|row| row.get(0))
}

/// Delivers one event after the other until it is told to stop; the answers.
async fn keep_delivering(app: Arc<TestApp>, lane: usize, stop: Arc<AtomicBool>) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = answers.len();
        let subscription = json!({"id": format!("sub_{lane}_{}", number / 3), "object": "subscription",
                                  "customer": "cus_1", "status": "active"});
        let id = format!("evt_{lane}_{number}");
        let created = 100 + i64::try_from(number).unwrap();
        answers.push(app.deliver(Event::new(&id, "customer.subscription.updated", created, subscription)).await);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stays_holds_up_the_migrations_but_not_one_delivery() {
    let app = Arc::new(TestApp::start().await);
    app.account_of("cus_1").await;
    let stop = Arc::new(AtomicBool::new(false));
    let lanes = (0..8).map(|lane| tokio::spawn(keep_delivering(app.clone(), lane, stop.clone())));
    let lanes: Vec<_> = lanes.collect();
    tokio::time::sleep(Duration::from_millis(500)).await;

    let reader = app.database.client().await;
    let read = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM subscriptions, stripe_events";
    reader.batch_execute(read).await.unwrap();
    let started = Instant::now();
    let target = app.database.target();
    let migrating = tokio::spawn(async move { migrations::run_those(&target, &upgrade()).await });
    tokio::time::sleep(READING).await;
    assert!(!migrating.is_finished(), "the reader is in its way");
    reader.batch_execute("COMMIT").await.unwrap();
    let ran = migrating.await.unwrap().unwrap();
    assert_eq!(ran.len(), 4, "{ran:?}");
    assert!(started.elapsed() >= READING);
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);

    let mut answers = Vec::new();
    for lane in lanes {
        answers.extend(lane.await.unwrap());
    }
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(refused.is_empty(), "{} of {} were refused: {:?}", refused.len(), answers.len(), refused[0]);
    assert!(answers.len() > 100, "{} deliveries are no load", answers.len());
    assert_eq!(is_valid(&app.sql, "stripe_events_added_idx").await, Some(true));
    let filled = app.count("stripe_events WHERE added_column = 'filled'").await;
    assert!(filled > 0, "those that were there are filled");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_not_built_to_its_end_is_built_again() {
    let database = Database::migrated();
    let sql = database.client().await;
    // What a crash leaves: a build that fails leaves the same.
    sql.batch_execute(
        "ALTER TABLE stripe_events ADD COLUMN added_column text NOT NULL DEFAULT '';
         ALTER TABLE subscriptions ADD COLUMN added_column text;
         INSERT INTO __diesel_schema_migrations VALUES ('20990101000001'), ('20990101000002');
         INSERT INTO stripe_events (id, type, outcome, livemode, payload)
         SELECT 'evt_' || n, 'x', 'ignored', false, '{}' FROM generate_series(1, 2) AS n",
    )
    .await
    .unwrap();
    let build = "CREATE UNIQUE INDEX CONCURRENTLY stripe_events_added_idx ON stripe_events (type)";
    assert!(sql.batch_execute(build).await.is_err());
    assert_eq!(is_valid(&sql, "stripe_events_added_idx").await, Some(false));

    let ran = migrations::run_those(&database.target(), &upgrade()).await.unwrap();
    assert_eq!(ran, ["2099-01-01-000003_fill", "2099-01-01-000004_index"]);
    assert_eq!(is_valid(&sql, "stripe_events_added_idx").await, Some(true));
    // One that was built, while the version was not recorded any more.
    sql.batch_execute("DELETE FROM __diesel_schema_migrations WHERE version >= '20990101000003'").await.unwrap();
    assert_eq!(migrations::run_those(&database.target(), &upgrade()).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_fails_says_why_at_once_and_leaves_nothing() {
    let database = Database::migrated();
    let mut all = migrations::all().to_vec();
    let up = "CREATE TABLE made (id int); CREATE TABLE made_badly (id no_such_type);";
    all.push(migration("2099-01-01-000001_bad", true, up));
    let started = Instant::now();
    let error = migrations::run_those(&database.target(), &all).await.expect_err("it cannot run");
    let error = format!("{error:#}");
    assert!(error.contains("2099-01-01-000001_bad") && error.contains("no_such_type"), "{error}");
    assert!(!error.contains('\n') && started.elapsed() < Duration::from_secs(10), "{error}");
    let sql = database.client().await;
    let query = "SELECT to_regclass('made') IS NULL, count(*) FROM __diesel_schema_migrations WHERE version > '2099'";
    let row = sql.query_one(query, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (true, 0_i64));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_that_migrate_at_once_are_one_after_the_other() {
    let database = Database::empty();
    let started: Vec<_> = (0..6)
        .map(|_| {
            let target = database.target();
            tokio::spawn(async move { migrations::run_those(&target, &upgrade()).await })
        })
        .collect();
    let mut counts = Vec::new();
    for one in started {
        counts.push(one.await.unwrap().unwrap().len());
    }
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 0, 0, 0, upgrade().len()]);
}
