//! Very many rows of `stripe_events` in little time, and what they take on disk.

use anyhow::Result;

use crate::report::Column;
use crate::support::database::Database;

/// In one transaction that begins with TRUNCATE and under `wal_level` minimal, so that none of it goes through the
/// write-ahead log; without indexes, which are built at the end; and with the payload as the table would store it,
/// compressed once. Ids are in no order; times go up over 120 days that ended an hour ago; a subscription has 20
/// events; one in a thousand is parked.
const FILL: &str = "
    BEGIN;
    SET LOCAL maintenance_work_mem = '1GB';
    CREATE TEMP TABLE sample (LIKE stripe_events INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION) ON COMMIT DROP;
    INSERT INTO sample (id, type, outcome, livemode, payload) VALUES ('', '', '', false, $payload$$PAYLOAD$payload$);
    TRUNCATE stripe_events;
    CREATE TEMP TABLE built ON COMMIT DROP AS
        SELECT indexrelid::regclass::text AS index, conname AS constraint, pg_get_constraintdef(pg_constraint.oid) AS key,
            pg_get_indexdef(indexrelid) AS definition
        FROM pg_index LEFT JOIN pg_constraint ON conindid = indexrelid AND conrelid = indrelid
        WHERE indrelid = 'stripe_events'::regclass;
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
        SELECT 'evt_1' || left(translate(encode(sha256(n::text::bytea), 'base64'), '+/=', ''), 23),
            'customer.subscription.updated', CASE WHEN n % 1000 = 0 THEN 'parked' ELSE 'applied' END,
            '2025-03-31.basil', false, at, at + interval '1 second', 'cus_' || lpad(s::text, 14, '0'),
            'sub_' || lpad(s::text, 24, '0'), md5(s::text)::uuid, sample.payload
        FROM sample, generate_series(1, $ROWS::bigint) n,
            LATERAL (SELECT n * 7919 % ($ROWS / 20) + 1 + $LINKED * (n % 1000 = 0)::int AS s,
                now() - interval '1 hour' - interval '120 days' * (1 - n / $ROWS.0) AS at) row;
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

const SIZES: &str = "
    SELECT 'heap', pg_relation_size('stripe_events')
    UNION ALL
    SELECT 'out of line (TOAST)', pg_total_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'stripe_events'::regclass
    UNION ALL
    (SELECT indexrelid::regclass::text, pg_relation_size(indexrelid) FROM pg_index
     WHERE indrelid = 'stripe_events'::regclass ORDER BY 2 DESC)
    UNION ALL
    SELECT 'all of it', pg_total_relation_size('stripe_events')";

/// The database with so many events, at rest.
pub fn events(mut database: Database, rows: u64, payload: &str) -> Result<Database> {
    database.execute_each("ALTER SYSTEM SET wal_level = minimal; ALTER SYSTEM SET max_wal_senders = 0")?;
    database = database.restarted()?;
    let fill = FILL.replace("$ROWS", &rows.to_string()).replace("$PAYLOAD", payload);
    // The parked ones are of customers that no account has, and no delivery is about.
    database.execute(&fill.replace("$LINKED", "1000000000"))?;
    // No checkpoint but our own, so that what is measured after one is the same every time.
    database.execute_each(
        "ALTER SYSTEM RESET ALL; ALTER SYSTEM SET max_wal_size = '16GB'; ALTER SYSTEM SET checkpoint_timeout = '1h';
         VACUUM ANALYZE",
    )?;
    database = database.restarted()?;
    database.execute("CHECKPOINT")?;
    Ok(database)
}

/// Bytes an event of the table and of each index.
pub fn sizes(database: &mut Database, rows: u64, column: &mut Column) -> Result<()> {
    for (name, bytes) in database.named_counts(SIZES)? {
        column.add(format!("disk, bytes an event: {name}"), format!("{:.0}", bytes as f64 / rows as f64));
    }
    Ok(())
}
