//! What ships beside the program: the alert rules and the dashboard speak of metrics that there are, and the steps that
//! docs/operations.md gives for a restore come to the state that was lost.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::Utc;
use serde_json::{Value, json};

use crate::support::app::ADMIN_TOKEN;
use crate::support::database::{Database, programs};
use crate::support::events::subscription;
use crate::support::{Event, Settings, StripeApi, TestApp, job};

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

/// The metrics that a text names, without the endings of a histogram's series.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let metrics = words.filter(|word| word.starts_with("subledger_"));
    metrics.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_dashboard_name_only_metrics_that_there_are() {
    let app = TestApp::start().await;
    let metrics =
        app.http.get(app.url("/metrics")).bearer_auth(ADMIN_TOKEN).send().await.unwrap().text().await.unwrap();
    let declared: BTreeSet<_> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect();
    for file in ["prometheus/rules.yml", "grafana/subledger.json"] {
        let named = metrics_in(&std::fs::read_to_string(deploy(file)).unwrap());
        let unknown: Vec<_> = named.difference(&declared).collect();
        assert!(named.len() > 5 && unknown.is_empty(), "{file} names {unknown:?}");
    }
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(deploy("grafana/subledger.json")).unwrap()).unwrap();
    let queries = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    assert!(queries.map(|query| query["expr"].as_str().unwrap()).all(|query| query.contains("subledger_")));
}

/// Debian's package prometheus has promtool; CI installs it.
#[test]
fn the_alert_rules_are_valid_and_fire_for_what_they_are_for() {
    let Ok(version) = Command::new("promtool").arg("--version").output() else {
        #[expect(clippy::disallowed_methods, reason = "CI says that it has every program")]
        let is_ci = std::env::var_os("CI").is_some();
        assert!(!is_ci, "promtool is not installed (Debian's package prometheus)");
        return;
    };
    assert!(version.status.success());
    for (action, file) in [("check", "rules.yml"), ("test", "rules_test.yml")] {
        let mut command = Command::new("promtool");
        let output = command.args([action, "rules", file]).current_dir(deploy("prometheus")).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

/// `rules_test.yml` lists the alerts that fire, and operations.md says what each of them means.
#[test]
fn every_alert_has_a_test_and_an_explanation() {
    let rules = std::fs::read_to_string(deploy("prometheus/rules.yml")).unwrap();
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for file in ["deploy/prometheus/rules_test.yml", "docs/operations.md"] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let words: BTreeSet<_> = text.split(|letter: char| !letter.is_ascii_alphanumeric()).collect();
        let absent: Vec<_> = alerts.iter().filter(|alert| !words.contains(**alert)).collect();
        assert!(absent.is_empty(), "{file} lacks {absent:?}");
    }
}

/// Runs one of PostgreSQL's client programs; `false` if the server's programs come without it.
fn client_program(name: &str, args: &[&str]) -> bool {
    let program = programs().join(name);
    if !program.exists() {
        #[expect(clippy::disallowed_methods, reason = "CI says that it has every program")]
        let is_ci = std::env::var_os("CI").is_some();
        assert!(!is_ci, "{name} is not installed");
        return false;
    }
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_that_is_reconciled_is_as_the_database_was() {
    let now = Utc::now().timestamp();
    let update = |id: &str, secs_ago: i64, sub: &str, seats: i64| {
        let mut object = subscription(sub, "cus_1", "active", seats);
        object["items"]["data"][0]["current_period_end"] = json!(now + 900_000);
        Event::new(id, "customer.subscription.updated", now - secs_ago, object)
    };
    let events = [
        update("evt_1", 9_000, "sub_1", 1),
        update("evt_2", 8_000, "sub_2", 1),
        update("evt_3", 7_000, "sub_1", 3),
        update("evt_4", 6_000, "sub_3", 4),
    ];
    let stripe = StripeApi::start().await;
    stripe.lists_events(&events);
    events.iter().for_each(|event| stripe.has(event.object()));
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    let file = file.to_str().unwrap();
    app.deliver(&events[0]).await;
    app.deliver(&events[1]).await;
    if !client_program("pg_dump", &["--format=custom", "--file", file, "--dbname", &app.database.url()]) {
        return;
    }
    app.deliver(&events[2]).await;
    app.deliver(&events[3]).await;

    let restored = Database::empty();
    client_program("pg_restore", &["--exit-on-error", "--dbname", &restored.url(), file]);
    let go_on = "SELECT setval('subscription_changes_id_seq', max(id) + 1000000) FROM subscription_changes";
    restored.client().await.batch_execute(go_on).await.unwrap();
    let restored = TestApp::start_on(restored, Settings::default(), None).await;
    assert_eq!(restored.count("stripe_events").await, 2);
    job::run(&restored, Some(&stripe), &["reconcile", "--since", "25h"]).await.ends_with(0);
    let rows = "SELECT to_jsonb(s) - 'id' - 'created_at' - 'updated_at' FROM subscriptions s
                ORDER BY stripe_subscription_id";
    assert_eq!(restored.json(rows, &[]).await, app.json(rows, &[]).await);
    let outcomes = "SELECT jsonb_build_array(id, outcome, account_id) FROM stripe_events ORDER BY id";
    assert_eq!(restored.json(outcomes, &[]).await, app.json(outcomes, &[]).await);
    // A reader of the changes that has read further than the backup goes on where it was.
    let last = app.one("SELECT max(id) FROM subscription_changes").await.get::<_, i64>(0);
    let changes = restored.get(&format!("/api/v1/changes?after={last}&wait=20")).await.body;
    let event_ids: Vec<_> = changes["data"].as_array().unwrap().iter().map(|change| &change["event_id"]).collect();
    assert_eq!(event_ids[0], "evt_3", "{changes}");
    let all = restored.get("/api/v1/changes").await.body;
    assert_eq!((&all["data"][0]["event_id"], &all["data"][0]["id"]), (&json!("evt_1"), &json!(1)), "{all}");
    job::run(&restored, None, &["doctor"]).await.ends_with(0);
    assert_eq!(restored.deliver(&events[2]).await.outcome(), "duplicate");
}
