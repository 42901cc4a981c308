//! The privileges of the application's role and of the role that serves, as SQL.
//!
//! What stands in these lists and not in the database is left out, so that a list may name what a later migration makes.

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use super::connect::Target;
use super::installation;
use super::migrations;
use super::schema_name::{SchemaName, identifier, literal};

/// What the application may read. Everything else, payloads above all, is for subledger alone.
const READABLE: [&str; 9] = [
    "accounts",
    "account_customers",
    "subscriptions",
    "customer_features",
    "subscription_changes",
    "subscription_items",
    "account_features",
    "account_entitlements",
    "committed_changes",
];

/// What the application may write, besides: the table, the privilege, and the columns.
const WRITABLE: [(&str, &str, &[&str]); 4] = [
    ("accounts", "INSERT", &["id", "name", "stripe_customer_id"]),
    ("accounts", "UPDATE", &["name", "stripe_customer_id"]),
    (
        "subscriptions",
        "INSERT",
        &["account_id", "plan", "status", "seat_limit", "trial_end", "current_period_start", "current_period_end"],
    ),
    (
        "subscriptions",
        "UPDATE",
        &[
            "plan",
            "status",
            "seat_limit",
            "trial_end",
            "current_period_start",
            "current_period_end",
            "canceled_at",
            "ended_at",
        ],
    ),
];

/// The sequence that a server reads: the trigger that orders changes reads how far their ids are.
pub(super) const READ_SEQUENCE: &str = "subscription_changes_id_seq";

/// The roles that are given something.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    /// The application's.
    pub app: Option<String>,
    /// The one that subledger itself runs as, where another one migrates.
    pub server: Option<String>,
}

/// A relation or a function of ours.
struct Object {
    name: String,
    is_view: bool,
}

/// The statements that give each of the roles what it needs, and take everything else from it and from `PUBLIC`.
///
/// # Errors
/// If a role does not exist or could do more than it is given, a migration is pending, or the database does not answer.
pub async fn statements(target: &Target, roles: &Roles) -> Result<Vec<String>> {
    let client = target.connect_plainly().await?;
    let found = installation::look(&client, target, migrations::all()).await?;
    ensure!(found.pending().is_empty(), "a migration is pending; run `subledger migrate` first");
    let schema = target.schema();
    let (objects, functions) = (objects(&client, &schema).await?, functions(&client, &schema).await?);
    let mut statements = vec!["SET LOCAL lock_timeout = '2s'".to_owned()];
    let every: Vec<_> = objects.iter().map(|object| schema.qualify(&object.name)).collect();
    statements.push(format!("REVOKE ALL ON {} FROM PUBLIC", every.join(", ")));
    statements.extend(functions.iter().map(|function| format!("REVOKE ALL ON FUNCTION {function} FROM PUBLIC")));
    statements.extend(policies(&schema));
    if let Some(role) = &roles.app {
        refuse_mighty(&client, &schema, role, "--app-role").await?;
        statements.extend(for_app(&schema, &objects, role));
    }
    if let Some(role) = &roles.server {
        require_role(&client, role).await?;
        statements.extend(for_server(&schema, &objects, role));
    }
    Ok(statements)
}

/// Runs the statements in one transaction.
///
/// # Errors
/// If one of them fails; then none has an effect.
pub async fn apply(target: &Target, statements: &[String]) -> Result<()> {
    let client = target.connect_plainly().await?;
    let script = format!("SET client_min_messages = warning; BEGIN; {}; COMMIT", statements.join("; "));
    client.batch_execute(&script).await.map_err(|error| anyhow::anyhow!(super::hosts::chain(&error)))
}

async fn objects(client: &Client, schema: &SchemaName) -> Result<Vec<Object>> {
    let names: Vec<_> = installation::names().collect();
    let query = "SELECT relname::text, relkind = 'v' FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                 WHERE nspname = $1 AND relname = ANY ($2) AND relkind IN ('r', 'v') ORDER BY 1";
    let rows = client.query(query, &[&schema.as_str(), &names]).await?;
    Ok(rows.iter().map(|row| Object { name: row.get(0), is_view: row.get(1) }).collect())
}

/// The functions that migrations made, with the types of their parameters.
async fn functions(client: &Client, schema: &SchemaName) -> Result<Vec<String>> {
    let names: Vec<_> = migrations::all().iter().flat_map(|migration| migration.functions()).collect();
    let query = "SELECT proname::text, pg_get_function_identity_arguments(pg_proc.oid)
                 FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
                 WHERE nspname = $1 AND proname = ANY ($2) ORDER BY 1, 2";
    let rows = client.query(query, &[&schema.as_str(), &names]).await?;
    let signature = |row: &tokio_postgres::Row| format!("{}({})", schema.qualify(row.get(0)), row.get::<_, &str>(1));
    Ok(rows.iter().map(signature).collect())
}

