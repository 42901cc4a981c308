//! A database of the version before, with rows of every kind, after an upgrade.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use subledger::db::migrations;
use tokio_postgres::Client;

use crate::support::database::Database;
use crate::support::{Settings, TestApp};

const TABLES: [&str; 5] = ["accounts", "account_customers", "subscriptions", "stripe_events", "event_failures"];

/// The rows of every table, each as JSON.
async fn rows(sql: &Client) -> BTreeMap<&'static str, Vec<Value>> {
    let mut rows = BTreeMap::new();
    for table in TABLES {
        let query = format!("SELECT to_jsonb(t) FROM {table} AS t ORDER BY t::text COLLATE \"C\"");
        rows.insert(table, sql.query(&query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect());
    }
    rows
}

/// A database as version 0.1 left it.
async fn of_version_0_1() -> Database {
    let database = Database::empty();
    let first = &migrations::all()[0];
    let sql = database.client().await;
    sql.batch_execute(first.up).await.unwrap();
    sql.batch_execute(
        "CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY NOT NULL,
                                                  run_on timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP);
         INSERT INTO __diesel_schema_migrations VALUES ('20261121000001')",
    )
    .await
    .unwrap();
    sql.batch_execute(include_str!("../../fixtures/upgrade/0.1.sql")).await.unwrap();
    database
}

/// Every column that was there shows what it showed. Columns may have been added.
#[track_caller]
fn assert_kept(before: &BTreeMap<&str, Vec<Value>>, after: &BTreeMap<&str, Vec<Value>>) {
    for (table, rows) in before {
        assert_eq!(rows.len(), after[table].len(), "{table}");
        for row in rows {
            let is_kept = |other: &&Value| row.as_object().unwrap().iter().all(|(name, value)| other[name] == *value);
            assert!(after[table].iter().any(|other| is_kept(&other)), "{table}: {row} is not in {:#?}", after[table]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_version_before_are_all_there_after_the_upgrade_and_go_on() {
    let database = of_version_0_1().await;
    let before = rows(&database.client().await).await;
    assert_eq!(before.values().map(Vec::len).collect::<Vec<_>>(), [1, 2, 2, 5, 3]);
    migrations::run(&database.target()).await.unwrap();
    assert_kept(&before, &rows(&database.client().await).await);

    let app = TestApp::start_on(database, Settings::default(), None).await;
    assert_eq!(app.get("/events/evt_failed").await.body["status"], "failed");
    let account = "/api/v1/accounts/00000000-0000-4000-8000-000000000002";
    let linked = app.admin(reqwest::Method::PATCH, account, Some(json!({"stripe_customer_id": "cus_3"}))).await;
    assert_eq!(linked.status, 200, "{linked:?}");
    for _ in 0..100 {
        if app.count("subscriptions WHERE stripe_subscription_id = 'sub_3' AND status = 'active'").await == 1 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("what the version before had parked is not applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_the_version_before_go_on_working_after_the_upgrade() {
    let database = of_version_0_1().await;
    migrations::run(&database.target()).await.unwrap();
    let sql = database.client().await;
    // The columns that version 0.1 names when it writes, and no others.
    sql.batch_execute(
        "INSERT INTO stripe_events (id, type, outcome, api_version, livemode, connect_account, created, received_at,
             customer_id, subscription_id, account_id, payload)
         SELECT 'evt_new', type, outcome, api_version, livemode, connect_account, created, now(), customer_id,
             subscription_id, account_id, payload FROM stripe_events WHERE id = 'evt_updated';
         INSERT INTO subscriptions (account_id, plan, status, stripe_subscription_id, stripe_customer_id,
             stripe_price_id, seat_limit, current_period_start, current_period_end, cancel_at_period_end, cancel_at,
             canceled_at, ended_at, trial_end, paused_collection, last_event_id, last_event_type, last_event_created)
         SELECT account_id, plan, status, 'sub_new', stripe_customer_id, stripe_price_id, seat_limit,
             current_period_start, current_period_end, cancel_at_period_end, cancel_at, canceled_at, ended_at,
             trial_end, paused_collection, 'evt_new', last_event_type, last_event_created
         FROM subscriptions WHERE stripe_subscription_id = 'sub_1';
         UPDATE subscriptions SET plan = 'team', status = 'past_due', seat_limit = 6, latest_invoice_id = 'in_2',
             latest_invoice_status = 'open', latest_invoice_event_created = now(), updated_at = now()
         WHERE stripe_subscription_id = 'sub_1';
         UPDATE stripe_events SET outcome = 'applied', account_id = '00000000-0000-4000-8000-000000000002'
         WHERE id = 'evt_parked';
         INSERT INTO event_failures (event_id, type, error, api_version, livemode, connect_account, created,
             customer_id, subscription_id, payload)
         VALUES ('evt_x', 'x', 'x', NULL, true, NULL, NULL, NULL, NULL, '{}');
         INSERT INTO account_customers (stripe_customer_id, account_id)
         VALUES ('cus_4', '00000000-0000-4000-8000-000000000002');
         UPDATE accounts SET local_plan = 'pro', stripe_customer_id = 'cus_5', updated_at = now()
         WHERE id = '00000000-0000-4000-8000-000000000002';
         DELETE FROM subscriptions WHERE stripe_subscription_id = 'sub_new';
         DELETE FROM event_failures WHERE event_id = 'evt_x'",
    )
    .await
    .unwrap();
}
