//! Whom an upgrade from version 0.1 holds up: `migrate` in a database of that version with many events, while writers go
//! on as that version did, and while somebody reads in one long transaction, as `pg_dump` does.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use subledger::db::migrations;
use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::report::Column;
use crate::support::database::Database;

const SUBSCRIPTIONS: u64 = 10_000;
const WRITERS: u64 = 8;

/// A write that takes longer is given up: its delivery would be answered 503.
const WRITE_TIMEOUT: &str = "SET statement_timeout = '2s'";

const MIGRATED: &str = "
    CREATE TABLE __diesel_schema_migrations
        (version varchar(50) PRIMARY KEY NOT NULL, run_on timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP);
    INSERT INTO __diesel_schema_migrations (version) VALUES ('20261121000001')";

const FILL: &str = "
    BEGIN;
    INSERT INTO accounts (id, name, stripe_customer_id)
        SELECT md5(n::text)::uuid, 'Account ' || n, 'cus_' || n FROM generate_series(1, $SUBSCRIPTIONS) AS n;
    INSERT INTO subscriptions (account_id, plan, status, stripe_subscription_id, stripe_customer_id)
        SELECT id, 'team', 'active', 'sub_' || substr(stripe_customer_id, 5), stripe_customer_id FROM accounts;
    INSERT INTO stripe_events (id, type, outcome, livemode, created, received_at, customer_id, subscription_id, payload)
        SELECT 'evt_' || n, 'customer.subscription.updated', 'applied', false, at, at, 'cus_' || n % $SUBSCRIPTIONS + 1,
            'sub_' || n % $SUBSCRIPTIONS + 1, sample.payload
        FROM (SELECT $payload$$PAYLOAD$payload$::jsonb AS payload) AS sample, generate_series(1, $ROWS) AS n,
            LATERAL (SELECT now() - ($ROWS - n) * interval '1 second' AS at) AS row;
    COMMIT";

const WRITE: &str = "
    BEGIN;
    INSERT INTO stripe_events (id, type, outcome, livemode, payload)
        VALUES ('evt_of_$WRITER_$NUMBER', 'customer.subscription.updated', 'applied', false, '{}');
    UPDATE subscriptions SET updated_at = now() WHERE stripe_subscription_id = 'sub_$SUBSCRIPTION';
    COMMIT";

/// What the writers saw.
#[derive(Default)]
struct Writes {
    done: u64,
    refused: u64,
    slowest: Duration,
}

pub fn measure(
    database: &mut Database,
    rows: u64,
    payload: &str,
    reading: Duration,
    column: &mut Column,
) -> Result<()> {
    let url = database.further("upgrade")?;
    let fill = FILL
        .replace("$ROWS", &rows.to_string())
        .replace("$SUBSCRIPTIONS", &SUBSCRIPTIONS.to_string())
        .replace("$PAYLOAD", payload);
    let first = migrations::all().first().context("no migrations")?.up;
    database.execute_at(&url, &[first, MIGRATED, &fill, "VACUUM ANALYZE"])?;

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let writers = (0..WRITERS).map(|writer| runtime.spawn(write(url.clone(), writer, is_over.clone())));
    let writers: Vec<_> = writers.collect();
    let reader = connect(&runtime, &url)?;
    let read = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM subscriptions; SELECT id FROM stripe_events LIMIT 1";
    runtime.block_on(reader.batch_execute(read))?;

    let started = Instant::now();
    let mut migrating = Command::new(env!("CARGO_BIN_EXE_subledger"))
        .env_clear()
        .env("DATABASE_URL", &url)
        .arg("migrate")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    thread::sleep(reading);
    runtime.block_on(reader.batch_execute("COMMIT"))?;
    let status = migrating.wait()?;
    let taken = started.elapsed();
    is_over.store(true, Ordering::Relaxed);
    ensure!(status.success(), "migrate: {status}");

    let mut all = Writes::default();
    for writer in writers {
        let writes = runtime.block_on(writer)??;
        all = Writes {
            done: all.done + writes.done,
            refused: all.refused + writes.refused,
            slowest: all.slowest.max(writes.slowest),
        };
    }
    let reading = reading.as_secs();
    let name = format!("upgrade from 0.1, behind a reader of {reading} s");
    column.add(format!("{name}: seconds"), format!("{:.1}", taken.as_secs_f64()));
    column.add(format!("{name}: writes meanwhile"), all.done.to_string());
    column.add(format!("{name}: … of these given up after 2 s"), all.refused.to_string());
    column.add(format!("{name}: the slowest write, ms"), format!("{:.0}", all.slowest.as_secs_f64() * 1000.0));
    database.execute("DROP DATABASE upgrade WITH (FORCE)")
}

/// Writes one event after the other until it is over.
async fn write(url: String, writer: u64, is_over: Arc<AtomicBool>) -> Result<Writes> {
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute(WRITE_TIMEOUT).await?;
    let mut writes = Writes::default();
    for number in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let statements = WRITE
            .replace("$WRITER", &writer.to_string())
            .replace("$NUMBER", &number.to_string())
            .replace("$SUBSCRIPTION", &(number * WRITERS % SUBSCRIPTIONS + writer + 1).to_string());
        let started = Instant::now();
        writes.done += 1;
        if let Err(error) = client.batch_execute(&statements).await {
            ensure!(error.code() == Some(&SqlState::QUERY_CANCELED), "a write failed: {error}");
            client.batch_execute("ROLLBACK").await?;
            writes.refused += 1;
        }
        writes.slowest = writes.slowest.max(started.elapsed());
    }
    Ok(writes)
}

fn connect(runtime: &Runtime, url: &str) -> Result<Client> {
    let (client, connection) = runtime.block_on(tokio_postgres::connect(url, NoTls))?;
    runtime.spawn(connection);
    Ok(client)
}
