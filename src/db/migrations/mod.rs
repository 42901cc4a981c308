//! The embedded migrations: which there are, what each makes, and whether any is pending.
//!
//! `docs/migrations.md` says how they are written. The table of those that ran is diesel's, so that
//! `diesel migration run` does the same by hand.

mod run;

use std::sync::LazyLock;

use diesel::QueryResult;
use diesel::sql_types::{Array, Bool, Nullable, Text};
use diesel_async::RunQueryDsl;
use include_dir::{Dir, include_dir};

use super::Conn;

pub use run::{run, run_those};

/// The table in which diesel keeps the versions that ran.
pub const TABLE: &str = "__diesel_schema_migrations";

static FOLDER: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/migrations");

static MIGRATIONS: LazyLock<Vec<Migration>> = LazyLock::new(|| {
    let mut migrations: Vec<_> = FOLDER.dirs().filter_map(Migration::embedded).collect();
    migrations.sort_unstable_by(|one, other| one.version.cmp(&other.version));
    migrations
});

/// An embedded migration.
#[derive(Clone, Debug)]
pub struct Migration {
    /// The name of its folder.
    pub name: &'static str,
    /// The version, in the form in which diesel stores it.
    pub version: String,
    /// The statements.
    pub up: &'static str,
    /// Whether all statements run in one transaction. If not, there is a single one.
    pub is_transactional: bool,
}

/// A relation that a migration makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made<'a> {
    /// A table of this name.
    Table(&'a str),
    /// A view of this name.
    View(&'a str),
    /// An index.
    Index {
        /// Its own name.
        name: &'a str,
        /// The name of its table.
        table: &'a str,
    },
}

impl<'a> Made<'a> {
    /// The relation's name: no two relations of one schema have the same.
    #[must_use]
    pub fn name(&self) -> &'a str {
        match self {
            Self::Table(name) | Self::View(name) | Self::Index { name, .. } => name,
        }
    }
}

/// Every migration, in the order in which they run.
#[must_use]
pub fn all() -> &'static [Migration] {
    &MIGRATIONS
}

impl Migration {
    fn embedded(folder: &'static Dir<'static>) -> Option<Self> {
        let name = folder.path().to_str()?;
        let file = |file| folder.get_file(folder.path().join(file)).and_then(|file| file.contents_utf8());
        let metadata: String = file("metadata.toml").unwrap_or("").split_whitespace().collect();
        Some(Self {
            name,
            version: name.split('_').next()?.replace('-', ""),
            up: file("up.sql")?,
            is_transactional: !metadata.contains("run_in_transaction=false"),
        })
    }

    /// The functions that it makes, by the `CREATE FUNCTION` statements of its text.
    #[must_use]
    pub fn functions(&self) -> Vec<&'static str> {
        let words: Vec<_> = words(self.up).collect();
        let is_named = |pair: &&[&'static str]| pair[0].eq_ignore_ascii_case("FUNCTION");
        words.windows(2).filter(is_named).map(|pair| pair[1]).collect()
    }

    /// The relations that it makes, by the `CREATE` statements of its text.
    #[must_use]
    pub fn makes(&self) -> Vec<Made<'static>> {
        let mut made = Vec::new();
        let mut words = words(self.up).peekable();
        while let Some(word) = words.next() {
            if !word.eq_ignore_ascii_case("CREATE") {
                continue;
            }
            let is_modifier = |word: &&str| {
                ["OR", "REPLACE", "UNIQUE", "UNLOGGED", "RECURSIVE"]
                    .iter()
                    .any(|other| word.eq_ignore_ascii_case(other))
            };
            while words.next_if(is_modifier).is_some() {}
            let Some(kind) = words.next() else { break };
            let is_modifier = |word: &&str| {
                ["CONCURRENTLY", "IF", "NOT", "EXISTS"].iter().any(|other| word.eq_ignore_ascii_case(other))
            };
            while words.next_if(is_modifier).is_some() {}
            let mut name = || words.next();
            made.extend(match kind.to_ascii_uppercase().as_str() {
                "TABLE" => name().map(Made::Table),
                "VIEW" => name().map(Made::View),
                "INDEX" => name().zip(words.nth(1)).map(|(name, table)| Made::Index { name, table }),
                _ => None,
            });
        }
        made
    }
}

/// The words of SQL text without its comments; brackets and such separate words.
fn words(sql: &'static str) -> impl Iterator<Item = &'static str> {
    let lines = sql.lines().map(|line| line.split_once("--").map_or(line, |(statement, _)| statement));
    let is_separator = |char: char| char.is_whitespace() || matches!(char, '(' | ')' | ';' | ',');
    lines.flat_map(move |line| line.split(is_separator)).filter(|word| !word.is_empty())
}

/// Whether a migration of this program has not run in the schema of this connection.
///
/// # Errors
/// Where the database does not answer.
pub async fn is_pending(conn: &mut Conn) -> QueryResult<bool> {
    #[derive(diesel::QueryableByName)]
    struct Table {
        #[diesel(sql_type = Nullable<Text>)]
        name: Option<String>,
    }
    #[derive(diesel::QueryableByName)]
    struct Applied {
        #[diesel(sql_type = Bool)]
        all: bool,
    }
    // In the first schema of the search path: that of another installation may follow.
    let table = "SELECT to_regclass(format('%I.%I', current_schema(), $1::text))::text AS name";
    let table: Table = diesel::sql_query(table).bind::<Text, _>(TABLE).get_result(conn).await?;
    if table.name.is_none() {
        return Ok(true);
    }
    let versions: Vec<_> = all().iter().map(|migration| migration.version.as_str()).collect();
    let applied: Applied =
        diesel::sql_query("SELECT $1 <@ array_agg(version::text) IS TRUE AS all FROM __diesel_schema_migrations")
            .bind::<Array<Text>, _>(versions)
            .get_result(conn)
            .await?;
    Ok(!applied.all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_is_embedded_and_those_outside_of_a_transaction_have_one_statement() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
        folders.sort();
        let names: Vec<_> = folders.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(all().iter().map(|migration| migration.name).collect::<Vec<_>>(), names);
        for migration in all().iter().filter(|migration| !migration.is_transactional) {
            let text: String = words(migration.up).collect::<Vec<_>>().join(" ");
            let is_single = text.starts_with("DO ") || migration.up.matches(';').count() == 1;
            assert!(is_single, "{}: PostgreSQL would run several statements in one transaction", migration.name);
        }
    }

    #[test]
    fn what_a_migration_makes_is_read_from_its_statements() {
        let up = "-- CREATE TABLE no (id int);
            CREATE TABLE one (id int REFERENCES two); CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS one_idx
                ON one (id);
            CREATE OR REPLACE VIEW three AS SELECT 1; CREATE FUNCTION f() RETURNS int AS 'SELECT 1';
            CREATE TABLE IF NOT EXISTS four(id int)";
        let migration = Migration { name: "1_a", version: "1".to_owned(), up, is_transactional: true };
        let index = Made::Index { name: "one_idx", table: "one" };
        assert_eq!(migration.makes(), [Made::Table("one"), index, Made::View("three"), Made::Table("four")]);
        assert_eq!(all()[0].version, "20261121000001");
        assert!(all()[0].makes().contains(&Made::Table("stripe_events")));
    }
}
