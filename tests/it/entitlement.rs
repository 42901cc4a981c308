//! The rule of entitlement: the view `account_entitlements` against an independent model, and HTTP against the view.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::database::Database;
use crate::support::events::{created, deleted, subscription, updated};
use crate::support::{Settings, TestApp};

async fn entitlement(app: &TestApp, account: Uuid) -> Value {
    app.get(&format!("/api/v1/accounts/{account}")).await.body["entitlement"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn active_trialing_and_past_due_entitle_and_nothing_else_does() {
    let app = TestApp::start().await;
    let statuses = [
        ("active", true),
        ("trialing", true),
        ("past_due", true),
        ("unpaid", false),
        ("paused", false),
        ("incomplete", false),
        ("incomplete_expired", false),
        ("canceled", false),
        ("hibernating", false),
    ];
    for (number, (status, is_entitled)) in statuses.into_iter().enumerate() {
        let (customer, id) = (format!("cus_{number}"), format!("sub_{number}"));
        let account = app.account_of(&customer).await;
        app.deliver(created(&format!("evt_{number}"), 100, subscription(&id, &customer, status, 5))).await;
        let row = app.subscription(&id).await;
        let expected = json!({
            "entitled": is_entitled,
            "reason": format!("subscription {id} is {status}"),
            "plan": is_entitled.then_some("price_team"),
            "plan_source": is_entitled.then_some("price_id"),
            "seat_limit": is_entitled.then_some(5),
            "until": is_entitled.then_some("2025-11-08T11:06:40Z"),
            // Its period ended long ago.
            "overdue": is_entitled,
            "subscription_id": is_entitled.then(|| row["id"].clone()),
            "since_event": is_entitled.then(|| format!("evt_{number}")),
        });
        assert_eq!(entitlement(&app, account).await, expected, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_subscriptions_the_best_counts_and_a_local_trial_entitles_too() {
    let settings = Settings { price_plans: vec![("price_team", "team")], ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let account = app.account_of("cus_1").await;
    app.local_trial(account).await;
    let trial = entitlement(&app, account).await;
    assert_eq!(
        (&trial["entitled"], &trial["plan"], &trial["plan_source"]),
        (&json!(true), &json!("trial"), &json!("local"))
    );
    assert_eq!((&trial["since_event"], &trial["until"]), (&Value::Null, &Value::Null));

    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "past_due", 1))).await;
    app.deliver(created("evt_2", 100, subscription("sub_2", "cus_1", "active", 2))).await;
    app.deliver(created("evt_3", 900, subscription("sub_3", "cus_1", "unpaid", 3))).await;
    let best = entitlement(&app, account).await;
    assert_eq!(
        (&best["since_event"], &best["seat_limit"], &best["plan"], &best["plan_source"]),
        (&json!("evt_2"), &json!(2), &json!("team"), &json!("price_plans"))
    );

    app.deliver(deleted("evt_4", 200, subscription("sub_2", "cus_1", "canceled", 2))).await;
    let next = entitlement(&app, account).await;
    assert_eq!((&next["since_event"], &next["reason"]), (&json!("evt_1"), &json!("subscription sub_1 is past_due")));

    app.deliver(deleted("evt_5", 1000, subscription("sub_1", "cus_1", "canceled", 1))).await;
    let none = entitlement(&app, account).await;
    assert_eq!((&none["entitled"], &none["plan"], &none["since_event"]), (&json!(false), &Value::Null, &Value::Null));
    assert_eq!((&none["reason"], &none["overdue"]), (&json!("subscription sub_1 is canceled"), &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_is_to_come_bounds_the_entitlement() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    let mut object = subscription("sub_1", "cus_1", "active", 1);
    object["cancel_at"] = json!(1_761_000_000);
    app.deliver(updated("evt_1", 100, object.clone())).await;
    assert_eq!(entitlement(&app, account).await["until"], "2025-10-20T22:40:00Z");
    assert_eq!(app.subscription("sub_1").await["ends_at"], "2025-10-20T22:40:00+00:00");
    object["cancel_at"] = json!(1_999_000_000);
    app.deliver(updated("evt_2", 101, object.clone())).await;
    assert_eq!(entitlement(&app, account).await["until"], "2025-11-08T11:06:40Z");
    // An invoice or a stale event leaves it as it is.
    app.deliver(updated("evt_0", 99, object)).await;
    assert_eq!(entitlement(&app, account).await["since_event"], "evt_2");
}

#[tokio::test(flavor = "multi_thread")]
async fn unlisted_prices_are_ignored_on_request_and_the_last_server_to_start_decides() {
    let listed = |ignore_unlisted_prices| Settings {
        price_plans: vec![("price_listed", "pro")],
        ignore_unlisted_prices,
        entitled_statuses: vec!["active"],
        ..Settings::default()
    };
    let app = TestApp::start_with(listed(true), None).await;
    let account = app.account_of("cus_1").await;
    let unlisted = subscription("sub_1", "cus_1", "active", 1);
    app.deliver(created("evt_1", 100, unlisted.clone())).await;
    let ignored = entitlement(&app, account).await;
    assert_eq!(
        (&ignored["entitled"], &ignored["reason"]),
        (&json!(false), &json!("subscription sub_1 is active, but none of its prices is in PRICE_PLANS"))
    );
    // Not all items are known: a known price may be among the others.
    let mut partial = unlisted.clone();
    partial["items"]["has_more"] = json!(true);
    app.deliver(updated("evt_2", 101, partial)).await;
    let row = app.subscription("sub_1").await;
    assert_eq!(
        (&row["items_complete"], &row["plan"], &row["plan_source"]),
        (&json!(false), &Value::Null, &Value::Null)
    );
    assert_eq!(entitlement(&app, account).await["entitled"], true);
    app.deliver(updated("evt_3", 102, unlisted)).await;
    assert_eq!(entitlement(&app, account).await["entitled"], false);

    // Another server on the same database.
    let other = TestApp::start_at(Database::empty(), app.database.target(), listed(false), None).await;
    assert_eq!(entitlement(&other, account).await["entitled"], true);
    assert_eq!(entitlement(&app, account).await["entitled"], true, "there is one rule");
}

/// A row of `subscriptions`, with times in days from now.
#[derive(Clone, Debug)]
struct Row {
    is_local: bool,
    status: &'static str,
    plan_source: Option<&'static str>,
    items_complete: bool,
    period_end: Option<i64>,
    trial_end: Option<i64>,
    cancel_at: Option<i64>,
    ended_at: Option<i64>,
    cancel_at_period_end: bool,
}

const STATUSES: [&str; 7] = ["active", "trialing", "past_due", "unpaid", "canceled", "paused", "hibernating"];
const SOURCES: [Option<&str>; 6] =
    [Some("price_plans"), Some("lookup_key"), Some("local"), Some("price_id"), Some("unknown"), None];

prop_compose! {
    fn any_row()(
        is_local in any::<bool>(), status in 0..STATUSES.len(), source in 0..SOURCES.len(), items_complete in any::<bool>(),
        [period_end, trial_end, cancel_at, ended_at] in proptest::array::uniform4(proptest::option::of(-4..5_i64)),
        cancel_at_period_end in any::<bool>(),
    ) -> Row {
        let (status, plan_source) = (STATUSES[status], SOURCES[source]);
        Row { is_local, status, plan_source, items_complete, period_end, trial_end, cancel_at, ended_at, cancel_at_period_end }
    }
}

/// The contract's words, on rows with times in days. `None`: not entitled.
fn model(rows: &[(Uuid, Row)], statuses: &[&str], ignore_unlisted: bool) -> Option<(Uuid, Option<i64>, bool)> {
    let until = |row: &Row| {
        let by_period = if row.cancel_at_period_end { row.period_end } else { None };
        let ends = row.ended_at.or(row.cancel_at).or(by_period);
        let end = if row.is_local { row.period_end.max(row.trial_end) } else { row.period_end.or(row.trial_end) };
        [ends, end].into_iter().flatten().min()
    };
    let entitles = |row: &Row| {
        let is_current = [row.period_end, row.trial_end].into_iter().flatten().max().is_none_or(|end| end >= 0);
        let is_listed = !row.items_complete || matches!(row.plan_source, Some("price_plans" | "unknown"));
        statuses.contains(&row.status) && if row.is_local { is_current } else { !ignore_unlisted || is_listed }
    };
    let key = |(id, row): &&(Uuid, Row)| {
        let is_mapped = !row.is_local && row.plan_source == Some("price_plans");
        let position = statuses.iter().position(|status| *status == row.status);
        (!is_mapped, position, until(row).map_or((0, 0), |days| (1, -days)), *id)
    };
    let (id, row) = rows.iter().filter(|(_, row)| entitles(row)).min_by_key(key)?;
    let is_past = |end: Option<i64>| end.is_some_and(|end| end < -2);
    let has_passed = is_past(row.period_end.or(row.trial_end)) || row.status == "trialing" && is_past(row.trial_end);
    let is_overdue = !row.is_local && !["canceled", "incomplete_expired", "paused"].contains(&row.status) && has_passed;
    Some((*id, until(row), is_overdue))
}

/// Times are half a day off whole days from now, so that none passes while the test runs.
fn insert(id: Uuid, account: Uuid, row: &Row) -> String {
    let at = |days: Option<i64>| days.map_or("NULL".to_owned(), |days| format!("now() + '{days} days 12 hours'"));
    let text = |text: Option<&str>| text.map_or("NULL".to_owned(), |text| format!("'{text}'"));
    let stripe_id = (!row.is_local).then(|| format!("sub_{id}"));
    format!(
        "INSERT INTO subscriptions (id, account_id, plan, seat_limit, stripe_subscription_id, status, plan_source,
             items_complete, current_period_end, trial_end, cancel_at, ended_at, cancel_at_period_end, last_event_id)
         VALUES ('{id}', '{account}', 'plan of {id}', 7, {}, '{}', {}, {}, {}, {}, {}, {}, {}, {});",
        text(stripe_id.as_deref()),
        row.status,
        text(row.plan_source),
        row.items_complete,
        at(row.period_end),
        at(row.trial_end),
        at(row.cancel_at),
        at(row.ended_at),
        row.cancel_at_period_end,
        text(stripe_id.as_deref()),
    )
}

async fn seen(sql: &Client, account: Uuid) -> Value {
    let row = sql
        .query_one("SELECT to_jsonb(e) || jsonb_build_object('days', round((extract(epoch FROM until - now()) - 43200) / 86400))
                    FROM account_entitlements e WHERE account_id = $1", &[&account])
        .await
        .unwrap();
    row.get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_view_says_what_the_contract_says_of_random_accounts() {
    let database = Database::migrated();
    let sql = database.client().await;
    let mut runner = TestRunner::deterministic();
    let accounts = proptest::collection::vec(any_row(), 0..5);
    for (statuses, ignore_unlisted) in
        [(vec!["active", "trialing", "past_due"], false), (vec!["trialing", "active", "canceled"], true)]
    {
        let list = statuses.join(",");
        let settings = format!(
            "UPDATE entitlement_settings SET entitled_statuses = '{{{list}}}', ignore_unlisted_prices = {ignore_unlisted}"
        );
        sql.batch_execute(&settings).await.unwrap();
        for _ in 0..200 {
            let rows = accounts.new_tree(&mut runner).unwrap().current();
            let rows: Vec<_> = rows.into_iter().map(|row| (Uuid::new_v4(), row)).collect();
            let account = Uuid::new_v4();
            let mut statements = format!("INSERT INTO accounts (id) VALUES ('{account}');");
            statements.extend(rows.iter().map(|(id, row)| insert(*id, account, row)));
            sql.batch_execute(&statements).await.unwrap();
            let seen = seen(&sql, account).await;
            let context = format!("{rows:#?} {statuses:?} {ignore_unlisted} {seen:#}");
            let Some((id, until, is_overdue)) = model(&rows, &statuses, ignore_unlisted) else {
                assert_eq!((&seen["entitled"], &seen["overdue"]), (&json!(false), &json!(false)), "{context}");
                for column in ["plan", "plan_source", "seat_limit", "until", "subscription_id", "since_event"] {
                    assert_eq!(seen[column], Value::Null, "{column}: {context}");
                }
                assert!(seen["reason"].is_string(), "{context}");
                continue;
            };
            let row = &rows.iter().find(|(other, _)| *other == id).unwrap().1;
            let plan_source = if row.is_local { Some("local") } else { row.plan_source };
            assert_eq!(seen["entitled"], true, "{context}");
            assert_eq!(seen["subscription_id"], json!(id), "{context}");
            assert_eq!(seen["plan"], json!(format!("plan of {id}")), "{context}");
            assert_eq!((&seen["seat_limit"], &seen["plan_source"]), (&json!(7), &json!(plan_source)), "{context}");
            assert_eq!(seen["days"], json!(until), "{context}");
            assert_eq!(seen["overdue"], is_overdue, "{context}");
            assert_eq!(seen["since_event"].is_null(), row.is_local, "{context}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_answers_what_the_view_says() {
    let app = TestApp::start().await;
    let mut runner = TestRunner::deterministic();
    let accounts = proptest::collection::vec(any_row(), 0..4);
    for _ in 0..40 {
        let rows = accounts.new_tree(&mut runner).unwrap().current();
        let account = Uuid::new_v4();
        let mut statements = format!("INSERT INTO accounts (id) VALUES ('{account}');");
        statements.extend(rows.iter().map(|row| insert(Uuid::new_v4(), account, row)));
        app.sql.batch_execute(&statements).await.unwrap();
        let mut seen = seen(&app.sql, account).await;
        for extra in ["days", "account_id"] {
            seen.as_object_mut().unwrap().remove(extra);
        }
        let mut answered = entitlement(&app, account).await;
        let time = |value: &Value| value.as_str().map(|text| chrono::DateTime::parse_from_rfc3339(text).unwrap());
        assert_eq!(time(&answered["until"]), time(&seen["until"]));
        answered["until"] = seen["until"].clone();
        assert_eq!(answered, seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_or_a_list_of_them_is_found_by_index_also_before_the_tables_are_analysed() {
    let database = Database::migrated();
    let sql = database.client().await;
    sql.batch_execute(
        "INSERT INTO accounts (id) SELECT gen_random_uuid() FROM generate_series(1, 3000);
         INSERT INTO subscriptions (account_id, status) SELECT id, 'active' FROM accounts;
         SET enable_seqscan = off",
    )
    .await
    .unwrap();
    for condition in ["= gen_random_uuid()", "= ANY (ARRAY(SELECT id FROM accounts LIMIT 20))"] {
        let plan = sql
            .query(&format!("EXPLAIN SELECT * FROM account_entitlements WHERE account_id {condition}"), &[])
            .await
            .unwrap();
        let plan: Vec<String> = plan.iter().map(|line| line.get(0)).collect();
        let plan = plan.join("\n");
        assert!(plan.contains("subscriptions_account_id_idx"), "{plan}");
    }
}
