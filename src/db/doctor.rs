//! What `doctor` asks of the database.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::overview::Waiting;
use super::{Conn, grants, installation, migrations};

/// The relations of our schema, as `ours`: with the names that migrations make as `$1`, the tables, the views, and the
/// sequences that belong to the tables.
const OURS: &str = "
    ours AS (
        SELECT oid, relname::text AS name, relkind, relacl, reloptions,
               CASE relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' ELSE 'table' END AS kind
        FROM pg_class AS relation
        WHERE relnamespace = to_regnamespace(quote_ident(current_schema()))
          AND CASE relkind
                  WHEN 'S' THEN EXISTS (SELECT FROM pg_depend JOIN pg_class AS owner ON owner.oid = refobjid
                                        WHERE classid = 'pg_class'::regclass AND objid = relation.oid
                                          AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')
                                          AND owner.relnamespace = relation.relnamespace AND owner.relname = ANY ($1))
                  ELSE relkind IN ('r', 'v') AND relname = ANY ($1)
              END
    )";

/// One of our relations and what is wrong with it.
#[derive(Clone, Debug, QueryableByName)]
pub struct RelationProblem {
    /// `table`, `view` or `sequence`.
    #[diesel(sql_type = Text)]
    pub kind: String,
    /// Its name.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// A privilege, a setting or a number of rows.
    #[diesel(sql_type = Text)]
    pub detail: String,
}

/// A transaction that has been open for long.
#[derive(Clone, Debug, QueryableByName)]
pub struct LongTransaction {
    /// Who holds it open: a process and its role, or a prepared transaction's name.
    #[diesel(sql_type = Text)]
    pub holder: String,
    /// Since when.
    #[diesel(sql_type = Timestamptz)]
    pub since: DateTime<Utc>,
}

#[derive(QueryableByName)]
struct Found {
    #[diesel(sql_type = Bool)]
    found: bool,
}

#[derive(QueryableByName)]
struct At {
    #[diesel(sql_type = Nullable<Timestamptz>)]
    at: Option<DateTime<Utc>>,
}

/// The parked events that were received longer than `secs` ago.
pub async fn parked_longer_than(conn: &mut Conn, secs: i64) -> QueryResult<Waiting> {
    diesel::sql_query(
        "SELECT count(*) AS events, min(received_at) AS oldest FROM stripe_events
         WHERE outcome = 'parked' AND received_at < now() - $1 * interval '1 second'",
    )
    .bind::<BigInt, _>(secs)
    .get_result(conn)
    .await
}

/// The events of the last day that belong to the mode `livemode`; those of connected accounts do not count, since a
/// Connect endpoint in live mode is sent test events too.
pub async fn events_of_mode(conn: &mut Conn, livemode: bool) -> QueryResult<Waiting> {
    diesel::sql_query(
        "SELECT count(*) AS events, min(received_at) AS oldest FROM stripe_events
         WHERE received_at > now() - interval '1 day' AND livemode = $1 AND connect_account IS NULL",
    )
    .bind::<Bool, _>(livemode)
    .get_result(conn)
    .await
}

/// When the last event was recorded.
pub async fn last_event_at(conn: &mut Conn) -> QueryResult<Option<DateTime<Utc>>> {
    let last: At = diesel::sql_query("SELECT max(received_at) AS at FROM stripe_events").get_result(conn).await?;
    Ok(last.at)
}

/// The privileges that this session's role lacks and a server needs.
pub async fn missing_privileges(conn: &mut Conn) -> QueryResult<Vec<RelationProblem>> {
    // A server only reads which migrations ran, and only the one sequence.
    let query = format!(
        "SELECT kind, name, string_agg(privilege, ', ' ORDER BY privilege) AS detail
         FROM ours, unnest({needed}) AS privilege
         WHERE NOT has_table_privilege(oid, privilege) AND (name <> '{versions}' OR privilege = 'SELECT')
         GROUP BY kind, name
         UNION ALL
         SELECT kind, name, 'SELECT' FROM ours WHERE name = '{sequence}' AND NOT has_table_privilege(oid, 'SELECT')
         ORDER BY name",
        needed = installation::NEEDED_PRIVILEGES,
        versions = migrations::TABLE,
        sequence = grants::READ_SEQUENCE,
    );
    problems(conn, &query).await
}

