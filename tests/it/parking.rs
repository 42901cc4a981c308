//! Nothing is dropped: what cannot be placed yet waits, and is applied by itself once it can be.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::events::{checkout, completed, created, deleted, invoice, paid, subscription, updated};
use crate::support::{Answer, Event, SWEPT, Settings, StripeApi, TestApp};

/// What waits of customer 1: two subscriptions, one with a later change and an invoice, delivered newest first.
fn waiting() -> [Event; 4] {
    [
        paid("evt_4", 102, invoice("in_1", "cus_1", "sub_1")),
        updated("evt_3", 110, subscription("sub_1", "cus_1", "active", 7)),
        created("evt_2", 105, subscription("sub_2", "cus_1", "trialing", 2)),
        created("evt_1", 100, subscription("sub_1", "cus_1", "incomplete", 1)),
    ]
}

async fn park(app: &TestApp, events: impl IntoIterator<Item = Event>) {
    for event in events {
        let answer = app.deliver(&event).await;
        assert_eq!((answer.status, answer.body), (200, json!({"applied": true, "outcome": "parked"})), "{event}");
        let row = app.event_row(event.id()).await;
        assert_eq!((&row["outcome"], &row["account_id"]), (&json!("parked"), &Value::Null), "{event}");
    }
}

async fn check_all_woken(app: &TestApp, account: Uuid) {
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["status"], &row["seat_limit"]), (&json!("active"), &json!(7)), "{row:#}");
    assert_eq!((&row["latest_invoice_id"], &row["last_event_id"]), (&json!("in_1"), &json!("evt_3")), "{row:#}");
    assert_eq!(app.subscription("sub_2").await["seat_limit"], 2);
    assert_eq!(app.count(&format!("subscriptions WHERE account_id = '{account}'")).await, 2);
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 0);
    let outcomes = app.json("SELECT to_jsonb(outcome) FROM stripe_events WHERE id LIKE 'evt__' ORDER BY id", &[]).await;
    assert_eq!(outcomes[..4], ["applied", "applied", "applied", "applied"], "in Stripe's order, each was news");
    let elsewhere = format!("stripe_events WHERE id <= 'evt_4' AND account_id IS DISTINCT FROM '{account}'");
    assert_eq!(app.count(&elsewhere).await, 0);
    assert_eq!(app.count("event_failures").await, 0);
}

