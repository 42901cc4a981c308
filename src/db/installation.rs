//! What stands in the database before anything is done to it, and the reasons to stop.
//!
//! Every command looks first. What it refuses it says in one line, and changes nothing.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::Client;

use super::connect::Target;
use super::migrations::{self, Made, Migration};
use super::schema_name::{SchemaName, identifier};

/// The oldest server that is supported, as `server_version_num`.
const OLDEST_SERVER: i32 = 140_000;

/// SQL: the privileges that a server needs on a relation of `pg_class`.
pub(super) const NEEDED_PRIVILEGES: &str = "CASE relkind WHEN 'v' THEN '{SELECT}'::text[]
                                                         WHEN 'r' THEN '{SELECT,INSERT,UPDATE,DELETE}' ELSE '{}' END";

/// What was found.
#[derive(Debug)]
pub struct Installation<'a> {
    migrations: &'a [Migration],
    schema: SchemaName,
    server: Server,
    relations: HashMap<String, Relation>,
    applied: HashSet<String>,
}

/// The server, the database, and what the role may do in it.
#[derive(Debug)]
struct Server {
    role: String,
    database: String,
    may_create_schemas: bool,
    /// The schema's, if it exists.
    schema: Option<u32>,
    may_create: bool,
}

/// A relation of the schema with one of our names.
#[derive(Debug)]
struct Relation {
    kind: i8,
    /// Of an index: the name of its table.
    table: Option<String>,
    is_owned: bool,
    /// The privileges of a server that the role lacks.
    lacks: Vec<String>,
}

/// Stops a command where the database or the schema is not one that it can work on.
///
/// # Errors
/// One line that says why; or the database is out of reach.
pub async fn check(target: &Target) -> Result<()> {
    let client = target.connect_plainly().await.context("cannot reach the database")?;
    let found = look(&client, target, migrations::all()).await?;
    if found.pending().is_empty() { found.require_use() } else { Ok(()) }
}

/// Why every command stops, in one line; `None` if the database and the schema are ones that subledger can work on, or
/// if the database is out of reach.
pub async fn refusal(target: &Target) -> Option<String> {
    let client = target.connect_plainly().await.ok()?;
    look(&client, target, migrations::all()).await.err().map(|error| format!("{error:#}"))
}

/// Looks for what `migrations` make, and stops where the database or the schema is not one that subledger can work on.
///
/// # Errors
/// One line that says why; or the database does not answer.
pub(super) async fn look<'a>(
    client: &Client,
    target: &Target,
    migrations: &'a [Migration],
) -> Result<Installation<'a>> {
    let schema = target.schema();
    let server = server(client, &schema).await?;
    require_kept_search_path(client, target, &server).await?;
    if !target.names_schema() {
        refuse_other_installation(client, &schema).await?;
    }
    let relations = relations(client, server.schema, migrations).await?;
    let applied = applied(client, &schema, &server, &relations).await?;
    let found = Installation { migrations, schema, server, relations, applied };
    found.refuse_foreign()?;
    Ok(found)
}

async fn server(client: &Client, schema: &SchemaName) -> Result<Server> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int,
                    pg_encoding_to_char(encoding)::text, current_user::text, datname::text,
                    has_database_privilege(datname, 'CREATE'), pg_namespace.oid,
                    COALESCE(has_schema_privilege(pg_namespace.oid, 'USAGE'), true),
                    COALESCE(has_schema_privilege(pg_namespace.oid, 'CREATE'), true)
             FROM pg_database LEFT JOIN pg_namespace ON nspname = $1
             WHERE datname = current_database()",
            &[&schema.as_str()],
        )
        .await?;
    let (version, number): (String, i32) = (row.get(0), row.get(1));
    ensure!(number >= OLDEST_SERVER, "the server is PostgreSQL {version}; subledger needs 14 or newer");
    let (encoding, role, database): (String, String, String) = (row.get(2), row.get(3), row.get(4));
    ensure!(
        encoding == "UTF8",
        "the encoding of the database {} is {encoding}; subledger needs a database whose encoding is UTF8",
        identifier(&database)
    );
    let may_use: bool = row.get(7);
    ensure!(
        may_use,
        "the role {role} may not use the schema {schema}: its owner has to run GRANT USAGE ON SCHEMA {schema} TO {role}",
        role = identifier(&role)
    );
    Ok(Server { role, database, may_create_schemas: row.get(5), schema: row.get(6), may_create: row.get(8) })
}

