//! Local rows: which subscription takes one over, when, and what is then shown, in every order of arrival.

use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::events::{created, deleted, subscription, updated};
use crate::support::{Event, Settings, StripeApi, TestApp, job};

const DAY: i64 = 86_400;

/// A subscription without a name for its plan, made at Stripe so many seconds ago.
fn made(id: &str, customer: &str, status: &str, seconds_ago: i64) -> Value {
    let mut object = subscription(id, customer, status, 5);
    object["created"] = (Utc::now().timestamp() - seconds_ago).into();
    object
}

/// A local row of a plan, made now.
async fn local(app: &TestApp, account: Uuid, plan: &str) -> Uuid {
    let insert = "INSERT INTO subscriptions (account_id, plan, status) VALUES ($1, $2, 'active') RETURNING id";
    app.sql.query_one(insert, &[&account, &plan]).await.unwrap().get(0)
}

async fn local_plans(app: &TestApp, account: Uuid) -> Vec<Value> {
    let query = "SELECT to_jsonb(plan) FROM subscriptions WHERE account_id = $1 AND stripe_subscription_id IS NULL
                 ORDER BY created_at";
    app.json(query, &[&account]).await
}

async fn entitlement(app: &TestApp, account: Uuid) -> Value {
    app.get(&format!("/api/v1/accounts/{account}")).await.body["entitlement"].clone()
}

