//! What a delivery reads: it does not grow with the tables, analysed or not, nor with the number of parked events.

use std::time::Duration;

use serde_json::json;

use crate::support::events::{checkout, completed, created, deleted, invoice, paid, subscription, updated};
use crate::support::{Event, Settings, TestApp};

/// The tables that a delivery reads.
const TABLES: [&str; 5] = ["stripe_events", "accounts", "subscriptions", "event_failures", "customer_links"];

/// Ends the server's sessions, which tell the statistics only from time to time, or at their end, what they read.
async fn told(app: &TestApp) {
    let sessions = "pg_stat_activity WHERE datname = current_database() AND application_name = 'subledger'";
    app.execute(&format!("SELECT pg_terminate_backend(pid) FROM {sessions}")).await;
    for _ in 0..200 {
        if app.count(&format!("{sessions} AND backend_start < now() - interval '50 ms'")).await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    app.execute("SELECT pg_stat_clear_snapshot()").await;
}

/// The tables that were scanned so far, with how often.
async fn scanned(app: &TestApp) -> Vec<(String, i64)> {
    told(app).await;
    let query = "SELECT relname::text, seq_scan FROM pg_stat_user_tables WHERE relname = ANY($1) ORDER BY 1";
    app.sql.query(query, &[&TABLES.as_slice()]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// How many rows were read so far, from tables and from indexes.
async fn read(app: &TestApp) -> i64 {
    told(app).await;
    let query = "SELECT ((SELECT sum(seq_tup_read) FROM pg_stat_user_tables)
                         + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes))::bigint";
    app.one(query).await.get(0)
}

/// How often an index was used that no delivery has a value for the first column of: each time the whole index is read,
/// which `idx_tup_read` does not tell.
async fn read_whole(app: &TestApp) -> i64 {
    told(app).await;
    let query = "SELECT sum(idx_scan)::bigint
                 FROM pg_stat_user_indexes JOIN pg_index USING (indexrelid)
                 JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
                 WHERE relname = ANY($1) AND attname IN ('created', 'created_at', 'failed_at', 'received_at', 'type')";
    app.sql.query_one(query, &[&TABLES.as_slice()]).await.unwrap().get(0)
}

/// When the tables are analysed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Analysed {
    Never,
    WhileEmpty,
}

/// A server whose tables nobody analyses later on, with so many accounts.
async fn start(accounts: usize, analysed: Analysed) -> TestApp {
    // The machine may have other things to do.
    let pool_timeout = Duration::from_secs(30);
    let app = TestApp::start_with(Settings { pool_size: 4, pool_timeout, ..Settings::default() }, None).await;
    let tables = "SELECT to_jsonb(relname) FROM pg_stat_user_tables";
    for table in app.json(tables, &[]).await {
        app.execute(&format!("ALTER TABLE {table} SET (autovacuum_enabled = false)")).await;
    }
    let insert = format!(
        "INSERT INTO accounts (stripe_customer_id) SELECT 'cus_' || n FROM generate_series(0, {accounts} - 1) AS n"
    );
    app.execute(&insert).await;
    if analysed == Analysed::WhileEmpty {
        app.execute("VACUUM ANALYZE").await;
    }
    // The first sweep is over.
    tokio::time::sleep(Duration::from_millis(300)).await;
    app
}

/// The event of this number: a few for each subscription, one subscription after the other, ties among them.
fn event(number: usize, ties: bool) -> Event {
    let (subscription_number, step) = (number / 8, number % 8);
    let (id, customer) = (format!("sub_{subscription_number}"), format!("cus_{subscription_number}"));
    let object = |status: &str| subscription(&id, &customer, status, step as i64 + 1);
    let name = format!("evt_{number}");
    match step {
        0 => created(&name, 100, object("incomplete")),
        2 => paid(&name, 110, invoice(&format!("in_{number}"), &customer, &id)),
        4 => completed(&name, 120, checkout(&customer, &id, None)),
        5 => Event::new(&name, "customer.updated", 120, json!({"id": customer, "object": "customer"})),
        7 => deleted(&name, 190, object("canceled")),
        _ if ties => updated(&name, 130, object("active")).with_previous(json!({"status": "active"})),
        _ => updated(&name, 130 + step as i64, object("active")),
    }
}

async fn deliver(app: &TestApp, numbers: std::ops::Range<usize>, ties: bool) {
    let events: Vec<_> = numbers.map(|number| event(number, ties)).collect();
    for subscription in events.chunks(800) {
        let events: Vec<_> = subscription.iter().collect();
        let answers = app.deliver_all(&events, 16).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    }
    // A redelivery reads, too.
    for number in [0, 1, 2] {
        assert_eq!(app.deliver(&events[number]).await.outcome(), "duplicate");
    }
}

