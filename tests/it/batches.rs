//! One event or several in a transaction: whatever shares one, the same comes of it. Held over events in odd orders, with
//! duplicates, an event that always fails, and parked ones, one at a time and in batches of any cut.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::events::{checkout, completed, created, deleted, invoice, paid, subscription, updated};
use crate::support::{Event, Settings, TestApp};

/// So many seats no subscription may have.
const POISON: i64 = 13;

/// Customers 0 to 2 are linked, customer 3 is linked at the end, customer 4 is linked by a checkout.
const CUSTOMERS: usize = 5;

/// What happens to some subscriptions, in the order in which it happens at Stripe.
fn lives(random: &mut StdRng, account: Uuid) -> Vec<Event> {
    let mut events = Vec::new();
    for number in 0..random.random_range(3..7) {
        let (id, customer) = (format!("sub_{number}"), format!("cus_{}", number % CUSTOMERS));
        let mut next = 0;
        let mut named = |number: usize| {
            next += 1;
            format!("evt_{number}_{next}")
        };
        let object = |status: &str, seats: i64| subscription(&id, &customer, status, seats);
        let (mut second, mut seats) = (100, 20);
        events.push(created(&named(number), second, object("incomplete", seats)));
        for _ in 0..random.random_range(1..7) {
            // Every other change is made within the second of the one before.
            second += random.random_range(0..=1);
            let previous = json!({"items": {"data": [{"quantity": seats}]}});
            seats += 1;
            let change = updated(&named(number), second, object("active", seats)).with_previous(previous);
            events.push(if seats == 21 { change.with_previous(json!({"status": "incomplete"})) } else { change });
            if random.random_bool(0.4) {
                let invoice = invoice(&format!("in_{number}_{seats}"), &customer, &id);
                events.push(paid(&named(number), second, invoice));
            }
        }
        match random.random_range(0..4) {
            0 => events.push(deleted(&named(number), second + 1, object("canceled", seats))),
            // The newest, so that it would be shown whatever came before it.
            1 if number % CUSTOMERS != 4 => events.push(updated(&named(number), second + 5, object("active", POISON))),
            _ => {}
        }
        if number % CUSTOMERS == 4 {
            let session = checkout(&customer, &id, Some(&account.to_string()));
            events.push(completed(&named(number), 101, session));
        }
        events.push(Event::new(
            &named(number),
            "customer.updated",
            second,
            json!({"id": customer, "object": "customer"}),
        ));
    }
    events
}

/// What is left of a delivery, without what depends on when it was made.
#[derive(Debug, PartialEq)]
struct Left {
    rows: Vec<Value>,
    /// Whether each recorded event is parked, ignored, or was handled.
    recorded: BTreeMap<String, String>,
    /// How often each event failed; one that is parked, whether it did.
    failures: BTreeMap<String, i64>,
    /// What the last change of each subscription left.
    changed: BTreeMap<String, Value>,
}

/// Delivers the events in this order, cut into pieces of which each is delivered at once.
async fn deliver(app: &TestApp, order: &[Event], cuts: &mut dyn Iterator<Item = usize>) {
    let mut rest = order;
    let mut recorded = BTreeSet::new();
    while !rest.is_empty() {
        let (piece, others) = rest.split_at(cuts.next().unwrap().clamp(1, rest.len()));
        rest = others;
        let events: Vec<_> = piece.iter().collect();
        let answers = app.deliver_all(&events, piece.len()).await;
        for (event, answer) in piece.iter().zip(answers) {
            let is_poison = event.object()["items"]["data"][0]["quantity"] == POISON
                && app.event_row(event.id()).await["outcome"] != "parked";
            assert_eq!(answer.status, if is_poison { 500 } else { 200 }, "{event}: {answer:?}");
            if answer.body["applied"] == true {
                assert!(recorded.insert(event.id().to_owned()), "{event} was applied twice");
            }
        }
    }
}

async fn run(seed: u64, order: &[Event], account: Uuid, cuts: &mut dyn Iterator<Item = usize>) -> Left {
    let app = TestApp::start_with(Settings { pool_size: 16, ..Settings::default() }, None).await;
    app.execute(&format!(
        "ALTER TABLE subscriptions ADD CONSTRAINT not_{POISON} CHECK (seat_limit <> {POISON});
         INSERT INTO accounts (id) VALUES ('{account}')"
    ))
    .await;
    for number in 0..3 {
        app.account_of(&format!("cus_{number}")).await;
    }
    deliver(&app, order, cuts).await;
    let late = app.create_account(json!({"name": "Late", "stripe_customer_id": "cus_3"})).await;
    assert_eq!(late.status, 201, "{late:?}");
    // What could not be shown can be now.
    let left = left(&app, seed).await;
    app.execute(&format!("ALTER TABLE subscriptions DROP CONSTRAINT not_{POISON}")).await;
    let failed = app.json("SELECT to_jsonb(event_id) FROM event_failures GROUP BY event_id", &[]).await;
    for id in failed {
        let path = format!("/events/{}/replay", id.as_str().unwrap());
        assert_eq!(app.admin(Method::POST, &path, None).await.outcome(), "applied", "seed {seed}: {id}");
    }
    check_chains(&app, seed).await;
    left
}

