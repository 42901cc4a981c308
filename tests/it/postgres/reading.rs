//! `docs/reading.md` and `docs/read-models.md` against the real schema.

use std::collections::BTreeSet;

use chrono::Utc;
use serde_json::{Value, json};
use subledger::db::schema_name::identifier;
use uuid::Uuid;

use super::grants::{Role, grants};
use crate::project::sql_blocks;
use crate::support::database::Database;
use crate::support::events::{created, invoice, subscription, updated};
use crate::support::{Event, Settings, TestApp};

const READING: &str = include_str!("../../../docs/reading.md");
const READ_MODELS: &str = include_str!("../../../docs/read-models.md");
const VIEWS: [&str; 4] = ["account_entitlements", "subscription_items", "account_features", "committed_changes"];

/// The accounts of the example: a team that pays, one that has canceled and owes, and a local trial.
struct Example {
    team: Uuid,
    leaver: Uuid,
    trial: Uuid,
}

/// Fills the tables as deliveries and the application do. Two of the team's seats are taken.
async fn fill(app: &TestApp) -> Example {
    let (team, leaver) = (app.account_of("cus_team").await, app.account_of("cus_leaver").await);
    let now = Utc::now().timestamp();
    app.deliver(created("evt_1", now - 60, subscription("sub_team", "cus_team", "active", 5))).await;
    let mut leaving = subscription("sub_leaver", "cus_leaver", "past_due", 1);
    leaving["cancel_at"] = json!(now + 86_400);
    app.deliver(updated("evt_2", now - 50, leaving)).await;
    let mut unpaid = invoice("in_1", "cus_leaver", "sub_leaver");
    unpaid["hosted_invoice_url"] = json!("https://invoice.stripe.com/i/1");
    app.deliver(Event::new("evt_3", "invoice.payment_failed", now - 40, unpaid)).await;
    let feature = json!({"id": "ent_1", "object": "entitlements.active_entitlement", "feature": "feat_sso",
                         "lookup_key": "sso", "livemode": false});
    let summary = json!({"object": "entitlements.active_entitlement_summary", "customer": "cus_team", "livemode": false,
                         "entitlements": {"object": "list", "data": [feature], "has_more": false, "url": "/"}});
    app.deliver(Event::new("evt_4", "entitlements.active_entitlement_summary.updated", now - 30, summary)).await;
    let trial = app.account().await;
    app.local_trial(trial).await;
    app.execute(&format!(
        "UPDATE accounts SET name = 'Team' WHERE id = '{team}';
         UPDATE accounts SET name = 'Leaver' WHERE id = '{leaver}';
         UPDATE accounts SET name = 'Trial' WHERE id = '{trial}';
         UPDATE subscriptions SET trial_end = now() + interval '2 days' WHERE account_id = '{trial}';
         CREATE TABLE members (account_id uuid NOT NULL);
         INSERT INTO members VALUES ('{team}'), ('{team}'), ('{leaver}')"
    ))
    .await;
    Example { team, leaver, trial }
}