/// Where most rows were read: of which table, by which index.
async fn most_read(app: &TestApp) -> Vec<(String, i64)> {
    let query = "SELECT relname || ', scanned', seq_tup_read AS rows FROM pg_stat_user_tables
                 UNION ALL SELECT relname || ' by ' || indexrelname, idx_tup_read FROM pg_stat_user_indexes
                 ORDER BY rows DESC LIMIT 4";
    app.sql.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Delivers so many events to a new server, over connections that were opened on its empty tables; how many rows each
/// event read.
async fn cost(events: usize, accounts: usize, ties: bool, analysed: Analysed) -> f64 {
    let app = start(accounts, analysed).await;
    let before = (scanned(&app).await, read(&app).await, read_whole(&app).await);
    deliver(&app, 0..events, ties).await;
    let read = read(&app).await - before.1;
    assert_eq!(scanned(&app).await, before.0, "{accounts} accounts: no table is scanned");
    let whole = read_whole(&app).await - before.2;
    // At most by plans that were made on empty tables, for as long as sessions keep them.
    assert!(whole < 300, "{accounts} accounts, analysed {analysed:?}: {events} events read {whole} indexes whole");
    let each = read as f64 / events as f64;
    let most = most_read(&app).await;
    println!("{accounts} accounts, analysed {analysed:?}, {events} events, ties {ties}: {each} rows each; {most:?}");
    each
}

async fn check_plans(accounts: usize, ties: bool, analysed: Analysed) {
    let few = cost(300, accounts, ties, analysed).await;
    let many = cost(3_000, accounts, ties, analysed).await;
    assert!(many < few * 1.5 + 1.0, "{accounts} accounts: what an event reads grows from {few} to {many} rows");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_tables_that_were_empty_no_delivery_scans_and_none_reads_more_than_the_first() {
    check_plans(0, false, Analysed::Never).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_tables_that_were_analysed_while_empty_no_delivery_scans_and_none_reads_more_than_the_first() {
    check_plans(400, false, Analysed::WhileEmpty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_tables_that_were_tiny_no_delivery_scans_and_none_reads_more_than_the_first() {
    check_plans(3, false, Analysed::Never).await;
    check_plans(400, false, Analysed::Never).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_look_up_of_a_seconds_events_scans_nothing() {
    check_plans(400, true, Analysed::Never).await;
}

/// Parked events of a customer, as so many deliveries leave them.
async fn park(app: &TestApp, customer: &str, count: usize) {
    let payload = updated("evt_@", 0, subscription("sub_@", customer, "active", 1)).to_string();
    let insert = "INSERT INTO stripe_events
                      (id, type, outcome, livemode, created, customer_id, subscription_id, payload)
                  SELECT replace(payload ->> 'id', '@', n::text), payload ->> 'type', 'parked', false,
                         to_timestamp(n), $2, replace(payload #>> '{data,object,id}', '@', n::text),
                         jsonb_set(replace(payload::text, '@', n::text)::jsonb, '{created}', to_jsonb(n))
                  FROM (SELECT $1::text::jsonb AS payload) AS one, generate_series(1, $3::bigint) AS n";
    let count = i64::try_from(count).unwrap();
    assert_eq!(app.sql.execute(insert, &[&payload, &customer, &count]).await.unwrap(), count as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_event_costs_the_same_however_many_are_parked_for_its_customer() {
    let app = start(0, Analysed::Never).await;
    let mut costs = Vec::new();
    for parked in [0, 5_000] {
        let customer = format!("cus_with_{parked}");
        park(&app, &customer, parked).await;
        let before = read(&app).await;
        for number in 0..50 {
            let object = subscription(&format!("sub_{parked}_{number}"), &customer, "active", 1);
            let event = created(&format!("evt_{parked}_{number}"), 100, object);
            assert_eq!(app.deliver(event).await.outcome(), "parked");
        }
        costs.push(read(&app).await - before);
    }
    println!("50 parked events read {costs:?} rows, beside none and beside 5000");
    assert!(costs[1] <= 2 * costs[0].max(50), "{costs:?}");
}

/// Links a customer with so many parked events, of which one always fails.
async fn link_with_parked(count: usize) {
    let app = start(0, Analysed::Never).await;
    park(&app, "cus_1", count).await;
    // As if it had been a failure of its own.
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT not_7 CHECK (stripe_subscription_id <> 'sub_7')").await;
    let answer = app.create_account(json!({"name": "Late", "stripe_customer_id": "cus_1"})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    for number in 0..1_200 {
        if app.count("stripe_events WHERE outcome = 'parked'").await <= 1 {
            break;
        }
        // Others' deliveries are answered meanwhile.
        if number % 10 == 0 {
            let other = created(&format!("evt_x{number}"), 100, subscription("sub_x", "cus_1", "active", 1));
            assert_eq!(app.deliver(other).await.status, 200);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(app.event_row("evt_7").await["outcome"], "parked");
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 1);
    assert_eq!(app.count("subscriptions WHERE stripe_subscription_id <> 'sub_x'").await, count as i64 - 1);
    assert_eq!(app.count("event_failures WHERE event_id <> 'evt_7'").await, 0);
    assert!(app.count("event_failures").await >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_with_two_thousand_parked_events_is_linked_and_one_that_fails_holds_up_none() {
    link_with_parked(2_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute"]
async fn a_customer_with_twenty_thousand_parked_events_is_linked() {
    link_with_parked(20_000).await;
}