async fn left(app: &TestApp, seed: u64) -> Left {
    let rows = "SELECT to_jsonb(s) - '{id,account_id,created_at,updated_at}'::text[]
                FROM subscriptions s ORDER BY stripe_subscription_id";
    let recorded = "SELECT id, CASE WHEN outcome IN ('applied', 'stale') THEN 'handled' ELSE outcome END
                    FROM stripe_events";
    let recorded = app.sql.query(recorded, &[]).await.unwrap();
    let failures = "SELECT event_id, CASE WHEN event_id IN (SELECT id FROM stripe_events) THEN 1 ELSE count(*) END
                    FROM event_failures GROUP BY 1";
    let failures = app.sql.query(failures, &[]).await.unwrap();
    Left {
        rows: app.json(rows, &[]).await,
        recorded: recorded.iter().map(|row| (row.get(0), row.get(1))).collect(),
        failures: failures.iter().map(|row| (row.get(0), row.get(1))).collect(),
        changed: check_chains(app, seed).await,
    }
}

/// Times are written in two ways; both are the same time.
fn plain(columns: &Value) -> Value {
    let plain = |value: &Value| match value.as_str().and_then(|text| text.parse::<DateTime<Utc>>().ok()) {
        Some(time) => json!(time.timestamp_micros()),
        None => value.clone(),
    };
    columns.as_object().unwrap().iter().map(|(name, value)| (name.clone(), plain(value))).collect()
}

/// Each change begins with what the one before left, the first with nothing, and the last leaves the row as it is.
async fn check_chains(app: &TestApp, seed: u64) -> BTreeMap<String, Value> {
    let query = "SELECT jsonb_build_array(stripe_subscription_id, before, after) FROM subscription_changes ORDER BY id";
    let mut changed = BTreeMap::new();
    let mut last: BTreeMap<String, Value> = BTreeMap::new();
    for change in app.json(query, &[]).await {
        let id = change[0].as_str().unwrap().to_owned();
        assert_eq!(
            change[1],
            last.get(&id).cloned().unwrap_or(Value::Null),
            "seed {seed}: the chain of {id} is broken"
        );
        last.insert(id, change[2].clone());
    }
    assert_eq!(app.count("subscriptions").await, last.len() as i64, "seed {seed}: each row has its changes");
    for (id, after) in last {
        let (row, after) = (plain(&app.subscription(&id).await), plain(&after));
        for (name, value) in after.as_object().unwrap() {
            assert_eq!(value, &row[name], "seed {seed}: {name} of {id} after its last change");
        }
        let mut stable = after.clone();
        for own in ["id", "account_id", "created_at"] {
            stable.as_object_mut().unwrap().remove(own);
        }
        changed.insert(id, stable);
    }
    changed
}

#[tokio::test(flavor = "multi_thread")]
async fn one_at_a_time_or_in_batches_of_any_cut_the_same_comes_of_it() {
    for seed in 20_261_126..20_261_134 {
        let mut random = StdRng::seed_from_u64(seed);
        let account = Uuid::new_v4();
        let mut order = lives(&mut random, account);
        let again: Vec<_> = order.iter().filter(|_| random.random_bool(0.3)).cloned().collect();
        order.extend(again);
        order.shuffle(&mut random);
        let alone = run(seed, &order, account, &mut std::iter::repeat(1)).await;
        let cuts: Vec<usize> = (0..order.len()).map(|_| random.random_range(1..=24)).collect();
        let cut = run(seed, &order, account, &mut cuts.into_iter()).await;
        assert_eq!(cut, alone, "seed {seed}: in batches it ends otherwise");
        let at_once = run(seed, &order, account, &mut std::iter::repeat(usize::MAX)).await;
        assert_eq!(at_once, alone, "seed {seed}: all at once it ends otherwise");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_and_a_row_that_somebody_else_locks_make_no_difference() {
    for seed in [1, 2, 3] {
        let mut random = StdRng::seed_from_u64(seed);
        let app = TestApp::start_with(Settings { pool_size: 16, ..Settings::default() }, None).await;
        let beside = TestApp::start_beside(&app, Settings { pool_size: 16, ..Settings::default() }).await;
        for number in 0..CUSTOMERS {
            app.account_of(&format!("cus_{number}")).await;
        }
        let mut order = lives(&mut random, Uuid::new_v4());
        order.retain(|event| event.object()["items"]["data"][0]["quantity"] != POISON);
        app.deliver(&order[0]).await;
        order.shuffle(&mut random);
        let events: Vec<_> = order.iter().collect();
        let locker = app.database.client().await;
        locker.batch_execute("BEGIN; SELECT FROM subscriptions FOR UPDATE").await.unwrap();
        let unlock = async {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            locker.batch_execute("COMMIT").await.unwrap();
        };
        let (one, other, ()) = tokio::join!(app.deliver_all(&events, 32), beside.deliver_all(&events, 32), unlock);
        for ((one, other), event) in one.iter().zip(&other).zip(&order) {
            assert_eq!((one.status, other.status), (200, 200), "{event}: {one:?} {other:?}");
            let applied = [one, other].iter().filter(|answer| answer.body["applied"] == true).count();
            assert!(applied == 1 || app.event_row(event.id()).await["id"] == "evt_0_1", "{event}: {one:?} {other:?}");
        }
        let ended = left(&app, seed).await;
        let alone = TestApp::start().await;
        for number in 0..CUSTOMERS {
            alone.account_of(&format!("cus_{number}")).await;
        }
        for event in &order {
            assert_eq!(alone.deliver(event).await.status, 200);
        }
        assert_eq!(ended, left(&alone, seed).await, "seed {seed}");
    }
}