async fn check_outcomes(app: &TestApp, events: &[(Event, &str)]) {
    for (event, outcome) in events {
        assert_eq!(app.deliver(event).await.outcome(), *outcome, "{event}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_old_subscription_leaves_the_local_row_and_the_entitlement_alone() {
    // Linked before its events come, by a request while they are parked, and by SQL while they are parked.
    for way in ["before", "request", "sql"] {
        let app = TestApp::start().await;
        let account = if way == "before" { app.account_of("cus_1").await } else { app.account().await };
        let friends = local(&app, account, "friends").await;
        let old = |status| made("sub_old", "cus_1", status, 400 * DAY);
        for event in [created("evt_1", 100, old("active")), deleted("evt_2", 200, old("canceled"))] {
            assert_eq!(app.deliver(event).await.outcome(), if way == "before" { "applied" } else { "parked" });
        }
        match way {
            "request" => {
                let link = json!({"stripe_customer_id": "cus_1"});
                let path = format!("/api/v1/accounts/{account}");
                assert_eq!(app.admin(reqwest::Method::PATCH, &path, Some(link)).await.status, 200);
            }
            "sql" => {
                app.execute("UPDATE accounts SET stripe_customer_id = 'cus_1'").await;
                app.wait_until_none_is_parked().await;
            }
            _ => {}
        }
        assert_eq!(app.count(&format!("subscriptions WHERE id = '{friends}' AND plan = 'friends'")).await, 1, "{way}");
        assert_eq!(local_plans(&app, account).await, ["friends"], "{way}");
        let row = app.subscription("sub_old").await;
        assert_eq!((&row["status"], &row["plan"]), (&json!("canceled"), &json!("price_team")), "{way}");
        let entitlement = entitlement(&app, account).await;
        assert_eq!((&entitlement["entitled"], &entitlement["plan"]), (&json!(true), &json!("friends")), "{way}");
        assert_eq!(app.count("accounts WHERE local_plan IS NOT NULL").await, 0, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_fill_leaves_the_trials_of_returning_customers_alone() {
    let (app, stripe) = (TestApp::start().await, StripeApi::start().await);
    let account = app.account_of("cus_1").await;
    local(&app, account, "trial").await;
    let mut ended = made("sub_old", "cus_1", "canceled", 400 * DAY);
    ended["ended_at"] = (Utc::now().timestamp() - 300 * DAY).into();
    stripe.lists_events(&[]);
    stripe.lists_subscriptions(&[made("sub_unpaid", "cus_1", "incomplete", 0), ended]);
    job::run(&app, Some(&stripe), &["import"]).await.ends_with(0);
    assert_eq!(local_plans(&app, account).await, ["trial"]);
    assert_eq!(app.count("subscriptions").await, 3);
    assert_eq!(entitlement(&app, account).await["plan"], "trial");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpaid_subscription_takes_the_local_row_only_once_it_is_seen_entitled() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    let trial = local(&app, account, "trial").await;
    app.deliver(created("evt_1", 100, made("sub_1", "cus_1", "incomplete", 0))).await;
    assert_eq!(local_plans(&app, account).await, ["trial"], "its row is its own");
    let own = app.subscription("sub_1").await;
    assert_eq!((&own["plan"], &own["plan_source"]), (&json!("price_team"), &json!("price_id")));
    assert_eq!(entitlement(&app, account).await["plan"], "trial");
    app.deliver(crate::support::events::paid("evt_2", 105, crate::support::events::invoice("in_1", "cus_1", "sub_1")))
        .await;

    app.deliver(updated("evt_3", 110, made("sub_1", "cus_1", "active", 0))).await;
    let row = app.subscription("sub_1").await;
    assert_eq!(app.count("subscriptions").await, 1, "its own row was merged into the local one");
    assert_eq!((&row["id"], &row["latest_invoice_id"]), (&json!(trial), &json!("in_1")), "{row:#}");
    assert_eq!(
        (&row["plan"], &row["plan_source"], &row["status"]),
        (&json!("trial"), &json!("local"), &json!("active"))
    );
    assert_eq!(app.one("SELECT local_plan FROM accounts").await.get::<_, &str>(0), "trial");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_old_the_subscription_may_be() {
    for (seconds_ago, takes) in [(400 * DAY, false), (360, false), (240, true), (-3_600, true)] {
        let app = TestApp::start().await;
        let account = app.account_of("cus_1").await;
        local(&app, account, "trial").await;
        let object = made("sub_1", "cus_1", "active", seconds_ago);
        assert_eq!(app.deliver(created("evt_1", 100, object)).await.outcome(), "applied");
        let left = local_plans(&app, account).await;
        assert_eq!(left.is_empty(), takes, "made {seconds_ago} s ago");
        assert_eq!(app.subscription("sub_1").await["plan"], if takes { "trial" } else { "price_team" });
    }
    // One without a time counts as made after it.
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    local(&app, account, "trial").await;
    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "trialing", 1))).await;
    assert_eq!(local_plans(&app, account).await, Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_stale_event_shows_counts() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    let trial = local(&app, account, "trial").await;
    check_outcomes(&app, &[(updated("evt_2", 110, made("sub_1", "cus_1", "unpaid", 0)), "applied")]).await;
    assert_eq!(local_plans(&app, account).await, ["trial"]);
    check_outcomes(&app, &[(created("evt_1", 100, made("sub_1", "cus_1", "active", 0)), "stale")]).await;
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["id"], &row["status"], &row["plan"]), (&json!(trial), &json!("unpaid"), &json!("trial")));
    assert_eq!((&row["last_event_id"], app.count("subscriptions").await), (&json!("evt_2"), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_takes_one_local_row_and_the_next_takes_the_next() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    for plan in ["first", "second", "third"] {
        local(&app, account, plan).await;
    }
    for second in 100..104 {
        app.deliver(updated(&format!("evt_{second}"), second, made("sub_1", "cus_1", "active", 0))).await;
    }
    assert_eq!(local_plans(&app, account).await, ["second", "third"]);
    app.deliver(created("evt_2", 100, made("sub_2", "cus_1", "active", 0))).await;
    assert_eq!(local_plans(&app, account).await, ["third"]);
    let plans = app.json("SELECT to_jsonb(plan) FROM subscriptions WHERE stripe_subscription_id IS NOT NULL", &[]);
    assert_eq!(plans.await, ["first", "first"], "the plan of the first one taken over");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_take_over_on_all_rows_that_no_price_names_show_the_local_plan() {
    let settings = Settings { price_plans: vec![("price_named", "named")], ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let account = app.account_of("cus_1").await;
    local(&app, account, "trial").await;
    let mut named = made("sub_named", "cus_1", "incomplete", 0);
    named["items"]["data"][0]["price"]["id"] = "price_named".into();
    let mut by_key = made("sub_key", "cus_1", "canceled", 0);
    by_key["items"]["data"][0]["price"]["lookup_key"] = "key".into();
    for (number, object) in [named, by_key, made("sub_unnamed", "cus_1", "unpaid", 0)].into_iter().enumerate() {
        app.deliver(updated(&format!("evt_{number}"), 100, object)).await;
    }
    assert_eq!(app.subscription("sub_unnamed").await["plan"], "price_team");
    app.deliver(created("evt_9", 100, made("sub_taker", "cus_1", "active", 0))).await;
    for (id, plan, source) in [
        ("sub_named", "named", "price_plans"),
        ("sub_key", "key", "lookup_key"),
        ("sub_unnamed", "trial", "local"),
        ("sub_taker", "trial", "local"),
    ] {
        let row = app.subscription(id).await;
        assert_eq!((&row["plan"], &row["plan_source"]), (&json!(plan), &json!(source)), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_unlisted_prices_are_ignored_only_a_listed_subscription_takes_a_local_row() {
    let price_plans = vec![("price_listed", "listed")];
    let settings = Settings { price_plans, ignore_unlisted_prices: true, ..Settings::default() };
    let app = TestApp::start_with(settings, None).await;
    let account = app.account_of("cus_1").await;
    local(&app, account, "trial").await;
    app.deliver(created("evt_1", 100, made("sub_1", "cus_1", "active", 0))).await;
    assert_eq!(local_plans(&app, account).await, ["trial"]);
    let mut listed = made("sub_2", "cus_1", "active", 0);
    listed["items"]["data"][0]["price"]["id"] = "price_listed".into();
    app.deliver(created("evt_2", 100, listed)).await;
    assert_eq!(local_plans(&app, account).await, Vec::<Value>::new());
}

/// Every order of `0..length`.
pub fn orders(length: usize) -> Vec<Vec<usize>> {
    let Some(last) = length.checked_sub(1) else { return vec![Vec::new()] };
    let with_last = |order: Vec<usize>| {
        (0..length).map(move |at| [&order[..at], &[last], &order[at..]].concat()).collect::<Vec<_>>()
    };
    orders(last).into_iter().flat_map(with_last).collect()
}

/// The rows of an account without what differs between orders: ids, and which local row went to which subscription.
async fn rows(app: &TestApp, account: Uuid, copy: usize) -> Vec<Value> {
    let query = "SELECT to_jsonb(s) - '{id,account_id,created_at,updated_at,last_event_id,projected_event_id}'::text[]
                 FROM subscriptions s WHERE account_id = $1 ORDER BY stripe_subscription_id NULLS FIRST";
    let rows = app.json(query, &[&account]).await;
    rows.iter().map(|row| serde_json::from_str(&row.to_string().replace(&format!("c{copy}c"), "")).unwrap()).collect()
}

/// Delivers the events in every order, each to an account of its own with so many local rows, and checks that all end in
/// the same rows. The subscriptions' and the customer's ids end with `suffix`.
async fn check_all_orders(events: impl Fn(&str) -> Vec<Event>, locals: usize, is_linked: bool) -> Vec<Value> {
    let app = TestApp::start().await;
    let mut first: Option<(Vec<usize>, Vec<Value>, Value)> = None;
    for (copy, order) in orders(events("").len()).into_iter().enumerate() {
        let suffix = format!("c{copy}c");
        let customer = format!("cus_{suffix}");
        let account = if is_linked { app.account_of(&customer).await } else { app.account().await };
        for _ in 0..locals {
            local(&app, account, "trial").await;
        }
        let events = events(&suffix);
        for &number in &order {
            let answer = app.deliver(&events[number]).await;
            assert_eq!((answer.status, &answer.body["applied"]), (200, &json!(true)), "{order:?}");
        }
        if !is_linked {
            let path = format!("/api/v1/accounts/{account}");
            let answer = app.admin(reqwest::Method::PATCH, &path, Some(json!({"stripe_customer_id": customer}))).await;
            assert_eq!(answer.status, 200);
        }
        let ended = (rows(&app, account, copy).await, entitlement(&app, account).await["plan"].clone());
        match &first {
            None => first = Some((order, ended.0, ended.1)),
            Some((of, rows, plan)) => {
                assert_eq!((rows, plan), (&ended.0, &ended.1), "{order:?} ends otherwise than {of:?}");
            }
        }
    }
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 0);
    first.unwrap().1
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_of_a_life_ends_in_the_same_rows() {
    let at = Utc::now().timestamp();
    let object = move |suffix: &str, status: &str| {
        let mut object = subscription(&format!("sub_{suffix}"), &format!("cus_{suffix}"), status, 5);
        object["created"] = at.into();
        object
    };
    let life = move |suffix: &str| {
        vec![
            created(&format!("evt_1{suffix}"), 100, object(suffix, "incomplete")),
            updated(&format!("evt_2{suffix}"), 110, object(suffix, "active")),
            updated(&format!("evt_3{suffix}"), 120, object(suffix, "unpaid")),
            deleted(&format!("evt_4{suffix}"), 130, object(suffix, "canceled")),
        ]
    };
    for is_linked in [true, false] {
        let rows = check_all_orders(life, 2, is_linked).await;
        assert_eq!(rows.len(), 2, "one was taken over, once: {rows:#?}");
        assert_eq!((&rows[0]["stripe_subscription_id"], &rows[1]["plan"]), (&Value::Null, &json!("trial")));
        assert_eq!(rows[1]["status"], "canceled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_of_an_old_and_a_new_subscription_ends_in_the_same_rows() {
    let now = Utc::now().timestamp();
    let object = move |id: &str, suffix: &str, status: &str, made: i64| {
        let mut object = subscription(&format!("{id}_{suffix}"), &format!("cus_{suffix}"), status, 5);
        object["created"] = made.into();
        object
    };
    let events = move |suffix: &str| {
        vec![
            created(&format!("evt_1{suffix}"), 100, object("sub_old", suffix, "active", now - 400 * DAY)),
            deleted(&format!("evt_2{suffix}"), 150, object("sub_old", suffix, "canceled", now - 400 * DAY)),
            created(&format!("evt_3{suffix}"), 200, object("sub_new", suffix, "incomplete", now)),
            updated(&format!("evt_4{suffix}"), 210, object("sub_new", suffix, "active", now)),
        ]
    };
    for is_linked in [true, false] {
        let rows = check_all_orders(events, 1, is_linked).await;
        let shown: Vec<_> = rows.iter().map(|row| (&row["stripe_subscription_id"], &row["plan"])).collect();
        let (new, old) = (json!("sub_new_"), json!("sub_old_"));
        assert_eq!(shown, [(&new, &json!("trial")), (&old, &json!("trial"))]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_subscriptions_that_a_link_moves_one_takes_over_the_local_row_and_all_stay() {
    for way in ["request", "sql"] {
        let app = TestApp::start().await;
        let (right, wrong) = (app.account().await, app.account().await);
        let trial = local(&app, right, "trial").await;
        let places = [("sub_1", "active", wrong), ("sub_2", "active", wrong), ("sub_3", "incomplete", right)];
        for (id, status, account) in places {
            let mut object = made(id, "cus_1", status, 0);
            object["metadata"] = json!({"account_id": account});
            assert_eq!(app.deliver(created(&format!("evt_{id}"), 100, object)).await.outcome(), "applied");
        }
        if way == "request" {
            let link = json!({"stripe_customer_id": "cus_1"});
            let path = format!("/api/v1/accounts/{right}");
            assert_eq!(app.admin(reqwest::Method::PATCH, &path, Some(link)).await.status, 200);
        } else {
            app.execute(&format!("UPDATE accounts SET stripe_customer_id = 'cus_1' WHERE id = '{right}'")).await;
        }
        let all = format!("subscriptions WHERE account_id = '{right}' AND NOT placed_by_metadata");
        app.wait_for_count(&all, 3, std::time::Duration::from_secs(20)).await;
        for (id, status, _) in places {
            let row = app.subscription(id).await;
            // No price names a plan, so that each shows the local one.
            assert_eq!((&row["status"], &row["plan"]), (&json!(status), &json!("trial")), "{way}, {id}");
            assert_eq!(row["id"] == json!(trial), id == "sub_1", "{way}, {id}");
        }
        // That of the one that took over the local row is told as its start.
        assert_eq!(app.count("subscription_changes WHERE 'moved' = ANY(kinds)").await, 1, "{way}");
    }
}
