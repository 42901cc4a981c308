//! Whether the rate holds when `stripe_events` has very many rows: fills it, and measures with few and with many.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::bench::{Bench, QUICK_EVENTS, SUBSCRIPTIONS, check_first_deliveries};
use crate::database::Database;
use crate::events::Events;
use crate::load::{self, Load};
use crate::support::server::Server;

const CONNECTIONS: usize = 16;

/// What is compared with.
pub const FEW: u64 = 10_000;

/// In one transaction that begins with TRUNCATE and under `wal_level` minimal, so that none of it goes through the
/// write-ahead log. Indexes are built at the end, but for those of parked events: they stay empty, and each would cost
/// a pass over all rows. The payload is put in as the table would store it, compressed once. Ids are in no order,
/// times in that of 90 days that ended an hour ago, and a subscription has 20 events.
const FILL: &str = "
    BEGIN;
    SET LOCAL maintenance_work_mem = '1GB';
    CREATE TEMP TABLE sample (LIKE stripe_events INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION)
        ON COMMIT DROP;
    INSERT INTO sample (id, type, outcome, livemode, payload) VALUES ('', '', '', false, $payload$$PAYLOAD$payload$);
    TRUNCATE stripe_events;
    CREATE TEMP TABLE built ON COMMIT DROP AS
        SELECT indexrelid::regclass::text AS index, pg_get_indexdef(indexrelid) AS definition,
            conname AS constraint, pg_get_constraintdef(pg_constraint.oid) AS key
        FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid AND conrelid = indrelid
        WHERE indrelid = 'stripe_events'::regclass
            AND coalesce(pg_get_expr(indpred, indrelid), '') NOT LIKE '%parked%';
    DO $$
    DECLARE built record;
    BEGIN
        FOR built IN SELECT * FROM built LOOP
            IF built.constraint IS NULL THEN
                EXECUTE format('DROP INDEX %s', built.index);
            ELSE
                EXECUTE format('ALTER TABLE stripe_events DROP CONSTRAINT %I', built.constraint);
            END IF;
        END LOOP;
    END $$;
    INSERT INTO stripe_events (id, type, outcome, api_version, livemode, created, received_at, customer_id,
            subscription_id, account_id, payload)
        SELECT 'evt_' || substr(md5(n::text), 1, 24), 'customer.subscription.updated', 'applied', '2025-03-31.basil',
            false, at, at, 'cus_' || lpad(s::text, 14, '0'), 'sub_' || lpad(s::text, 24, '0'), md5(s::text)::uuid,
            sample.payload
        FROM sample, generate_series(1, $ROWS::bigint) n,
            LATERAL (SELECT n * 7919 % ($ROWS / 20) + 1 AS s,
                now() - interval '1 hour' - interval '90 days' * (1 - n / $ROWS.0) AS at) row;
    DO $$
    DECLARE built record;
    BEGIN
        FOR built IN SELECT * FROM built LOOP
            IF built.constraint IS NULL THEN
                EXECUTE built.definition;
            ELSE
                EXECUTE format('ALTER TABLE stripe_events ADD CONSTRAINT %I %s', built.constraint, built.key);
            END IF;
        END LOOP;
    END $$;
    COMMIT";

/// A [`Load`] a round of each.
pub struct Rows {
    pub count: u64,
    pub few: Vec<Load>,
    pub many: Vec<Load>,
    /// What the table and its indexes take with many, in bytes.
    pub size: String,
}

/// Measures with few rows, then with `count`, in a database of its own, which is removed.
pub fn measure(bench: &mut Bench, count: u64) -> Result<Rows> {
    let dir = bench.scratch.join("postgres-many-rows");
    let mut database = Database::start(&dir)?;
    database.fill(SUBSCRIPTIONS)?;
    let payload = bench.events.example();
    database = filled(database, FEW, &payload)?;
    let few = loads(bench, &mut database)?;
    let started = Instant::now();
    database = filled(database, count, &payload)?;
    let size = database.text("SELECT pg_size_pretty(pg_total_relation_size('stripe_events'))")?;
    println!("{count} rows, {size}, filled in {} s\n", started.elapsed().as_secs());
    let many = loads(bench, &mut database)?;
    database.stop()?;
    fs::remove_dir_all(&dir)?;
    Ok(Rows { count, few, many, size })
}

/// The database with so many rows instead of those that it had, at rest.
fn filled(mut database: Database, rows: u64, payload: &str) -> Result<Database> {
    database.execute_each("ALTER SYSTEM SET wal_level = minimal; ALTER SYSTEM SET max_wal_senders = 0")?;
    database = database.restarted()?;
    database.execute(&FILL.replace("$ROWS", &rows.to_string()).replace("$PAYLOAD", payload))?;
    database.execute_each("ALTER SYSTEM RESET ALL; VACUUM ANALYZE")?;
    database.restarted()
}

fn loads(bench: &mut Bench, database: &mut Database) -> Result<Vec<Load>> {
    let server = Server::start(&bench.scratch, &database.url(), &bench.options.log)?;
    let mut deliver = |count| deliver(&mut bench.events, database, &server, count).context("with many rows");
    let count = if bench.options.quick {
        QUICK_EVENTS
    } else {
        (deliver(QUICK_EVENTS)?.per_second * f64::from(bench.options.seconds)) as usize
    };
    let loads = (0..bench.options.rounds()).map(|_| deliver(count)).collect::<Result<_>>()?;
    server.stop()?;
    Ok(loads)
}

fn deliver(events: &mut Events, database: &mut Database, server: &Server, count: usize) -> Result<Load> {
    database.execute_each("VACUUM subscriptions; CHECKPOINT")?;
    database.mark_now()?;
    let requests = events.requests(count, server.secret());
    let load = load::deliver(server, CONNECTIONS, &requests, &["applied"])?.without_errors()?;
    check_first_deliveries(database, count)?;
    Ok(load)
}