/// The rows that a documented query shows the role, without the columns that hold times.
async fn rows(sql: &tokio_postgres::Client, query: &str, account: Uuid) -> Vec<Value> {
    let query = query.replace("00000000-0000-0000-0000-000000000000", &account.to_string());
    let query = format!("SELECT to_jsonb(q) FROM ({}) AS q", query.trim_end().trim_end_matches(';'));
    let rows = sql.query(&query, &[]).await.unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let without_times = |mut row: Value| {
        let columns = row.as_object_mut().unwrap();
        columns.retain(|name, _| {
            !["until", "ends_at", "trial_ends_at", "current_period_end", "next_payment_attempt"].contains(&&**name)
        });
        row
    };
    rows.iter().map(|row| without_times(row.get(0))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_documentation_answers_the_applications_role() {
    let settings = Settings { price_plans: vec![("price_team", "team")], ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let Example { team, leaver, trial } = fill(&app).await;
    let role = Role::create(&app, "app").await;
    grants(&app, &["--app-role", &role.name, "--apply"]).await.ends_with(0);
    app.execute(&format!("GRANT SELECT ON members TO {}", identifier(&role.name))).await;
    let sql = role.client().await;

    let expected = [
        json!([{"entitled": true, "plan": "team", "seat_limit": 5, "reason": "subscription sub_team is active"}]),
        json!([{"name": "Leaver", "plan": "team"}, {"name": "Team", "plan": "team"}, {"name": "Trial", "plan": "trial"}]),
        json!([{"seats_left": 3}]),
        json!([{"id": team}]),
        json!([{"has_sso": true}]),
        json!([{"stripe_price_id": "price_team", "quantity": 5, "unit_amount": null, "currency": null,
                "interval": "month"}]),
        json!([{"plan": "team", "status": "active", "seat_limit": 5}]),
        json!([{"account_id": leaver, "plan": "team"}]),
        json!([{"account_id": trial, "plan": "trial"}]),
        json!([{"account_id": leaver, "latest_invoice_url": "https://invoice.stripe.com/i/1"}]),
        json!([{"plan": "team", "accounts": 2}, {"plan": "trial", "accounts": 1}]),
        json!([{"id": 1, "account_id": team, "kinds": ["started"]}, {"id": 2, "account_id": leaver, "kinds": ["started"]},
               {"id": 3, "account_id": leaver, "kinds": ["invoice_changed"]}]),
    ];
    let queries: Vec<_> = sql_blocks(READING).into_iter().filter(|block| block.starts_with("SELECT")).collect();
    assert_eq!(queries.len(), expected.len());
    for (query, expected) in queries.iter().zip(expected) {
        let rows = rows(&sql, query, team).await;
        assert_eq!(Value::from(rows), expected, "{query}");
    }
    role.drop(&app).await;
}

/// The names in back quotes of a line's first cell, if the line is a table's row.
fn names(line: &str) -> impl Iterator<Item = &str> {
    let cell = line.strip_prefix("| `").and_then(|row| row.split(" | ").next()).unwrap_or_default();
    cell.split([',', ' ']).map(|name| name.trim_matches('`')).filter(|name| !name.is_empty())
}

/// The columns that the document describes under the heading of a table or view.
fn documented(relation: &str) -> BTreeSet<String> {
    let (_, section) = READING.split_once(&format!("\n### `{relation}`\n")).unwrap_or_else(|| panic!("no {relation}"));
    let section = section.split("\n#").next().unwrap();
    section.lines().flat_map(names).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_columns_are_those_of_the_tables_and_views() {
    let database = Database::migrated();
    let sql = database.client().await;
    let tables = ["accounts", "account_customers", "subscriptions", "customer_features"];
    let events = ["stripe_events", "event_notifications", "event_failures"];
    for relation in [&tables[..], &events[..], &VIEWS[..]].concat() {
        let query = "SELECT column_name::text FROM information_schema.columns WHERE table_name = $1";
        let rows = sql.query(query, &[&relation]).await.unwrap();
        let columns: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        let documented = documented(relation);
        let unknown: Vec<_> = documented.difference(&columns).collect();
        assert!(documented.len() > 1 && unknown.is_empty(), "{relation}: {unknown:?}");
        if VIEWS.contains(&relation) {
            assert_eq!(documented, columns, "{relation}");
        }
    }
}

/// The model of a table or view: the declaration, from one line without indentation to the next, that names it.
fn model<'a>(models: &'a [String], relation: &str) -> &'a str {
    let quoted = [format!("\"{relation}\""), format!("'{relation}'")];
    let mut found = models.iter().filter(|model| quoted.iter().any(|name| model.contains(name)));
    found.next().unwrap_or_else(|| panic!("no model of {relation}"))
}

/// The models that list columns name every documented one, as it is or in camel case. ActiveRecord lists none.
#[test]
fn the_read_models_have_every_documented_column() {
    let mut checked = 0;
    for section in READ_MODELS.split("\n## ").skip(1).filter(|section| !section.starts_with("ActiveRecord")) {
        let library = section.lines().next().unwrap();
        let mut models = vec![String::new()];
        for line in section.split("```").nth(1).unwrap().lines() {
            if ["view ", "export const ", "class "].iter().any(|start| line.starts_with(start)) {
                models.push(String::new());
            }
            models.last_mut().unwrap().push_str(line);
            models.last_mut().unwrap().push('\n');
        }
        for relation in VIEWS.into_iter().chain(["subscriptions"]) {
            let model = model(&models, relation);
            let words: BTreeSet<_> =
                model.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').collect();
            for column in documented(relation) {
                let is_there = words.contains(&*column) || words.contains(&*camel_case(&column));
                assert!(is_there, "{library}: {relation}.{column} is missing in {model}");
                checked += 1;
            }
        }
    }
    assert!(checked > 200, "{checked}");
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap().to_owned();
    words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..])
}
