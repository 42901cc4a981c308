//! Very many rows of `stripe_events` in little time, and what they take on disk.

use anyhow::Result;

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

/// The database with so many events, at rest.
pub fn events(mut database: Database, rows: u64, payload: &str) -> Result<Database> {
    database = fill::refilled(database, rows, payload, "n % 1000 = 0")?;
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