/// The privileges of `PUBLIC`, also those on single columns.
pub async fn public_privileges(conn: &mut Conn) -> QueryResult<Vec<RelationProblem>> {
    let query = "SELECT kind, name, string_agg(DISTINCT privilege_type, ', ' ORDER BY privilege_type) AS detail
         FROM ours
         CROSS JOIN LATERAL (SELECT relacl UNION ALL SELECT attacl FROM pg_attribute WHERE attrelid = oid) AS lists (acl)
         CROSS JOIN aclexplode(acl)
         WHERE grantee = 0
         GROUP BY kind, name ORDER BY name";
    problems(conn, query).await
}

async fn problems(conn: &mut Conn, query: &str) -> QueryResult<Vec<RelationProblem>> {
    let names: Vec<_> = installation::names().collect();
    diesel::sql_query(format!("WITH {OURS} {query}")).bind::<Array<Text>, _>(names).load(conn).await
}

/// Whether autovacuum runs at all.
pub async fn autovacuum_is_on(conn: &mut Conn) -> QueryResult<bool> {
    let on: Found = diesel::sql_query(
        "SELECT current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean AS found",
    )
    .get_result(conn)
    .await?;
    Ok(on.found)
}

/// Our tables for which autovacuum is switched off.
pub async fn tables_without_autovacuum(conn: &mut Conn) -> QueryResult<Vec<RelationProblem>> {
    let query = "SELECT kind, name, option AS detail
         FROM ours CROSS JOIN unnest(reloptions) AS option
         WHERE option LIKE 'autovacuum\\_enabled=%' AND NOT split_part(option, '=', 2)::boolean
         ORDER BY name";
    problems(conn, query).await
}

/// Our tables with far more dead rows than autovacuum leaves behind when it keeps up.
pub async fn bloated_tables(conn: &mut Conn) -> QueryResult<Vec<RelationProblem>> {
    let query = "SELECT kind, name, n_dead_tup || ' dead rows beside ' || n_live_tup || ' live ones' AS detail
         FROM ours JOIN pg_stat_user_tables ON relid = oid
         WHERE n_dead_tup > 100000 + 0.5 * n_live_tup
         ORDER BY name";
    problems(conn, query).await
}

/// The oldest transaction that has written and has been open for longer than `secs`, as far as this role may see.
pub async fn long_transaction(conn: &mut Conn, secs: i64) -> QueryResult<Option<LongTransaction>> {
    diesel::sql_query(
        "SELECT holder, since FROM (
             SELECT format('process %s of role %s', pid, usename) AS holder, xact_start AS since
             FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
             UNION ALL
             SELECT format('prepared transaction %L', gid), prepared FROM pg_prepared_xacts
         ) AS transaction
         WHERE since < now() - $1 * interval '1 second' ORDER BY since LIMIT 1",
    )
    .bind::<BigInt, _>(secs)
    .get_result(conn)
    .await
    .optional()
}

/// Changes that are to be pushed and have not been for more than `secs`: the number of accounts, and the time of the
/// oldest change. None where nothing is pushed.
pub async fn pending_changes(conn: &mut Conn, secs: i64) -> QueryResult<Waiting> {
    let exists: Found =
        diesel::sql_query("SELECT to_regclass('change_push_accounts') IS NOT NULL AS found").get_result(conn).await?;
    if !exists.found {
        return Ok(Waiting::default());
    }
    diesel::sql_query(
        "SELECT count(*) AS events, min(changed_at) AS oldest
         FROM change_push_accounts
         JOIN subscription_changes ON subscription_changes.id = next_change_id
         WHERE changed_at < now() - $1 * interval '1 second'",
    )
    .bind::<BigInt, _>(secs)
    .get_result(conn)
    .await
}
