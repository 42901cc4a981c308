//! What the project's documents and manifest say, compared with the code.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use subledger::stripe::handled_types;

use crate::support::binary::{run, subledger, text};
use crate::support::database::Database;

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The SQL examples of a document.
pub fn sql_blocks(document: &str) -> Vec<String> {
    document.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_readme_names_every_variable() {
    let folder = tempfile::tempdir().unwrap();
    let help = text(&run(subledger(folder.path()).arg("--help")).stdout);
    let readme = read("README.md");
    let (_, table) = readme.split_once("| variable | default |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    let variables: Vec<_> = help.split("[env: ").skip(1).filter_map(|rest| rest.split([']', '=']).next()).collect();
    assert!(variables.len() > 15, "{variables:?}");
    for variable in variables {
        assert!(table.contains(&format!("`{variable}`")), "{variable} is not in the README's table");
    }
}

#[test]
fn the_readme_lists_the_events_to_enable() {
    let types: Vec<_> = handled_types().collect();
    let expected = format!("stripe listen --events {} --forward-to ", types.join(","));
    assert!(read("README.md").contains(&expected), "the README should have: {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statements_of_the_readme_work_for_the_application() {
    let database = Database::migrated();
    let client = database.client().await;
    let role = format!("app_{}", std::process::id());
    client.batch_execute(&format!("CREATE ROLE {role}")).await.unwrap();
    let mut count = 0;
    for block in sql_blocks(&read("README.md")).iter().filter(|block| !block.contains("CREATE ROLE")) {
        let block = block.replace(" TO app;", &format!(" TO {role};"));
        let as_role = if block.starts_with("GRANT") { block } else { format!("SET ROLE {role}; {block}; RESET ROLE") };
        client.batch_execute(&as_role).await.unwrap_or_else(|error| panic!("{as_role}: {error:?}"));
        count += 1;
    }
    assert_eq!(count, 4);
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_query_for_failed_events_lists_those_that_have_not_succeeded() {
    let database = Database::migrated();
    let client = database.client().await;
    let event = "INSERT INTO stripe_events (id, type, outcome, livemode, received_at, payload) VALUES";
    let failure = "INSERT INTO event_failures (event_id, type, failed_at, error, payload) VALUES";
    client
        .batch_execute(&format!(
            "{failure} ('evt_failing', 't', now() - interval '2 min', 'first', '{{}}'),
                ('evt_failing', 't', now(), 'second', '{{}}'), ('evt_mended', 't', now(), 'e', '{{}}'),
                ('evt_parked', 't', now() - interval '1 hour', 'e', '{{}}'), ('evt_stuck', 't', now(), 'e', '{{}}');
             {event} ('evt_mended', 't', 'applied', false, now(), '{{}}'), ('evt_parked', 't', 'parked', false, now(), '{{}}'),
                ('evt_stuck', 't', 'parked', false, now() - interval '1 hour', '{{}}')"
        ))
        .await
        .unwrap();
    let query = sql_blocks(&read("docs/operations.md")).remove(0);
    let rows = client.query(query.trim_end().trim_end_matches(';'), &[]).await.unwrap();
    let mut listed: Vec<_> = rows.iter().map(|row| (row.get(0), row.get(2), row.get(4))).collect();
    listed.sort_unstable();
    assert_eq!(listed, [("evt_failing", 2_i64, "second"), ("evt_stuck", 1, "e")]);
}

/// Dependencies that the program itself is built from, not those of tests and benchmarks.
#[test]
fn no_dependency_needs_a_newer_rust_than_ours() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--locked", "--format-version", "1", "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    let output = run(cargo.args(["--filter-platform", "x86_64-unknown-linux-gnu"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let version = |text: &str| {
        let mut parts = text.split('.').map(|part| part.parse::<u32>().unwrap());
        [(); 3].map(|()| parts.next().unwrap_or(0))
    };
    let packages: HashMap<_, _> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package))
        .collect();
    let nodes: HashMap<_, _> = metadata["resolve"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (node["id"].as_str().unwrap(), node["deps"].as_array().unwrap()))
        .collect();
    let root = metadata["resolve"]["root"].as_str().unwrap();
    let ours = version(packages[root]["rust_version"].as_str().unwrap());
    let (mut seen, mut next) = (HashSet::from([root]), vec![root]);
    while let Some(id) = next.pop() {
        if let Some(theirs) = packages[id]["rust_version"].as_str() {
            assert!(version(theirs) <= ours, "{id} needs Rust {theirs}");
        }
        for dependency in nodes[id] {
            let is_ours = dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev");
            let id = dependency["pkg"].as_str().unwrap();
            if is_ours && seen.insert(id) {
                next.push(id);
            }
        }
    }
    assert!(seen.len() > 100, "{}", seen.len());
}
