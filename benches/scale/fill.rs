//! Very many rows of `stripe_events` in little time, and what they take on disk.

use anyhow::Result;

use crate::read::{LARGE_ACCOUNT, OLD_INVOICE};
use crate::report::Column;
use crate::support::database::Database;
use crate::support::fill;

const SIZES: &str = "
    SELECT 'heap', pg_relation_size('stripe_events')
    UNION ALL
    SELECT 'out of line (TOAST)', pg_total_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'stripe_events'::regclass
    UNION ALL
    (SELECT indexrelid::regclass::text, pg_relation_size(indexrelid) FROM pg_index
     WHERE indrelid = 'stripe_events'::regclass ORDER BY 2 DESC)
    UNION ALL
    SELECT 'all of it', pg_total_relation_size('stripe_events')";

/// What slows reads down if they look at it: failures of events that were applied since, and as many that still fail as
/// after an incident; an invoice that is older than all other events; an account with many subscriptions.
const BURDEN: &str = r#"
    INSERT INTO event_failures (event_id, type, failed_at, error, created, customer_id, subscription_id, is_open)
        SELECT id, type, received_at - interval '1 minute', 'a statement failed', created, customer_id, subscription_id, false
        FROM stripe_events ORDER BY received_at DESC LIMIT $FAILURES * 19 / 20;
    INSERT INTO event_failures (event_id, type, failed_at, error, created, customer_id, subscription_id)
        SELECT 'evt_1Failing' || n, 'customer.subscription.updated', now() - n * interval '1 second', 'a statement failed',
            now() - n * interval '1 second', 'cus_failing' || n, 'sub_failing' || n
        FROM generate_series(1, $FAILURES / 20) n;
    INSERT INTO stripe_events (id, type, outcome, livemode, created, received_at, object_id, payload)
        SELECT 'evt_1OldInvoice', 'invoice.paid', 'ignored', false, oldest, oldest, '$OLD_INVOICE', '{}'
        FROM (SELECT min(received_at) - interval '1 day' AS oldest FROM stripe_events) AS events;
    INSERT INTO accounts (id, name, stripe_customer_id) VALUES ('$LARGE_ACCOUNT', 'Many subscriptions', 'cus_many');
    INSERT INTO subscriptions (account_id, plan, status, stripe_subscription_id, stripe_customer_id, stripe_price_id, items)
        SELECT '$LARGE_ACCOUNT', 'team', 'active', 'sub_many' || n, 'cus_many', 'price_Bench',
            '[{"plan": "team", "quantity": 8, "stripe_price_id": "price_Bench"}]'
        FROM generate_series(1, 500) n"#;

/// At most so many failures, one for each event.
const MAX_FAILURES: u64 = 200_000;

/// The database with so many events, at rest.
pub fn events(mut database: Database, rows: u64, payload: &str) -> Result<Database> {
    database = fill::refilled(database, rows, payload, "n % 1000 = 0")?;
    let burden = BURDEN
        .replace("$FAILURES", &rows.min(MAX_FAILURES).to_string())
        .replace("$OLD_INVOICE", OLD_INVOICE)
        .replace("$LARGE_ACCOUNT", LARGE_ACCOUNT);
    database.execute(&burden)?;
    // No checkpoint but our own, so that what is measured after one is the same every time.
    database.execute_each(
        "ALTER SYSTEM RESET ALL; ALTER SYSTEM SET max_wal_size = '16GB'; ALTER SYSTEM SET checkpoint_timeout = '1h';
         VACUUM ANALYZE",
    )?;
    database = database.restarted()?;
    fill::warm(&mut database)?;
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
