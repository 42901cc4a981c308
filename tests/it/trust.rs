//! Whose events act: those of the configured mode, and what the owner of a connected account may not say. And where a
//! subscription goes that only its own metadata had placed.

use reqwest::Method;
use serde_json::{Value, json};
use subledger::stripe::trust::{ConnectTrust, Mode};
use uuid::Uuid;

use crate::support::app::ADMIN_TOKEN;
use crate::support::events::{checkout, completed, created, invoice, paid, subscription, updated};
use crate::support::{Event, SWEPT, Settings, StripeApi, TestApp};

/// How many events were refused for this reason.
async fn refused(app: &TestApp, reason: &str) -> String {
    let text = app.http.get(app.url("/metrics")).bearer_auth(ADMIN_TOKEN).send().await.unwrap().text().await.unwrap();
    let name = format!(r#"subledger_refused_events_total{{reason="{reason}"}} "#);
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or("0").to_owned()
}

async fn start(mode: Mode, trust: ConnectTrust) -> TestApp {
    TestApp::start_with(Settings { mode, trust, ..Settings::default() }, None).await
}

fn of_mode(id: &str, livemode: bool) -> Event {
    created(id, 100, subscription(&format!("sub_{id}"), "cus_1", "active", 5)).with("livemode", json!(livemode))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_events_of_the_mode_act_and_the_others_can_be_replayed_once_it_is_right() {
    for (mode, acts_live, acts_test) in [(Mode::Live, true, false), (Mode::Test, false, true), (Mode::Any, true, true)]
    {
        let app = start(mode, ConnectTrust::None).await;
        app.account_of("cus_1").await;
        let events = [(of_mode("evt_live", true), acts_live), (of_mode("evt_test", false), acts_test)];
        // Together, so that they share a batch.
        let answers = app.deliver_all(&[&events[0].0, &events[1].0], 2).await;
        for (answer, (event, acts)) in answers.iter().zip(&events) {
            let outcome = if *acts { "applied" } else { "ignored" };
            assert_eq!((answer.status, answer.outcome()), (200, outcome), "{mode}: {event}");
            assert_eq!(app.event_row(event.id()).await["outcome"], outcome, "{mode}");
        }
        let expected = i64::from(acts_live) + i64::from(acts_test);
        assert_eq!(app.count("subscriptions").await, expected, "{mode}");
        assert_eq!(app.count("subscription_changes").await, expected, "{mode}");
        assert_eq!(refused(&app, "mode").await, (2 - expected).to_string(), "{mode}");
        // A redelivery is a duplicate, as of every event.
        assert_eq!(app.deliver(&events[1].0).await.outcome(), "duplicate");

        let right = TestApp::start_beside(&app, Settings::default()).await;
        for (event, acts) in &events {
            let path = format!("/events/{}/replay", event.id());
            let answer = right.admin(Method::POST, &path, None).await;
            if !acts {
                assert_eq!(answer.body, json!({"applied": true, "outcome": "applied"}), "{mode}: {event}");
                assert_eq!(app.event_row(event.id()).await["outcome"], "applied");
            }
        }
        assert_eq!(app.count("subscriptions").await, 2, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_the_other_mode_neither_links_nor_waits() {
    let app = start(Mode::Live, ConnectTrust::None).await;
    let account = app.account().await;
    let session = checkout("cus_1", "sub_1", Some(&account.to_string()));
    assert_eq!(app.deliver(completed("evt_1", 100, session)).await.outcome(), "ignored");
    assert_eq!(app.count("accounts WHERE stripe_customer_id IS NOT NULL").await, 0);
    assert_eq!(app.deliver(of_mode("evt_2", false)).await.outcome(), "ignored");
    assert_eq!(app.create_account(json!({"name": "x", "stripe_customer_id": "cus_1"})).await.status, 201);
    assert_eq!(app.count("subscriptions").await, 0);
}

/// Events of a connected account that name an account of ours, in metadata and as a checkout's reference.
fn naming(account: Uuid, number: usize, field: &str, value: &str) -> [Event; 2] {
    let mut object = subscription(&format!("sub_{number}"), &format!("cus_{number}"), "active", 5);
    object["metadata"]["account_id"] = json!(account);
    let session = checkout(&format!("cus_c{number}"), &format!("sub_c{number}"), Some(&account.to_string()));
    [
        created(&format!("evt_{number}"), 100, object).with(field, json!(value)),
        completed(&format!("evt_c{number}"), 100, session).with(field, json!(value)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_account_names_an_account_of_ours_only_where_it_is_trusted() {
    let list = || ConnectTrust::Accounts(vec!["acct_a".to_owned(), "acct_b".to_owned()]);
    for (trust, trusted) in
        [(ConnectTrust::None, [false; 5]), (ConnectTrust::All, [true; 5]), (list(), [true, false, true, false, true])]
    {
        let app = start(Mode::Any, trust.clone()).await;
        let account = app.account().await;
        let sources = [
            ("account", "acct_a"),
            ("account", "acct_x"),
            ("context", "acct_b"),
            ("context", "acct_a/acct_x"),
            ("context", "acct_x/acct_a"),
        ];
        let mut refusals = 0;
        for (number, ((field, value), is_trusted)) in sources.into_iter().zip(trusted).enumerate() {
            for event in naming(account, number, field, value) {
                let outcome = if is_trusted { "applied" } else { "parked" };
                let answer = app.deliver(&event).await;
                assert_eq!(answer.outcome(), outcome, "{trust:?} {field} {value}: {answer:?}");
                let named = json!(value.rsplit('/').next().unwrap());
                assert_eq!(app.event_row(event.id()).await["connect_account"], named);
                refusals += i32::from(!is_trusted);
            }
        }
        let rows = trusted.iter().filter(|trusted| **trusted).count() as i64;
        assert_eq!(app.count("subscriptions").await, rows, "{trust:?}");
        let linked = app.count("customer_links").await;
        assert_eq!(linked, rows, "only the trusted checkouts link: {trust:?}");
        assert_eq!(refused(&app, "connect").await, refusals.to_string(), "{trust:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_name_is_not_believed_after_it_was_parked_either() {
    let app = start(Mode::Any, ConnectTrust::None).await;
    let id = Uuid::new_v4();
    for event in naming(id, 1, "account", "acct_x") {
        assert_eq!(app.deliver(event).await.outcome(), "parked");
    }
    assert_eq!(app.create_account(json!({"id": id, "name": "Victim"})).await.status, 201);
    assert_eq!((app.count("subscriptions").await, app.count("customer_links").await), (0, 0));
    // Linked by us, the customer's events act.
    let path = format!("/api/v1/accounts/{id}");
    assert_eq!(app.admin(Method::PATCH, &path, Some(json!({"stripe_customer_id": "cus_1"}))).await.status, 200);
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["account_id"], &row["connect_account"]), (&json!(id), &json!("acct_x")));
}

/// A subscription of `cus_1` that names this account.
fn named(id: &str, second: i64, account: Uuid) -> Event {
    let mut object = subscription("sub_1", "cus_1", "active", second);
    object["metadata"]["account_id"] = json!(account);
    updated(id, second, object)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_metadata_alone_has_placed_moves_when_the_customer_is_linked() {
    for way in ["patch", "post", "checkout", "checkout with a key", "account by sql", "further customer by sql"] {
        for is_linked_first in [false, true] {
            let stripe = StripeApi::start().await;
            let has_key = way == "checkout with a key";
            let app = TestApp::start_with(Settings::default(), has_key.then_some(&stripe)).await;
            let (wrong, mut right) = (app.account().await, app.account().await);
            let event = named("evt_1", 100, wrong);
            stripe.has(event.object());
            if !is_linked_first {
                assert_eq!(app.deliver(&event).await.outcome(), "applied");
                assert_eq!(app.subscription("sub_1").await["account_id"], json!(wrong));
            }
            match way {
                "patch" => {
                    let path = format!("/api/v1/accounts/{right}");
                    let link = json!({"stripe_customer_id": "cus_1"});
                    assert_eq!(app.admin(Method::PATCH, &path, Some(link)).await.status, 200);
                }
                "post" => {
                    let answer = app.create_account(json!({"name": "x", "stripe_customer_id": "cus_1"})).await;
                    right = answer.body["id"].as_str().unwrap().parse().unwrap();
                }
                "account by sql" => {
                    let link = format!("UPDATE accounts SET stripe_customer_id = 'cus_1' WHERE id = '{right}'");
                    app.execute(&link).await;
                }
                "further customer by sql" => {
                    app.execute(&format!("INSERT INTO account_customers VALUES ('cus_1', '{right}')")).await;
                }
                _ => {
                    let session = checkout("cus_1", "sub_1", Some(&right.to_string()));
                    assert_eq!(app.deliver(completed("evt_2", 90, session)).await.outcome(), "applied");
                }
            }
            if is_linked_first {
                app.deliver(&event).await;
            }
            let moved = format!("subscriptions WHERE stripe_subscription_id = 'sub_1' AND account_id = '{right}'");
            app.wait_for_count(&moved, 1, SWEPT).await;
            // From now on it is its customer's: what its metadata says later makes no difference.
            app.deliver(named("evt_3", 200, wrong)).await;
            let row = app.subscription("sub_1").await;
            assert_eq!((&row["account_id"], &row["seat_limit"]), (&json!(right), &json!(200)), "{way}");
            let moves = app.count("subscription_changes WHERE 'moved' = ANY(kinds)").await;
            assert_eq!(moves, i64::from(!is_linked_first), "{way}, linked first: {is_linked_first}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_has_placed_stays() {
    let app = TestApp::start().await;
    let first = app.account_of("cus_1").await;
    let other = app.account().await;
    app.deliver(named("evt_1", 100, other)).await;
    assert_eq!(app.subscription("sub_1").await["account_id"], json!(first));
    let path = format!("/api/v1/accounts/{first}");
    assert_eq!(app.admin(Method::PATCH, &path, Some(json!({"stripe_customer_id": null}))).await.status, 200);
    let path = format!("/api/v1/accounts/{other}");
    assert_eq!(app.admin(Method::PATCH, &path, Some(json!({"stripe_customer_id": "cus_1"}))).await.status, 200);
    app.deliver(named("evt_2", 110, other)).await;
    assert_eq!(app.subscription("sub_1").await["account_id"], json!(first));
}

/// A subscription of a customer that is an account of Stripe's, alone or beside its `cus_…`.
fn of_customer_account(id: &str, customer: Option<&str>, customer_account: &str) -> Event {
    let mut object = subscription(&format!("sub_{id}"), "", "active", 5);
    object["customer"] = json!(customer);
    object["customer_account"] = json!(customer_account);
    created(id, 100, object)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_account_is_taken_beside_or_instead_of_a_customer() {
    let app = TestApp::start().await;
    let first = app.account_of("acct_1").await;
    assert_eq!(app.deliver(of_customer_account("evt_1", None, "acct_1")).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_evt_1").await["account_id"], json!(first));
    assert_eq!(app.event_row("evt_1").await["customer_id"], "acct_1");
    let found = app.get("/events?customer=acct_1").await.body;
    assert_eq!(found["data"][0]["customer"], "acct_1");

    // Both, of which one is linked: the other is linked to the same account.
    assert_eq!(app.deliver(of_customer_account("evt_2", Some("cus_1"), "acct_1")).await.outcome(), "applied");
    assert_eq!(app.event_row("evt_2").await["customer_id"], "cus_1");
    let linked = format!("customer_links WHERE stripe_customer_id = 'cus_1' AND account_id = '{first}'");
    assert_eq!(app.count(&linked).await, 1);
    let second = app.account_of("cus_2").await;
    assert_eq!(app.deliver(of_customer_account("evt_3", Some("cus_2"), "acct_2")).await.outcome(), "applied");
    let linked = format!("customer_links WHERE stripe_customer_id = 'acct_2' AND account_id = '{second}'");
    assert_eq!(app.count(&linked).await, 1);

    // Both are linked to different accounts: the customer counts.
    assert_eq!(app.deliver(of_customer_account("evt_4", Some("cus_2"), "acct_1")).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_evt_4").await["account_id"], json!(second));

    // Neither: parked, and applied when the `acct_…` is linked.
    assert_eq!(app.deliver(of_customer_account("evt_5", None, "acct_5")).await.outcome(), "parked");
    assert_eq!(app.deliver(of_customer_account("evt_6", Some("cus_6"), "acct_5")).await.outcome(), "parked");
    let answer = app.create_account(json!({"name": "x", "stripe_customer_id": "acct_5"})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    app.wait_for_count("stripe_events WHERE outcome = 'parked'", 0, SWEPT).await;
    let rows: Vec<Value> = app
        .json(
            "SELECT to_jsonb(s) FROM subscriptions s WHERE account_id = $1",
            &[&answer.body["id"].as_str().unwrap().parse::<Uuid>().unwrap()],
        )
        .await;
    assert_eq!(rows.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_account_in_any_form_is_released_when_it_is_linked() {
    let expanded = json!({"id": "acct_1", "object": "v2.core.account"});
    let forms = [
        (json!(null), expanded.clone()),
        (json!("cus_1"), expanded.clone()),
        (json!("acct_1"), json!(null)),
        (expanded, json!(null)),
    ];
    for by_api in [true, false] {
        let app = TestApp::start().await;
        for (number, (customer, customer_account)) in forms.iter().enumerate() {
            let mut event = of_customer_account(&format!("evt_{number}"), None, "");
            event.0["data"]["object"]["customer"] = customer.clone();
            event.0["data"]["object"]["customer_account"] = customer_account.clone();
            // Also the oldest time that PostgreSQL holds comes behind the beginning.
            event.0["created"] = json!(if number == 0 { -5 } else { 100 });
            assert_eq!(app.deliver(event).await.outcome(), "parked", "{customer} {customer_account}");
        }
        if by_api {
            let answer = app.create_account(json!({"name": "x", "stripe_customer_id": "acct_1"})).await;
            assert_eq!(answer.status, 201, "{answer:?}");
        } else {
            app.account_of("acct_1").await;
        }
        app.wait_for_count("stripe_events WHERE outcome = 'applied'", forms.len() as i64, SWEPT).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_metadata_has_placed_moves_when_its_customer_account_is_linked() {
    let app = TestApp::start().await;
    let (by_name, linked) = (app.account().await, app.account().await);
    let mut event = of_customer_account("evt_1", Some("cus_1"), "acct_1");
    event.0["data"]["object"]["metadata"] = json!({"account_id": by_name});
    assert_eq!(app.deliver(event).await.outcome(), "applied");
    assert_eq!(app.subscription("sub_evt_1").await["account_id"], json!(by_name));
    let path = format!("/api/v1/accounts/{linked}");
    let answer = app.admin(Method::PATCH, &path, Some(json!({"stripe_customer_id": "acct_1"}))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(app.subscription("sub_evt_1").await["account_id"], json!(linked));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_that_carries_both_customers_links_the_second() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.deliver(created("evt_1", 100, subscription("sub_1", "cus_1", "active", 1))).await;
    let mut bill = invoice("in_1", "cus_1", "sub_1");
    bill["customer_account"] = json!("acct_1");
    assert_eq!(app.deliver(paid("evt_2", 110, bill)).await.outcome(), "applied");
    let summary = json!({"object": "entitlements.active_entitlement_summary", "customer": "cus_1",
                         "customer_account": "acct_2", "entitlements": {"data": [], "has_more": false}});
    let features = Event::new("evt_3", "entitlements.active_entitlement_summary.updated", 110, summary);
    assert_eq!(app.deliver(features).await.outcome(), "applied");
    for customer in ["acct_1", "acct_2"] {
        let link = format!("customer_links WHERE stripe_customer_id = '{customer}' AND account_id = '{account}'");
        assert_eq!(app.count(&link).await, 1, "{customer}");
    }
}