/// Stops where a pooler hands each transaction to any session: statements would find the tables of another schema.
async fn require_kept_search_path(client: &Client, target: &Target, server: &Server) -> Result<()> {
    let schema = target.schema();
    let query = "SELECT pg_backend_pid(), starts_with(reset_val || ',', quote_ident($1) || ',')
                 FROM pg_settings WHERE name = 'search_path'";
    let row = client.query_one(query, &[&schema.as_str()]).await?;
    let (process, is_default): (i32, bool) = (row.get(0), row.get(1));
    if is_default || !target.names_schema() {
        return Ok(());
    }
    let other = target.connect_plainly().await.context("cannot reach the database")?;
    let process_of = async |client: &Client| anyhow::Ok(client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0));
    let other_process: i32 = process_of(&other).await?;
    ensure!(
        other_process != process && process_of(client).await? == process,
        "DATABASE_SCHEMA: the pooler gives each transaction another session and so loses the search path; run ALTER \
         ROLE {role} IN DATABASE {database} SET search_path = {schema}, public once, and have the pooler reconnect",
        role = identifier(&server.role),
        database = identifier(&server.database),
    );
    Ok(())
}

/// Stops where tables stand in another schema of the search path, and `DATABASE_SCHEMA` does not say which to use.
async fn refuse_other_installation(client: &Client, schema: &SchemaName) -> Result<()> {
    let candidates = client
        .query(
            "SELECT nspname::text
             FROM unnest(current_schemas(false)) AS path (nspname)
             WHERE nspname <> $1
               AND to_regclass(format('%I.stripe_events', nspname)) IS NOT NULL
               AND has_table_privilege(to_regclass(format('%I.%I', nspname, $2::text)), 'SELECT')",
            &[&schema.as_str(), &migrations::TABLE],
        )
        .await?;
    for row in candidates {
        let other: String = row.get(0);
        let Ok(other) = SchemaName::new(&other) else { continue };
        if versions(client, &other).await?.contains(&first().version) {
            bail!(
                "DATABASE_SCHEMA is not set, and an installation of subledger stands in the schema {other}, which is \
                 on the search path; set DATABASE_SCHEMA={name} to use it, or DATABASE_SCHEMA={schema} to use that schema",
                name = other.as_str(),
                schema = schema.as_str(),
            );
        }
    }
    Ok(())
}

/// The names of all relations that migrations make, and of the table of those that ran.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let tables = migrations::all().iter().flat_map(Migration::makes);
    tables.map(|made| made.name()).chain([migrations::TABLE])
}

fn first() -> &'static Migration {
    &migrations::all()[0]
}

