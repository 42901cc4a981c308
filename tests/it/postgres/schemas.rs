//! `DATABASE_SCHEMA`: all of subledger stands in it, whatever it is called and whatever else the database holds.

use std::process::Command;

use serde_json::json;
use subledger::db::connect::Target;
use subledger::db::locks;
use subledger::db::schema_name::{SchemaName, identifier};
use tokio_postgres::Client;

use crate::support::app::{ADMIN_TOKEN, WEBHOOK_SECRET};
use crate::support::binary::{Server, run, subledger, text};
use crate::support::database::{Database, connect};
use crate::support::job;
use crate::support::{Event, Settings, TestApp};

/// The binary on a database and a schema.
fn configured(url: &str, schema: Option<&str>) -> Command {
    let mut command = subledger(&std::env::temp_dir());
    command.env("DATABASE_URL", url).env("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET).env("ADMIN_TOKEN", ADMIN_TOKEN);
    schema.map(|schema| command.env("DATABASE_SCHEMA", schema));
    command
}

fn in_schema(url: &str, schema: &str) -> Target {
    Target::parse(url).unwrap().in_schema(Some(SchemaName::new(schema).unwrap()))
}

/// Every relation, function and type that is not PostgreSQL's own, by schema.
async fn objects(sql: &Client) -> Vec<(String, i64)> {
    let query = "SELECT nspname::text, count(*)
                 FROM (SELECT relnamespace AS namespace FROM pg_class UNION ALL SELECT pronamespace FROM pg_proc
                       UNION ALL SELECT typnamespace FROM pg_type) AS object
                 JOIN pg_namespace ON pg_namespace.oid = namespace
                 WHERE nspname !~ '^pg_|^information_schema$' GROUP BY 1 ORDER BY 1";
    sql.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_stands_in_the_schema_whatever_its_name_and_whatever_search_path_the_role_has() {
    let longest = "ö".repeat(31) + "x";
    for schema in ["Billing", "we\"ird 'na\\me' %20 ${x}; --", "select", "PG_x", "public, \"other", &*longest] {
        let database = Database::empty();
        let sql = database.client().await;
        let elsewhere = "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.accounts (balance numeric)";
        sql.batch_execute(elsewhere).await.unwrap();
        let before = objects(&sql).await;
        let url = format!("{}?options=-csearch_path%3Delsewhere", database.url());

        let migrated = run(configured(&url, Some(schema)).arg("migrate"));
        assert!(migrated.status.success(), "{schema}: {}", text(&migrated.stderr));
        let server = Server::start(&mut configured(&url, Some(schema)));
        let mut simulate = configured(&url, Some(schema));
        simulate.args(["simulate", "--customers", "3", "--url", &server.url("/api/v1/webhooks/stripe")]);
        let simulated = run(&mut simulate);
        assert!(simulated.status.success(), "{schema}: {}", text(&simulated.stderr));
        for job in [&["prune", "--older-than", "90d"][..], &["replay", "--failed"]] {
            let ended = run(configured(&url, Some(schema)).args(job));
            assert!(ended.status.success(), "{schema}: {}", text(&ended.stderr));
        }

        let mut after = objects(&sql).await;
        after.retain(|(name, _)| name != schema);
        assert_eq!(after, before, "{schema}: nothing was made elsewhere");
        let quoted = identifier(schema);
        let count = format!("SELECT count(*) FROM {quoted}.stripe_events, {quoted}.__diesel_schema_migrations");
        let count: i64 = sql.query_one(&count, &[]).await.unwrap().get(0);
        assert!(count > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_schemas_of_one_database_have_nothing_in_common() {
    let database = Database::empty();
    let url = database.url();
    // The same seed: the same ids in both, at the same time.
    let begin = |schema: &'static str| {
        let url = url.clone();
        async move {
            let server = Server::start(&mut configured(&url, Some(schema)));
            let mut command = configured(&url, Some(schema));
            command.args(["simulate", "--customers", "10", "--seed", "7", "--url"]);
            command.arg(server.url("/api/v1/webhooks/stripe"));
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            job::wait(command.spawn().unwrap()).await
        }
    };
    let (one, other) = tokio::join!(begin("one"), begin("other"));
    for ran in [one, other] {
        ran.ends_with(0);
        assert!(ran.out.contains("the tables show the truth"), "{}", ran.out);
    }
    let sql = database.client().await;
    let count = "SELECT (SELECT count(*) FROM one.stripe_events), (SELECT count(*) FROM other.stripe_events)";
    let row = sql.query_one(count, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_one_schema_are_not_those_of_another() {
    let database = Database::empty();
    database.client().await.batch_execute("CREATE SCHEMA one; CREATE SCHEMA other").await.unwrap();
    let hold = async |schema: &str| {
        let mut conn = in_schema(&database.url(), schema).connect().await.unwrap();
        diesel_async::SimpleAsyncConnection::batch_execute(&mut conn, "BEGIN").await.unwrap();
        locks::try_hold(&mut conn, locks::PUSH).await.unwrap().then_some(conn)
    };
    let first = hold("one").await.expect("a free lock");
    let second = hold("other").await.expect("another schema's lock is another");
    assert!(hold("one").await.is_none(), "the same schema's lock is held");
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_of_the_application_finds_its_own_names_by_the_search_path_of_the_session() {
    let database = Database::empty();
    let sql = database.client().await;
    sql.batch_execute("CREATE SCHEMA app; CREATE TABLE app.jobs (payload text)").await.unwrap();
    let url = format!("{}?options=-csearch_path%3Dapp%2Cpublic", database.url());
    let target = in_schema(&url, "billing");
    let app = TestApp::start_at(database, target, Settings::default(), None).await;
    app.execute(
        "CREATE FUNCTION app.enqueue() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO jobs VALUES (NEW.stripe_subscription_id); RETURN NEW; END $$;
         CREATE TRIGGER enqueue AFTER INSERT ON billing.subscriptions FOR EACH ROW EXECUTE FUNCTION app.enqueue();
         INSERT INTO billing.accounts (stripe_customer_id) VALUES ('cus_1')",
    )
    .await;
    let subscription = json!({"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "active"});
    let event = Event::new("evt_1", "customer.subscription.created", 100, subscription);
    assert_eq!(app.deliver(&event).await.outcome(), "applied");
    assert_eq!(app.count("app.jobs WHERE payload = 'sub_1'").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_postgresql_refuses_or_changes_is_one_line_that_names_the_variable() {
    for schema in ["", "pg_billing", "$user", &*"x".repeat(64)] {
        for command in ["migrate", "serve", "replay"] {
            let ended = run(configured("postgres:///app", Some(schema)).arg(command));
            let error = text(&ended.stderr);
            assert_eq!(ended.status.code(), Some(2), "{schema:?}: {error}");
            let is_usage = command == "replay" && error.contains("Usage");
            assert!(is_usage || (error.contains("DATABASE_SCHEMA: ") && error.lines().count() == 1), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_configured_an_installation_elsewhere_on_the_search_path_stops_the_start() {
    let database = Database::empty();
    let sql = database.client().await;
    sql.batch_execute("CREATE SCHEMA \"Bill ing\"").await.unwrap();
    let migrated = run(configured(&database.url(), Some("Bill ing")).arg("migrate"));
    assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    // Not on the search path: a deployment of its own.
    assert!(run(configured(&database.url(), None).arg("migrate")).status.success());
    let path = format!("ALTER DATABASE {} SET search_path = app, \"Bill ing\", public", database.name());
    sql.batch_execute(&path).await.unwrap();
    let before = objects(&sql).await;
    for command in [&["migrate"][..], &["serve"], &["prune", "--older-than", "90d"], &["replay", "--failed"]] {
        let ended = run(configured(&database.url(), None).args(command));
        let error = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{command:?}: {error}");
        assert!(error.contains("DATABASE_SCHEMA=Bill ing") && error.lines().count() == 1, "{error}");
    }
    assert_eq!(objects(&sql).await, before);
    for schema in ["Bill ing", "public"] {
        let ended = run(configured(&database.url(), Some(schema)).arg("migrate"));
        assert!(ended.status.success(), "{}", text(&ended.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_search_path_is_as_good_as_any() {
    let database = Database::empty();
    let path = format!("ALTER DATABASE {} SET search_path = ''", database.name());
    database.client().await.batch_execute(&path).await.unwrap();
    let ended = run(configured(&database.url(), None).arg("migrate"));
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    let sql = connect(&database.url()).await;
    assert!(sql.query_one("SELECT count(*) FROM public.stripe_events", &[]).await.is_ok());
}
