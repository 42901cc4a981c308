//! What ships beside the program: the alert rules and the dashboard speak of metrics that there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::TestApp;
use crate::support::app::ADMIN_TOKEN;

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
