//! Very many rows of `stripe_events` in little time.

use anyhow::Result;

use super::database::Database;
use super::events::{BASE62, EPOCH};

/// In one transaction that begins with TRUNCATE and under `wal_level` minimal, so that none of it goes through the
/// write-ahead log; without indexes, which are built at the end; and with the payload as the table would store it,
/// compressed once. Times go up over 120 days that ended an hour ago, and ids with them; a subscription has 20 events.
///
/// `$PARKED` says which are parked: of customers that no account has, and no delivery is about.
const FILL: &str = "
    BEGIN;
    SET LOCAL maintenance_work_mem = '1GB';
    CREATE TEMP TABLE sample (LIKE stripe_events INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION) ON COMMIT DROP;
    INSERT INTO sample (id, type, outcome, livemode, payload) VALUES ('', '', '', false, $payload$$PAYLOAD$payload$);
    TRUNCATE stripe_events, event_notifications;
    ALTER TABLE event_notifications DROP CONSTRAINT event_notifications_event_id_fkey;
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
        SELECT 'evt_1' || (SELECT string_agg(substr('$BASE62',
                    ((extract(epoch FROM at)::bigint - $EPOCH) / power % 62)::int + 1, 1), '' ORDER BY power DESC)
                FROM unnest(ARRAY[1, 62, 3844, 238328, 14776336]) power)
                || left(translate(encode(sha256(n::text::bytea), 'base64'), '+/=', ''), 18),
            'customer.subscription.updated', CASE WHEN $PARKED THEN 'parked' ELSE 'applied' END,
            '2025-03-31.basil', false, at, at + interval '1 second', 'cus_' || lpad(s::text, 14, '0'),
            'sub_' || lpad(s::text, 24, '0'), md5(s::text)::uuid, sample.payload
        FROM sample, generate_series(1, $ROWS::bigint) n,
            LATERAL (SELECT n * 7919 % ($ROWS / 20) + 1 + 1000000000 * ($PARKED)::int AS s,
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
    ALTER TABLE event_notifications ADD CONSTRAINT event_notifications_event_id_fkey
        FOREIGN KEY (event_id) REFERENCES stripe_events ON DELETE CASCADE;
    COMMIT";

/// The database with so many events instead of those that it had, those for whose number `n` the condition `parked`
/// holds parked. Its system settings are still those of the fill.
pub fn refilled(mut database: Database, rows: u64, payload: &str, parked: &str) -> Result<Database> {
    database.execute_each("ALTER SYSTEM SET wal_level = minimal; ALTER SYSTEM SET max_wal_senders = 0")?;
    database = database.restarted()?;
    let fill = FILL
        .replace("$ROWS", &rows.to_string())
        .replace("$PARKED", parked)
        .replace("$PAYLOAD", payload)
        .replace("$EPOCH", &EPOCH.to_string())
        .replace("$BASE62", BASE62);
    database.execute(&fill)?;
    Ok(database)
}

/// Reads the indexes, which a table in use has in memory: the fill has just passed much more than they are through it.
pub fn warm(database: &mut Database) -> Result<()> {
    let extension = database.execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm");
    if let Err(error) = extension {
        eprintln!("the indexes are cold: {error:#}");
        return Ok(());
    }
    let read =
        "SELECT sum(pg_prewarm(indexrelid, 'read'))::bigint FROM pg_index WHERE indrelid = 'stripe_events'::regclass";
    database.count(read, &[]).map(|_| ())
}