async fn versions(client: &Client, schema: &SchemaName) -> Result<HashSet<String>> {
    let rows = client.query(&format!("SELECT version::text FROM {}", schema.qualify(migrations::TABLE)), &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn relations(
    client: &Client,
    schema: Option<u32>,
    migrations: &[Migration],
) -> Result<HashMap<String, Relation>> {
    let made: Vec<_> = migrations.iter().flat_map(Migration::makes).collect();
    let mut names: Vec<_> = made.iter().map(Made::name).collect();
    names.push(migrations::TABLE);
    let rows = client
        .query(
            &format!(
                "SELECT relname::text, relkind, pg_has_role(relowner, 'USAGE'),
                        (SELECT relname::text FROM pg_index JOIN pg_class AS owner ON owner.oid = indrelid
                         WHERE indexrelid = relation.oid),
                        ARRAY(SELECT privilege FROM unnest({NEEDED_PRIVILEGES}) AS privilege
                              WHERE NOT has_table_privilege(relation.oid, privilege))
                 FROM pg_class AS relation
                 WHERE relnamespace = $1 AND relname = ANY ($2)"
            ),
            &[&schema.unwrap_or(0), &names],
        )
        .await?;
    let relation = |row: &tokio_postgres::Row| {
        (row.get(0), Relation { kind: row.get(1), is_owned: row.get(2), table: row.get(3), lacks: row.get(4) })
    };
    Ok(rows.iter().map(relation).collect())
}

async fn applied(
    client: &Client,
    schema: &SchemaName,
    server: &Server,
    relations: &HashMap<String, Relation>,
) -> Result<HashSet<String>> {
    let Some(table) = relations.get(migrations::TABLE) else {
        return Ok(HashSet::new());
    };
    ensure!(
        !table.lacks.iter().any(|privilege| privilege == "SELECT"),
        "the role {role} may not read {table}, in which is written which migrations ran: set DATABASE_SCHEMA to \
         another schema, or have its owner run GRANT SELECT ON {table} TO {role}",
        role = identifier(&server.role),
        table = schema.qualify(migrations::TABLE)
    );
    versions(client, schema).await
}

impl<'a> Installation<'a> {
    /// The migrations that have not run, in their order.
    pub(super) fn pending(&self) -> Vec<&'a Migration> {
        self.migrations.iter().filter(|migration| !self.applied.contains(&migration.version)).collect()
    }

    /// Whether the schema exists.
    pub(super) fn has_schema(&self) -> bool {
        self.server.schema.is_some()
    }

    /// What a pending migration would make is there, though none that ran has made it.
    fn refuse_foreign(&self) -> Result<()> {
        let (applied, pending): (Vec<_>, Vec<_>) =
            self.migrations.iter().partition(|migration| self.applied.contains(&migration.version));
        let ours: Vec<_> = applied.into_iter().flat_map(Migration::makes).collect();
        let is_ours = |made: &Made<'_>| ours.iter().any(|other| other.name() == made.name());
        let found = pending.into_iter().flat_map(Migration::makes).filter(|made| !is_ours(made)).find_map(|made| {
            let relation = self.relations.get(made.name())?;
            // An index that was built before a crash may be there already.
            let is_left = matches!(made, Made::Index { table, .. } if relation.table.as_deref() == Some(table));
            (!is_left).then_some((made, relation))
        });
        let Some((made, relation)) = found else { return Ok(()) };
        bail!(
            "the schema {schema} holds a {kind} {name} that is not subledger's; set DATABASE_SCHEMA to a schema of \
             subledger's own, which is created when absent",
            schema = self.schema,
            kind = relation.kind(),
            name = identifier(made.name())
        )
    }

    /// Stops where the role may not do what a server does.
    pub(super) fn require_use(&self) -> Result<()> {
        let role = identifier(&self.server.role);
        for (name, relation) in &self.relations {
            ensure!(
                relation.lacks.is_empty() || name == migrations::TABLE,
                "the role {role} may not {privileges} on {relation}: the owner has to run \
                 `subledger grants --server-role {plain} --apply`",
                privileges = relation.lacks.join(", "),
                relation = self.schema.qualify(name),
                plain = self.server.role,
            );
        }
        Ok(())
    }

    /// Stops where the role may not run migrations.
    pub(super) fn require_migrate(&self) -> Result<()> {
        let (schema, role) = (&self.schema, identifier(&self.server.role));
        if self.server.schema.is_none() {
            ensure!(
                self.server.may_create_schemas,
                "the role {role} may not create the schema {schema}; a superuser has to run CREATE SCHEMA {schema} \
                 AUTHORIZATION {role}, or GRANT CREATE ON DATABASE {database} TO {role}",
                database = identifier(&self.server.database)
            );
        }
        ensure!(
            self.server.may_create,
            "the role {role} may not create tables in the schema {schema}; its owner has to run GRANT CREATE ON SCHEMA \
             {schema} TO {role}, or set DATABASE_SCHEMA to a schema of the role's own"
        );
        let owned_by_another =
            self.relations.iter().find(|(name, relation)| !relation.is_owned && *name != migrations::TABLE);
        if let Some((name, _)) = owned_by_another {
            bail!(
                "a migration is pending, and the role {role} does not own {table}: run `subledger migrate` as its owner",
                table = schema.qualify(name)
            );
        }
        let versions = self.relations.get(migrations::TABLE);
        ensure!(
            versions.is_none_or(|table| !table.lacks.iter().any(|privilege| privilege == "INSERT")),
            "the role {role} may not insert into {table}, in which is written which migrations ran: set DATABASE_SCHEMA \
             to another schema, or run `subledger migrate` as its owner",
            table = schema.qualify(migrations::TABLE)
        );
        Ok(())
    }
}

impl Relation {
    fn kind(&self) -> &'static str {
        match u8::try_from(self.kind) {
            Ok(b'r' | b'p') => "table",
            Ok(b'v') => "view",
            Ok(b'm') => "materialized view",
            Ok(b'i' | b'I') => "index",
            Ok(b'S') => "sequence",
            Ok(b'f') => "foreign table",
            _ => "relation",
        }
    }
}