/// Who is not the owner sees every subscription that it has the privilege to read, and changes local rows alone, unless
/// it records events.
fn policies(schema: &SchemaName) -> Vec<String> {
    let table = schema.qualify("subscriptions");
    let records = format!("(SELECT has_table_privilege({}, 'INSERT'))", literal(&schema.qualify("stripe_events")));
    let local = "stripe_subscription_id IS NULL";
    let policies = [
        ("subledger_read", "FOR SELECT USING (true)".to_owned()),
        ("subledger_insert_local", format!("FOR INSERT WITH CHECK ({local})")),
        ("subledger_update_local", format!("FOR UPDATE USING ({local}) WITH CHECK ({local})")),
        ("subledger_server", format!("USING ({records}) WITH CHECK ({records})")),
    ];
    let mut statements = vec![format!("ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")];
    for (name, rule) in policies {
        statements.push(format!("DROP POLICY IF EXISTS {name} ON {table}"));
        statements.push(format!("CREATE POLICY {name} ON {table} {rule}"));
    }
    statements
}

fn for_app(schema: &SchemaName, objects: &[Object], role: &str) -> Vec<String> {
    let role = identifier(role);
    let is_there = |name: &str| objects.iter().any(|object| object.name == name);
    let mut statements = from_nothing(schema, objects, &role);
    let readable = READABLE.iter().filter(|name| is_there(name)).map(|name| schema.qualify(name));
    statements.push(format!("GRANT SELECT ON {} TO {role}", readable.collect::<Vec<_>>().join(", ")));
    for (table, privilege, columns) in WRITABLE {
        let columns = columns.join(", ");
        statements.push(format!("GRANT {privilege} ({columns}) ON {} TO {role}", schema.qualify(table)));
    }
    statements.push(format!("GRANT TRIGGER ON {} TO {role}", schema.qualify("subscriptions")));
    statements
}

fn for_server(schema: &SchemaName, objects: &[Object], role: &str) -> Vec<String> {
    let role = identifier(role);
    let mut statements = from_nothing(schema, objects, &role);
    for object in objects {
        let privileges = match &*object.name {
            migrations::TABLE => "SELECT",
            _ if object.is_view => "SELECT",
            _ => "SELECT, INSERT, UPDATE, DELETE",
        };
        statements.push(format!("GRANT {privileges} ON {} TO {role}", schema.qualify(&object.name)));
    }
    if objects.iter().any(|object| object.name == "subscription_changes") {
        statements.push(format!("GRANT SELECT ON SEQUENCE {} TO {role}", schema.qualify(READ_SEQUENCE)));
    }
    statements
}

/// Takes everything from the role but the use of the schema. Up to PostgreSQL 14 everybody may create in `public`: that
/// right ends as well, as it does by default in newer databases.
fn from_nothing(schema: &SchemaName, objects: &[Object], role: &str) -> Vec<String> {
    let every: Vec<_> = objects.iter().map(|object| schema.qualify(&object.name)).collect();
    vec![
        format!("REVOKE ALL ON {} FROM {role}", every.join(", ")),
        format!("REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {role}"),
        format!("GRANT USAGE ON SCHEMA {schema} TO {role}"),
    ]
}

async fn require_role(client: &Client, role: &str) -> Result<()> {
    let found = client.query_opt("SELECT FROM pg_roles WHERE rolname = $1", &[&role]).await?;
    ensure!(found.is_some(), "the role {0} does not exist; create it first: CREATE ROLE {0} LOGIN", identifier(role));
    Ok(())
}

/// Stops where the role can do everything whatever is granted: it is, or may act as, an owner, a superuser or the role
/// that this runs as, or one that was granted what a server needs.
async fn refuse_mighty(client: &Client, schema: &SchemaName, role: &str, flag: &str) -> Result<()> {
    require_role(client, role).await?;
    let query = "SELECT rolname::text, rolsuper
                 FROM pg_roles
                 WHERE (rolsuper OR rolname = current_user
                        OR oid IN (SELECT nspowner FROM pg_namespace WHERE nspname = $2)
                        OR oid IN (SELECT relowner FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                                   WHERE nspname = $2 AND relname = ANY ($3))
                        OR has_table_privilege(oid, $4::text, 'INSERT')
                           AND has_table_privilege(oid, $5::text, 'SELECT')
                           AND NOT has_table_privilege(oid, $5::text, 'INSERT'))
                   AND pg_has_role($1, oid, 'MEMBER')
                   AND NOT (rolname <> $1 AND (SELECT rolsuper FROM pg_roles WHERE rolname = $1))
                 LIMIT 1";
    let names: Vec<_> = installation::names().collect();
    let (events, versions) = (schema.qualify("stripe_events"), schema.qualify(migrations::TABLE));
    if let Some(row) = client.query_opt(query, &[&role, &schema.as_str(), &names, &events, &versions]).await? {
        let (other, is_superuser): (String, bool) = (row.get(0), row.get(1));
        let kind = if is_superuser { "a superuser" } else { "the owner of the tables or subledger's own role" };
        ensure!(
            other != role,
            "{flag}: the role {} is {kind}, and could do everything; the application needs a role of its own",
            identifier(role)
        );
        anyhow::bail!("{flag}: the role {} may act as {}, which is {kind}", identifier(role), identifier(&other));
    }
    Ok(())
}
