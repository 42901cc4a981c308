//! `subledger doctor`: nothing where nothing is wrong, and one line for each thing that is.

use chrono::{TimeDelta, Utc};
use serde_json::json;
use subledger::db::schema_name::identifier;

use crate::postgres::grants::{Role, grants};
use crate::support::binary::{run, subledger, text};
use crate::support::database::Database;
use crate::support::events::subscription;
use crate::support::{Event, StripeApi, TestApp, job};

const URL: &str = "https://app.example/api/v1/webhooks/stripe";

/// A stand-in that has the endpoint as `setup` makes it.
async fn stripe_with_endpoint(app: &TestApp) -> StripeApi {
    let stripe = StripeApi::start().await;
    job::run(app, Some(&stripe), &["setup", "--url", URL]).await.ends_with(0);
    stripe
}

async fn doctor(app: &TestApp, stripe: Option<&StripeApi>) -> job::Ran {
    job::run(app, stripe, &["doctor"]).await
}

#[track_caller]
fn tells_alone(ran: &job::Ran, words: &[&str]) {
    ran.ends_with(1);
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!(lines.len(), 1, "{}", ran.out);
    words.iter().for_each(|word| assert!(lines[0].contains(word), "{word}: {}", lines[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_wrong_with_a_new_installation() {
    let app = TestApp::start().await;
    let stripe = stripe_with_endpoint(&app).await;
    let ran = doctor(&app, Some(&stripe)).await;
    ran.ends_with(0);
    assert_eq!(ran.out.trim(), "nothing is wrong");
    let without_key = doctor(&app, None).await;
    without_key.ends_with(0);
    assert!(without_key.err.contains("STRIPE_SECRET_KEY is not set"), "{}", without_key.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_missing_or_disabled_is_told_with_the_way_out() {
    let app = TestApp::start().await;
    let none = StripeApi::start().await;
    tells_alone(&doctor(&app, Some(&none)).await, &["endpoints: ", "no webhook endpoint", "subledger setup --url"]);
    let stripe = stripe_with_endpoint(&app).await;
    stripe.endpoints.set(0, "status", json!("disabled"));
    tells_alone(&doctor(&app, Some(&stripe)).await, &["we_1", "is disabled", &format!("subledger setup --url {URL}")]);
    stripe.endpoints.set(0, "status", json!("enabled"));
    stripe.endpoints.set(0, "api_version", json!("2024-06-20"));
    tells_alone(&doctor(&app, Some(&stripe)).await, &["2024-06-20", "--upgrade"]);
    let thin = json!({"id": "ed_1", "object": "v2.core.event_destination", "type": "webhook_endpoint",
        "webhook_endpoint": {"url": URL}, "status": "disabled", "event_payload": "thin", "livemode": false,
        "enabled_events": ["v1.customer.subscription.updated"], "metadata": {}, "created": "2026-10-01T00:00:00.000Z"});
    stripe.endpoints.set(0, "api_version", json!(subledger::stripe::api::API_VERSION));
    stripe.endpoints.destinations.lock().unwrap().push(thin);
    tells_alone(&doctor(&app, Some(&stripe)).await, &["ed_1", "is disabled", "in Stripe's dashboard"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_stripe_could_not_deliver_are_told_until_they_are_recorded() {
    let app = TestApp::start().await;
    let stripe = stripe_with_endpoint(&app).await;
    app.account_of("cus_1").await;
    let second = Utc::now().timestamp() - 7_200;
    let event =
        Event::new("evt_lost", "customer.subscription.updated", second, subscription("sub_1", "cus_1", "active", 1));
    stripe.could_not_deliver(std::slice::from_ref(&event));
    tells_alone(&doctor(&app, Some(&stripe)).await, &["could not deliver 1 events (evt_lost)", "since 2", "reconcile"]);
    app.deliver(&event).await;
    let later = "UPDATE subscriptions SET current_period_end = now() + interval '10 days'";
    app.execute(later).await;
    doctor(&app, Some(&stripe)).await.ends_with(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_tables_show_to_be_wrong_is_told_line_by_line() {
    let app = TestApp::start().await;
    let stripe = stripe_with_endpoint(&app).await;
    let event = Event::new("evt_1", "customer.subscription.updated", 1, subscription("sub_1", "cus_1", "active", 1));
    assert_eq!(app.deliver(&event).await.outcome(), "parked");
    app.execute("UPDATE stripe_events SET received_at = now() - interval '25 hours'").await;
    tells_alone(&doctor(&app, Some(&stripe)).await, &["parked: 1 events", "since 2", "PATCH /api/v1/accounts/"]);

    app.account_of("cus_1").await;
    job::run(&app, None, &["replay", "--parked"]).await.ends_with(0);
    app.execute("UPDATE subscriptions SET current_period_end = now() - interval '3 days'").await;
    tells_alone(&doctor(&app, Some(&stripe)).await, &["overdue: 1 subscriptions", "(sub_1)", "since 2"]);
    app.execute("UPDATE subscriptions SET status = 'paused'").await;
    doctor(&app, Some(&stripe)).await.ends_with(0);

    app.execute(
        "ALTER TABLE accounts SET (autovacuum_enabled = false);
         GRANT SELECT ON stripe_events TO PUBLIC;
         INSERT INTO event_failures (event_id, type, error) VALUES ('evt_bad', 'invoice.paid', 'no');
         UPDATE reconcile_state SET error = 'Stripe''s API answered 401', succeeded_at = now() - interval '2 days'",
    )
    .await;
    let ran = doctor(&app, Some(&stripe)).await;
    ran.ends_with(1);
    for words in [
        "autovacuum is off for table accounts",
        "everybody may SELECT on table stripe_events",
        "failing: 1 events have failed every attempt, since",
        "the last reconciliation with Stripe failed: Stripe's API answered 401",
    ] {
        assert!(ran.out.contains(words), "{words}: {}", ran.out);
    }
    assert_eq!(ran.out.lines().count(), 4, "{}", ran.out);
    assert!(ran.err.contains("4 problems"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileges_and_autovacuum_are_checked_on_every_table_view_and_sequence() {
    let app = TestApp::start().await;
    let server = Role::create(&app, "server").await;
    let role = identifier(&server.name);
    grants(&app, &["--server-role", &server.name, "--apply"]).await.ends_with(0);
    let as_server = async || {
        let mut command = job::command(&app, None, &["doctor"]);
        job::wait(command.env("DATABASE_URL", &server.url).spawn().unwrap()).await
    };
    as_server().await.ends_with(0);
    app.execute(&format!(
        "REVOKE INSERT ON subscription_changes FROM {role};
         REVOKE ALL ON customer_features, committed_changes, __diesel_schema_migrations FROM {role};
         GRANT SELECT ON __diesel_schema_migrations TO {role};
         REVOKE ALL ON SEQUENCE subscription_changes_id_seq FROM {role}"
    ))
    .await;
    let ran = as_server().await;
    ran.ends_with(1);
    let lacks = |words: &str| format!("database: subledger's role lacks {words}: grant it");
    let lines: Vec<_> = ran.out.lines().map(|line| line.split(" (`").next().unwrap()).collect();
    assert_eq!(
        lines,
        [
            lacks("SELECT on view committed_changes"),
            lacks("DELETE, INSERT, SELECT, UPDATE on table customer_features"),
            lacks("INSERT on table subscription_changes"),
            lacks("SELECT on sequence subscription_changes_id_seq"),
        ]
    );

    app.execute(
        "GRANT SELECT ON customer_features, account_entitlements TO PUBLIC;
         GRANT UPDATE (kinds) ON subscription_changes TO PUBLIC;
         GRANT USAGE ON SEQUENCE event_failures_id_seq TO PUBLIC;
         ALTER TABLE admin_sessions SET (autovacuum_enabled = off);
         CREATE TABLE other (id integer GENERATED ALWAYS AS IDENTITY) WITH (autovacuum_enabled = off);
         GRANT ALL ON other, other_id_seq TO PUBLIC",
    )
    .await;
    let ran = doctor(&app, None).await;
    ran.ends_with(1);
    let problems: Vec<_> = ran.out.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    assert_eq!(
        problems,
        [
            "everybody may SELECT on view account_entitlements",
            "everybody may SELECT on table customer_features",
            "everybody may USAGE on sequence event_failures_id_seq",
            "everybody may UPDATE on table subscription_changes",
            "autovacuum is off for table admin_sessions",
        ]
    );
    app.execute(
        "REVOKE ALL ON account_entitlements FROM PUBLIC; REVOKE ALL ON customer_features FROM PUBLIC;
         REVOKE ALL ON event_failures_id_seq FROM PUBLIC; REVOKE ALL ON subscription_changes FROM PUBLIC;
         ALTER TABLE admin_sessions RESET (autovacuum_enabled)",
    )
    .await;
    doctor(&app, None).await.ends_with(0);
    server.drop(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_stays_open_and_a_push_that_waits_are_told() {
    let app = TestApp::start().await;
    // The tables of the push, in the form that the check relies on.
    app.execute(
        "CREATE TABLE IF NOT EXISTS change_push_accounts (account_id uuid PRIMARY KEY, next_change_id bigint NOT NULL);
         CREATE TABLE IF NOT EXISTS subscription_changes (
             id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, changed_at timestamptz NOT NULL DEFAULT now());",
    )
    .await;
    doctor(&app, None).await.ends_with(0);
    let mut columns = "id, changed_at".to_owned();
    let mut values = "7, now() - interval '1 hour'".to_owned();
    if app.count("pg_attribute WHERE attrelid = 'subscription_changes'::regclass AND attname = 'kinds'").await > 0 {
        columns.push_str(", subscription_id, account_id, kinds, after");
        values.push_str(", gen_random_uuid(), gen_random_uuid(), '{updated}', '{}'");
    }
    app.execute(&format!(
        "INSERT INTO subscription_changes ({columns}) OVERRIDING SYSTEM VALUE VALUES ({values});
         INSERT INTO change_push_accounts (account_id, next_change_id) VALUES (gen_random_uuid(), 7);"
    ))
    .await;
    tells_alone(&doctor(&app, None).await, &["changes of 1 accounts wait", "CHANGES_URL", "since 2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_and_events_of_the_other_mode_are_told() {
    let app = TestApp::start().await;
    let stripe = stripe_with_endpoint(&app).await;
    app.deliver(Event::new("evt_1", "charge.succeeded", 1, json!({"id": "ch_1"}))).await;
    let mut command = job::command(&app, Some(&stripe), &["doctor"]);
    let ran = job::wait(command.env("STRIPE_MODE", "live").spawn().unwrap()).await;
    ran.ends_with(1);
    let told = |words: &str| assert!(ran.lines("mode: ").iter().any(|line| line.contains(words)), "{}", ran.out);
    told("STRIPE_SECRET_KEY is a key of test mode, STRIPE_MODE is live");
    told("1 events of test mode came in the last day");
    told("we_1 (https://app.example/api/v1/webhooks/stripe) belongs to test mode");
    let mut command = job::command(&app, Some(&stripe), &["doctor"]);
    job::wait(command.env("STRIPE_MODE", "test").spawn().unwrap()).await.ends_with(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_told() {
    let app = TestApp::start().await;
    let stripe = stripe_with_endpoint(&app).await;
    stripe.endpoints.says_it_is(Utc::now() - TimeDelta::minutes(4));
    tells_alone(&doctor(&app, Some(&stripe)).await, &["clock: this machine's clock is 2", "ahead of Stripe's", "NTP"]);
}

#[test]
fn a_database_that_is_away_or_not_migrated_or_not_ours_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let doctor = |url: &str| {
        let output = run(subledger(folder.path()).arg("doctor").env("DATABASE_URL", url));
        (output.status.code(), text(&output.stdout))
    };
    let (code, out) = doctor("postgres://nobody@127.0.0.1:1/none");
    assert!(code == Some(1) && out.contains("database: the database does not answer"), "{out}");
    let empty = Database::empty();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let execute = |statements: &str| {
        runtime.block_on(async { empty.client().await.batch_execute(statements).await.unwrap() });
    };
    let (code, out) = doctor(&empty.url());
    assert!(code == Some(1) && out.contains("a migration is pending: run `subledger migrate`"), "{out}");
    for name in ["accounts", "subscription_changes", "customer_features", "account_entitlements", "admin_sessions"] {
        execute(&format!("CREATE TABLE {name} (id integer)"));
        let (code, out) = doctor(&empty.url());
        assert_eq!(code, Some(1));
        let expected = format!(
            "database: the schema \"public\" holds a table \"{name}\" that is not subledger's; set DATABASE_SCHEMA to a \
             schema of subledger's own, which is created when absent\n"
        );
        assert_eq!(out, expected);
        execute(&format!("DROP TABLE {name}"));
    }
    let migrated = run(subledger(folder.path())
        .args(["migrate"])
        .env("DATABASE_URL", empty.url())
        .env("DATABASE_SCHEMA", "billing"));
    assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    execute(&format!("ALTER DATABASE {} SET search_path = app, billing, public", empty.name()));
    let (code, out) = doctor(&empty.url());
    assert_eq!((code, out.lines().count()), (Some(1), 1), "{out}");
    assert!(out.starts_with("database: DATABASE_SCHEMA is not set, and an installation"), "{out}");
    assert!(out.contains("stands in the schema \"billing\"") && out.contains("set DATABASE_SCHEMA=billing"), "{out}");
}
