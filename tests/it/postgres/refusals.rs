//! What subledger cannot work on it refuses in one line, before anything is changed.

use tokio_postgres::Client;

use crate::support::app::WEBHOOK_SECRET;
use crate::support::binary::{Server, run, subledger, text};
use crate::support::database::{Database, connect};

/// Every command that needs the database.
const COMMANDS: [&[&str]; 4] = [&["migrate"], &["serve"], &["prune", "--older-than", "90d"], &["replay", "--failed"]];

fn command(url: &str, args: &[&str]) -> std::process::Command {
    let mut command = subledger(&std::env::temp_dir());
    command.args(args).env("DATABASE_URL", url).env("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET);
    command.env("ADMIN_TOKEN", "a-token-of-a-test").env("BIND_ADDR", "127.0.0.1:0");
    command
}

/// Each of the commands fails with one line that holds all of `words`.
#[track_caller]
fn assert_refused(url: &str, commands: &[&[&str]], words: &[&str]) {
    for args in commands {
        let ended = run(&mut command(url, args));
        let error = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{args:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
        for word in words {
            assert!(error.contains(word), "{args:?}: {word:?} is not in {error:?}");
        }
    }
}

/// Everything that is not PostgreSQL's own, and what it looks like.
async fn catalog(sql: &Client) -> String {
    let query = "SELECT COALESCE(string_agg(concat_ws(' ', nspname, relname, relkind, relacl, attname, atttypid), E'\n'
                        ORDER BY nspname, relname, attnum), '')
                 FROM pg_namespace LEFT JOIN pg_class ON relnamespace = pg_namespace.oid
                 LEFT JOIN pg_attribute ON attrelid = pg_class.oid
                 WHERE nspname !~ '^pg_|^information_schema$'";
    sql.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_schema_holds_relations_of_others_with_our_names_every_command_stops_before_a_change() {
    for (made, kind, name) in [
        ("CREATE TABLE accounts (id serial PRIMARY KEY, balance numeric)", "table", "accounts"),
        ("CREATE TABLE event_failures (id int)", "table", "event_failures"),
        ("CREATE VIEW subscriptions AS SELECT 1 AS id", "view", "subscriptions"),
        ("CREATE MATERIALIZED VIEW stripe_events AS SELECT 1 AS id", "materialized view", "stripe_events"),
        (
            "CREATE TABLE mine (id int); CREATE INDEX stripe_events_type_idx ON mine (id)",
            "index",
            "stripe_events_type_idx",
        ),
        // An application that uses Diesel itself.
        (
            "CREATE TABLE accounts (id int);
             CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY, run_on timestamp DEFAULT now());
             INSERT INTO __diesel_schema_migrations VALUES ('00000000000000'), ('20240101000000')",
            "table",
            "accounts",
        ),
    ] {
        let database = Database::empty();
        let sql = database.client().await;
        sql.batch_execute(made).await.unwrap();
        let before = catalog(&sql).await;
        assert_refused(&database.url(), &COMMANDS, &["DATABASE_SCHEMA", kind, &format!("\"{name}\"")]);
        assert_eq!(catalog(&sql).await, before, "{made}");
        // The way out that the line names.
        let migrated = run(command(&database.url(), &["migrate"]).env("DATABASE_SCHEMA", "subledger"));
        assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_may_keep_its_own_diesel_migrations_in_the_same_table() {
    let database = Database::empty();
    let sql = database.client().await;
    let own = "CREATE TABLE posts (id int);
               CREATE TABLE __diesel_schema_migrations (version varchar(50) PRIMARY KEY NOT NULL,
                                                        run_on timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP);
               INSERT INTO __diesel_schema_migrations VALUES ('20240101000000')";
    sql.batch_execute(own).await.unwrap();
    for _ in 0..2 {
        let migrated = run(&mut command(&database.url(), &["migrate"]));
        assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    }
    drop(Server::start(&mut command(&database.url(), &["serve"])));
    let query = "SELECT count(*) FROM __diesel_schema_migrations WHERE version = '20240101000000'";
    assert_eq!(sql.query_one(query, &[]).await.unwrap().get::<_, i64>(0), 1);
}

/// A role of this database's own, and a URL with which it connects.
async fn role(database: &Database, sql: &Client, suffix: &str) -> (String, String) {
    let role = format!("{}_{suffix}", database.name());
    sql.batch_execute(&format!("DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN")).await.unwrap();
    let url = database.url();
    let (_, server) = url.split_once('@').unwrap();
    (role.clone(), format!("postgres://{role}@{server}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_create_is_told_so_while_something_is_pending_and_serves_when_nothing_is() {
    let database = Database::empty();
    let sql = database.client().await;
    let (name, url) = role(&database, &sql, "server").await;
    sql.batch_execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC").await.unwrap();
    assert_refused(&url, &[&["migrate"], &["serve"]], &[&name, "GRANT CREATE ON SCHEMA", "\"public\""]);
    let other = run(command(&url, &["migrate"]).env("DATABASE_SCHEMA", "billing"));
    let error = text(&other.stderr);
    assert!(error.contains("may not create the schema \"billing\"") && error.lines().count() == 1, "{error}");

    assert!(run(&mut command(&database.url(), &["migrate"])).status.success());
    // It may do nothing with the tables yet.
    assert_refused(&url, &[&["serve"], &["replay", "--failed"]], &[&name, "may not"]);
    let all = format!(
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name};
         GRANT INSERT, UPDATE, DELETE ON accounts, account_customers, subscriptions, stripe_events TO {name}"
    );
    sql.batch_execute(&all).await.unwrap();
    assert_refused(&url, &[&["serve"]], &[&name, "INSERT, UPDATE, DELETE", "subledger grants"]);
    sql.batch_execute(&format!("GRANT INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}")).await.unwrap();
    let server = Server::start(&mut command(&url, &["serve"]));
    rustls::crypto::ring::default_provider().install_default().ok();
    let health = reqwest::get(server.url("/health")).await.unwrap();
    assert_eq!(health.status().as_u16(), 200);
    drop(server);

    // A migration that only the owner can run.
    sql.batch_execute("DELETE FROM __diesel_schema_migrations; GRANT CREATE ON SCHEMA public TO PUBLIC").await.unwrap();
    sql.batch_execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_the_role_may_not_use_is_not_passed_over_on_the_search_path() {
    let database = Database::empty();
    let sql = database.client().await;
    let (name, url) = role(&database, &sql, "stranger").await;
    // Without USAGE PostgreSQL would go on to `public`, and to the application's own table there.
    sql.batch_execute("CREATE SCHEMA billing; CREATE TABLE accounts (id int)").await.unwrap();
    let ended = run(command(&url, &["migrate"]).env("DATABASE_SCHEMA", "billing"));
    let error = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1));
    assert!(error.contains(&name) && error.contains("GRANT USAGE ON SCHEMA \"billing\""), "{error}");
    sql.batch_execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_utf_8_is_refused() {
    let database = Database::empty();
    let sql = database.client().await;
    let name = format!("{}_latin", database.name());
    let create = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
    sql.batch_execute(&create).await.unwrap();
    let url = database.url().replace(database.name(), &name);
    assert_refused(&url, &COMMANDS, &["LATIN1", "UTF8", &name]);
    assert_eq!(catalog(&connect(&url).await).await, catalog(&database.client().await).await, "nothing was made");
    sql.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
}