fn account_id(answer: &Answer) -> Uuid {
    answer.body["id"].as_str().unwrap_or_else(|| panic!("{answer:?}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_customer_is_applied_when_an_account_is_created_with_it() {
    let app = TestApp::start().await;
    park(&app, waiting()).await;
    let answer = app.create_account(json!({"name": "Acme", "stripe_customer_id": "cus_1"})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.body["subscriptions"].as_array().unwrap().len(), 2);
    check_all_woken(&app, account_id(&answer)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_customer_is_applied_when_an_account_is_patched_with_it() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_former").await;
    park(&app, waiting()).await;
    let path = format!("/api/v1/accounts/{account}");
    let answer = app.admin(Method::PATCH, &path, Some(json!({"stripe_customer_id": "cus_1"}))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    check_all_woken(&app, account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_customer_is_applied_by_the_checkout_that_links_it() {
    for has_key in [false, true] {
        let stripe = StripeApi::start().await;
        let app = TestApp::start_with(Settings::default(), has_key.then_some(&stripe)).await;
        let account = app.account().await;
        park(&app, waiting()).await;
        stripe.has(&subscription("sub_1", "cus_1", "active", 7));
        let session = checkout("cus_1", "sub_1", Some(&account.to_string()));
        assert_eq!(app.deliver(completed("evt_5", 103, session)).await.outcome(), "applied");
        if has_key {
            // The link comes first, and with it the state that was fetched: what is older than the checkout is stale.
            app.execute("UPDATE stripe_events SET outcome = 'applied' WHERE id = 'evt_1' AND outcome = 'stale'").await;
        }
        check_all_woken(&app, account).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_customer_that_was_linked_by_sql_is_applied_by_the_customers_next_event() {
    let next: [Event; 4] = [
        updated("evt_5", 120, subscription("sub_3", "cus_1", "active", 1)),
        updated("evt_5", 90, subscription("sub_1", "cus_1", "active", 1)),
        paid("evt_5", 100, invoice("in_0", "cus_1", "sub_1")),
        completed("evt_5", 120, checkout("cus_1", "sub_1", None)),
    ];
    for event in next {
        let app = TestApp::start().await;
        park(&app, waiting()).await;
        let account = app.account_of("cus_1").await;
        let answer = app.deliver(&event).await;
        assert_eq!((answer.status, answer.body["applied"].clone()), (200, json!(true)), "{event}");
        app.execute("DELETE FROM subscriptions WHERE stripe_subscription_id = 'sub_3'").await;
        check_all_woken(&app, account).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_an_account_waits_for_it_and_links_its_customer() {
    for (reference, metadata) in [(true, false), (false, true)] {
        let app = TestApp::start().await;
        let id = Uuid::new_v4();
        let mut session = checkout("cus_1", "sub_1", reference.then(|| id.to_string()).as_deref());
        if metadata {
            session["metadata"]["account_id"] = json!(id.to_string().to_uppercase());
        }
        park(&app, [completed("evt_5", 103, session)]).await;
        park(&app, waiting()).await;
        let answer = app.create_account(json!({"id": id, "name": "Acme"})).await;
        assert_eq!((answer.status, &answer.body["stripe_customer_ids"]), (201, &json!(["cus_1"])), "{answer:?}");
        check_all_woken(&app, id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_names_an_account_is_applied_within_5_s_after_that_was_made_by_sql() {
    let app = TestApp::start().await;
    let id = Uuid::new_v4();
    park(&app, waiting()).await;
    park(&app, [completed("evt_5", 103, checkout("cus_1", "sub_1", Some(&id.to_string())))]).await;
    app.execute(&format!("INSERT INTO accounts (id) VALUES ('{id}')")).await;
    let next = paid("evt_6", 101, invoice("in_0", "cus_1", "sub_1"));
    assert_eq!(app.deliver(next).await.status, 200);
    // The sweep finds the account.
    app.wait_for_count("stripe_events WHERE outcome = 'parked'", 0, SWEPT).await;
    check_all_woken(&app, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_accounts_made_by_sql_at_once_hold_up_none_of_what_waits_for_them() {
    let app = TestApp::start().await;
    // What waits in each of the ways: for a customer, an account of Stripe's as one, an account's name; and what was placed
    // by its metadata alone.
    let named = Uuid::from_u128(0x9998);
    let mut by_name = subscription("sub_2", "cus_x", "active", 1);
    by_name["metadata"]["account_id"] = named.to_string().into();
    let mut by_account = subscription("sub_3", "cus_y", "active", 1);
    by_account["customer_account"] = "acct_9997".into();
    let other = app.account().await;
    let mut misplaced = subscription("sub_4", "cus_9996", "active", 1);
    misplaced["metadata"]["account_id"] = other.to_string().into();
    park(
        &app,
        [
            updated("evt_1", 100, subscription("sub_1", "cus_9999", "active", 1)),
            updated("evt_2", 100, by_name),
            updated("evt_3", 100, by_account),
        ],
    )
    .await;
    assert_eq!(app.deliver(updated("evt_4", 100, misplaced)).await.outcome(), "applied");
    app.execute(
        "INSERT INTO accounts (id, stripe_customer_id)
         SELECT lpad(to_hex(n), 32, '0')::uuid, CASE n WHEN 39319 THEN 'acct_9997' ELSE 'cus_' || n - 29322 END
         FROM generate_series(29323, 39323) AS n",
    )
    .await;
    let begun = Instant::now();
    app.wait_for_count("stripe_events WHERE outcome = 'parked'", 0, SWEPT).await;
    let moved = format!("subscriptions WHERE stripe_subscription_id = 'sub_4' AND account_id <> '{other}'");
    app.wait_for_count(&moved, 1, SWEPT).await;
    app.wait_for_count("accounts WHERE has_new_links", 0, SWEPT).await;
    println!("swept after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_made_by_sql_tries_an_event_again_that_failed_just_before() {
    let app = TestApp::start().await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
    park(&app, [created("evt_1", 100, subscription("sub_1", "cus_1", "active", 7))]).await;
    let account = app.account().await;
    let link = format!("UPDATE accounts SET stripe_customer_id = 'cus_1' WHERE id = '{account}'");
    app.execute(&link).await;
    app.wait_for_count("event_failures WHERE event_id = 'evt_1'", 1, SWEPT).await;
    app.wait_for_count("accounts WHERE has_new_links", 0, SWEPT).await;
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    app.execute("UPDATE accounts SET stripe_customer_id = NULL").await;
    app.execute(&link).await;
    app.wait_for_count("stripe_events WHERE outcome = 'applied'", 1, SWEPT).await;
    assert_eq!(app.count("event_failures").await, 1, "each link tried it once");
}

/// The attempt that fails began before the second customer was linked.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_tries_an_event_again_whose_attempt_from_before_it_fails_after_it() {
    let app = TestApp::start().await;
    app.execute(
        "CREATE SEQUENCE attempts;
         CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 -- In a batch, then alone; the first of them waits for no more than 50 ms.
                 IF nextval('attempts') <= 2 THEN
                     PERFORM pg_advisory_xact_lock(1);
                     RAISE EXCEPTION 'too early';
                 END IF;
                 RETURN NEW;
             END $$;
         CREATE TRIGGER fail BEFORE INSERT ON subscriptions FOR EACH ROW EXECUTE FUNCTION fail()",
    )
    .await;
    park(&app, [created("evt_1", 100, subscription("sub_1", "cus_1", "active", 1))]).await;
    app.execute("SELECT pg_advisory_lock(1)").await;
    let account = Uuid::new_v4();
    let first = app.create_account(json!({"id": account, "name": "Acme", "stripe_customer_id": "cus_1"}));
    let second = async {
        app.wait_for_count("attempts WHERE last_value = 2", 1, SWEPT).await;
        let path = format!("/api/v1/accounts/{account}");
        let patch = app.admin(Method::PATCH, &path, Some(json!({"stripe_customer_id": "cus_2"})));
        let unlock = async {
            app.wait_for_count("accounts WHERE stripe_customer_id = 'cus_2'", 1, SWEPT).await;
            // Its release waits for the attempt that is under way.
            tokio::time::sleep(Duration::from_millis(500)).await;
            app.execute("SELECT pg_advisory_unlock(1)").await;
        };
        tokio::join!(patch, unlock).0
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status, second.status), (201, 200), "{first:?} {second:?}");
    assert_eq!(app.event_row("evt_1").await["outcome"], "applied");
    assert_eq!(app.count("event_failures").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_names_an_account_waits_for_it() {
    let app = TestApp::start().await;
    let id = Uuid::new_v4();
    let mut object = subscription("sub_1", "cus_1", "active", 1);
    object["metadata"]["account_id"] = json!(id);
    park(&app, [created("evt_1", 100, object)]).await;
    assert_eq!(app.create_account(json!({"id": Uuid::new_v4(), "name": "Other"})).await.status, 201);
    assert_eq!(app.event_row("evt_1").await["outcome"], "parked");
    assert_eq!(app.create_account(json!({"id": id, "name": "Acme"})).await.status, 201);
    assert_eq!(app.subscription("sub_1").await["account_id"], json!(id));
    assert_eq!(app.event_row("evt_1").await["outcome"], "applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn invoices_wait_for_their_subscription_also_where_the_customer_is_linked() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    park(&app, [paid("evt_1", 110, invoice("in_2", "cus_1", "sub_1"))]).await;
    park(&app, [paid("evt_2", 100, invoice("in_1", "cus_1", "sub_1"))]).await;
    // Another subscription of the customer wakes the invoices in vain.
    let other = created("evt_3", 100, subscription("sub_2", "cus_1", "active", 1));
    assert_eq!(app.deliver(other).await.outcome(), "applied");
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 2);
    let own = deleted("evt_4", 100, subscription("sub_1", "cus_1", "canceled", 1));
    assert_eq!(app.deliver(own).await.outcome(), "applied");
    let row = app.subscription("sub_1").await;
    assert_eq!((&row["status"], &row["latest_invoice_id"]), (&json!("canceled"), &json!("in_2")));
    assert_eq!(row["latest_invoice_status"], "paid");
    assert_eq!(app.count("stripe_events WHERE outcome = 'applied'").await, 4, "both were news in Stripe's order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_that_fails_of_itself_stays_parked_and_does_not_block_the_link() {
    let app = TestApp::start().await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
    park(&app, waiting()).await;
    let answer = app.create_account(json!({"name": "Acme", "stripe_customer_id": "cus_1"})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(app.event_row("evt_3").await["outcome"], "parked");
    for applied in ["evt_1", "evt_2", "evt_4"] {
        assert_eq!(app.event_row(applied).await["outcome"], "applied", "{applied}");
    }
    assert_eq!(app.count("event_failures").await, 1);
    let shown = app.get("/events/evt_3").await.body;
    assert_eq!(shown["status"], "parked");
    assert!(shown["failures"][0]["error"].as_str().unwrap().contains("few_seats"), "{shown:#}");

    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
    let replayed = app.admin(Method::POST, "/events/evt_3/replay", None).await;
    assert_eq!((replayed.status, replayed.body), (200, json!({"applied": true, "outcome": "applied"})));
    app.execute("DELETE FROM event_failures").await;
    check_all_woken(&app, account_id(&answer)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_no_handler_wants_wakes_what_waits_for_its_customer() {
    let app = TestApp::start().await;
    let object = crate::support::events::subscription("sub_1", "cus_1", "active", 5);
    let parked = app.deliver(Event::new("evt_1", "customer.subscription.created", 100, object)).await;
    assert_eq!(parked.outcome(), "parked");
    let account = app.account_of("cus_1").await;
    let next = Event::new("evt_2", "payment_intent.succeeded", 200, json!({"id": "pi_1", "customer": "cus_1"}));
    assert_eq!(app.deliver(next).await.outcome(), "ignored");
    assert_eq!(app.event_row("evt_1").await["outcome"], "applied");
    assert_eq!(app.subscription("sub_1").await["account_id"], json!(account));
}

/// A parked checkout of which Stripe is asked once its customer is linked.
fn asking(number: usize, customer: &str) -> Event {
    completed(&format!("evt_asks_{number}"), 100, checkout(customer, &format!("sub_asks_{number}"), None))
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_which_stripe_refuses_to_tell_or_does_not_answer_hold_up_nobody() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&stripe)).await;
    let (refused, unanswered) = (0..20, 20..40);
    for number in 0..40 {
        park(&app, [asking(number, &format!("cus_asks_{number}"))]).await;
    }
    for number in refused.clone() {
        stripe.answer(&format!("sub_asks_{number}"), 403, json!({"error": {}}));
    }
    for number in unanswered {
        stripe.has(&subscription(&format!("sub_asks_{number}"), &format!("cus_asks_{number}"), "active", 1));
        stripe.delay(&format!("/v1/subscriptions/sub_asks_{number}"), Duration::from_secs(60));
    }
    // One account has such an event, another customer's, and one that names the account.
    let account = Uuid::new_v4();
    let mut names = subscription("sub_names", "cus_elsewhere", "active", 1);
    names["metadata"]["account_id"] = json!(account);
    park(
        &app,
        [created("evt_names", 100, names), created("evt_own", 101, subscription("sub_own", "cus_asks_0", "active", 1))],
    )
    .await;
    park(&app, [created("evt_second", 100, subscription("sub_second", "cus_second", "active", 1))]).await;
    park(&app, [created("evt_other", 100, subscription("sub_other", "cus_other", "active", 1))]).await;
    app.execute(&format!(
        "INSERT INTO accounts (id, stripe_customer_id) VALUES ('{account}', 'cus_asks_0');
         INSERT INTO account_customers (account_id, stripe_customer_id) VALUES ('{account}', 'cus_second');
         INSERT INTO accounts (stripe_customer_id) SELECT 'cus_asks_' || number FROM generate_series(1, 39) AS number"
    ))
    .await;
    let own = "stripe_events WHERE id IN ('evt_names', 'evt_own', 'evt_second') AND outcome = 'applied'";
    app.wait_for_count(own, 3, SWEPT).await;
    app.account_of("cus_other").await;
    app.wait_for_count("stripe_events WHERE id = 'evt_other' AND outcome = 'applied'", 1, SWEPT).await;

    // They stay parked, with a failure each and not one every time that a sweep comes by.
    tokio::time::sleep(SWEPT).await;
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 40);
    let failures = app.count("event_failures WHERE event_id = 'evt_asks_1'").await;
    assert!((1..=3).contains(&failures), "{failures} attempts");

    // Once Stripe tells, they are applied by themselves.
    for number in refused {
        stripe.has(&subscription(&format!("sub_asks_{number}"), &format!("cus_asks_{number}"), "active", 1));
    }
    let applied = "stripe_events WHERE id LIKE 'evt_asks%' AND outcome = 'applied'";
    app.wait_for_count(applied, 20, Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_account_says_how_many_events_are_parked_for_it() {
    let stripe = StripeApi::start().await;
    let app = TestApp::start_with(Settings::default(), Some(&stripe)).await;
    park(&app, [asking(1, "cus_1"), asking(2, "cus_1")]).await;
    stripe.answer("sub_asks_1", 500, json!({"error": {}}));
    stripe.has(&subscription("sub_asks_2", "cus_1", "active", 1));
    let answer = app.create_account(json!({"name": "Acme", "stripe_customer_id": "cus_1"})).await;
    assert_eq!((answer.status, &answer.body["parked"]), (201, &json!(1)), "{answer:?}");
    let path = format!("/api/v1/accounts/{}", account_id(&answer));
    assert_eq!(app.get(&path).await.body["parked"], 1);
    stripe.has(&subscription("sub_asks_1", "cus_1", "active", 1));
    app.wait_for_count("stripe_events WHERE outcome = 'parked'", 0, Duration::from_secs(30)).await;
    assert_eq!(app.get(&path).await.body.get("parked"), None);
}
