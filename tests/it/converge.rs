//! Convergence: every order of arrival, also with duplicates and in parallel, ends in the row that an independent
//! model says.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::model::{ACCOUNT, Ids, Life, SUFFIX};
use crate::support::{Event, Settings, StripeApi, TestApp};

/// How many copies of a life are under way side by side; they share nothing but the server.
const LIVES_AT_ONCE: usize = 6;

/// One way to deliver a life: these of its events, in this order, this many at a time.
struct Delivery {
    order: Vec<usize>,
    at_once: usize,
}

/// Delivers a life in each of these ways, to one server, and checks every final row.
async fn check(life: &Life, deliveries: Vec<Delivery>) {
    let stripe = StripeApi::start().await;
    let settings = Settings { pool_size: 16, ..Settings::default() };
    let app = TestApp::start_with(settings, life.has_key.then_some(&stripe)).await;
    // Only how long the disk takes; nothing here crashes.
    app.execute(&format!("ALTER DATABASE {} SET synchronous_commit = off", app.database.name())).await;
    let copies = stream::iter(deliveries.iter().enumerate());
    let rows: Vec<Value> = copies
        .map(|(number, delivery)| deliver(&app, &stripe, life, delivery, format!("x{number}x")))
        .buffered(LIVES_AT_ONCE)
        .collect()
        .await;
    for (row, delivery) in rows.iter().zip(&deliveries) {
        let context = format!("{}, ids {:?}, {:?}, {} at once", life.name, life.ids, delivery.order, delivery.at_once);
        for (column, expected) in life.final_row().as_object().unwrap() {
            assert_eq!(&row[column], expected, "{column} of {context}: {row:#}");
        }
        assert!(life.may_name(row["last_event_id"].as_str().unwrap()), "{context}: {row:#}");
        assert_eq!(row, &rows[0], "{context} ends otherwise than {:?}", deliveries[0].order);
    }
    let local = if life.has_trial && !life.takes_trial() { deliveries.len() } else { 0 };
    let rows_expected = (deliveries.len() + local) as i64;
    assert_eq!(app.count("subscriptions").await, rows_expected, "{}: one row each", life.name);
    assert_eq!(app.count("stripe_events WHERE outcome = 'parked'").await, 0, "{}: none is left parked", life.name);
    assert_eq!(app.count("event_failures").await, 0, "{}: none failed", life.name);
}

/// Delivers one copy of a life, and returns its row without what differs between copies.
async fn deliver(app: &TestApp, stripe: &StripeApi, life: &Life, delivery: &Delivery, suffix: String) -> Value {
    let customer = format!("cus_{suffix}");
    let account = if life.is_linked { app.account_of(&customer).await } else { app.account().await };
    if life.has_trial {
        app.local_trial(account).await;
    }
    stripe.has(&serde_json::from_str(&life.now.to_string().replace(SUFFIX, &suffix)).unwrap());
    let events = life.instance(&suffix, &account.to_string());
    let arriving: Vec<&Event> = delivery.order.iter().map(|&position| &events[position]).collect();
    let answers = app.deliver_all(&arriving, delivery.at_once).await;
    for (answer, event) in answers.iter().zip(&arriving) {
        assert_eq!(answer.status, 200, "{}: {event} in {:?}: {answer:?}", life.name, delivery.order);
    }
    let applied = answers.iter().filter(|answer| answer.body["applied"] == true).count();
    assert_eq!(applied, events.len(), "{}: each event is recorded once: {answers:?}", life.name);
    // On a busy machine, answers do not wait for all the events that they release.
    let parked = format!("stripe_events WHERE outcome = 'parked' AND customer_id = '{customer}'");
    app.wait_for_count(&parked, 0, Duration::from_secs(30)).await;
    let row = app.subscription(&format!("sub_{suffix}")).await;
    let text = row.to_string().replace(&suffix, SUFFIX).replace(&account.to_string(), ACCOUNT);
    let mut row: Value = serde_json::from_str(&text).unwrap();
    for own in ["id", "created_at", "updated_at"] {
        row.as_object_mut().unwrap().remove(own);
    }
    row
}

/// All permutations, each plain and with every event twice, each one at a time and eight at a time.
async fn check_all_orders(life: &Life) {
    let mut deliveries = Vec::new();
    for order in permutations(life.events.len()) {
        for order in [twice(&order), order] {
            deliveries.extend([1, 8].map(|at_once| Delivery { order: order.clone(), at_once }));
        }
    }
    check(life, deliveries).await;
}

/// Every event a second time, right after the next one: `a b a c b c`.
fn twice(order: &[usize]) -> Vec<usize> {
    let seconds = order.iter().map(Some);
    let firsts = order.iter().skip(1).map(Some).chain([None]);
    order.iter().take(1).chain(firsts.zip(seconds).flat_map(|(a, b)| [a, b]).flatten()).copied().collect()
}

fn permutations(length: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for position in 0..length {
        let longer = |order: &Vec<usize>| {
            let mut order = order.clone();
            (0..=order.len())
                .map(|at| {
                    order.insert(at, position);
                    let longer = order.clone();
                    order.remove(at);
                    longer
                })
                .collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

#[test]
fn all_orders_are_tried() {
    let orders: BTreeSet<_> = permutations(5).into_iter().collect();
    assert_eq!(orders.len(), 120);
    assert!(orders.iter().all(|order| order.iter().collect::<BTreeSet<_>>().len() == 5));
    assert_eq!(twice(&[4, 2, 7]), [4, 2, 4, 7, 2, 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life_converges() {
    let life = Life::of("whole life").created(100).status(110, "active").quantity(120, 7);
    check_all_orders(&life.changed(125, "cancel_at_period_end", true).deleted(130)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_ends_a_life_also_if_it_is_heard_of_first_or_stamped_before_an_update() {
    let life = Life::of("deletion stamped first").created(100).status(110, "active").quantity(130, 7);
    check_all_orders(&life.clone().deleted(120)).await;
    check_all_orders(&life.with_key().deleted(120)).await;
    check_all_orders(&Life::of("all in one second").created(100).status(100, "active").deleted(100)).await;
    let expired = Life::of("expired").created(100).invoice(100, "invoice.payment_failed", "in_1");
    check_all_orders(&expired.quantity(120, 2).status(120, "incomplete_expired")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_seconds_are_decided_by_previous_attributes() {
    for ids in [Ids::Ascending, Ids::Descending] {
        let life = Life::of("a chain in the second of birth").with_ids(ids).created(100);
        check_all_orders(&life.status(100, "active").quantity(100, 7).changed(100, "cancel_at", 900)).await;
    }
    let life = Life::of("a chain of three in a later second").created(100).quantity(105, 5).status(105, "active");
    check_all_orders(&life.quantity(105, 9).quantity(110, 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_shows_what_another_of_its_second_changed_makes_no_difference() {
    for ids in [Ids::Ascending, Ids::Descending, Ids::Scrambled] {
        let life = Life::of("paused beside its update").with_ids(ids).created(100);
        let life = life.status(105, "trialing").status(105, "paused").shown(105, "customer.subscription.paused");
        check_all_orders(&life).await;
        check_all_orders(&life.with_key()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_seconds_are_decided_by_stripe() {
    for ids in [Ids::Ascending, Ids::Descending] {
        let life = Life::of("changes that undo each other").with_ids(ids).with_key().created(100);
        check_all_orders(&life.quantity(105, 5).quantity(105, 9).quantity(105, 1)).await;
    }
    let life = Life::of("undone and deleted").with_key().created(100).quantity(105, 5).quantity(105, 1);
    check_all_orders(&life.deleted(105)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_invoice_is_the_same_for_every_order() {
    let life = Life::of("invoices").invoice(110, "invoice.payment_failed", "in_2").created(110);
    let life = life.invoice(110, "invoice.paid", "in_1").invoice(120, "invoice.payment_failed", "in_3");
    check_all_orders(&life.invoice(120, "invoice.payment_failed", "in_4")).await;
    let life = Life::of("invoice after the end").created(110).deleted(120);
    check_all_orders(&life.invoice(130, "invoice.payment_failed", "in_1").invoice(130, "invoice.paid", "in_1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_the_checkout_that_links_waits_for_it() {
    let life = Life::of("checkout").linked_by_checkout().created(100).status(102, "active").checkout(102);
    check_all_orders(&life.clone().with_trial().invoice(102, "invoice.paid", "in_1").quantity(150, 7)).await;
    for ids in [Ids::Ascending, Ids::Descending] {
        let life = life.clone().with_key().with_ids(ids);
        check_all_orders(&life.clone().with_trial().quantity(150, 7)).await;
        check_all_orders(&life.invoice(102, "invoice.paid", "in_1")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkout_in_the_second_of_birth_or_after_everything_converges() {
    let life = Life::of("checkout at birth").linked_by_checkout().with_key().created(100).checkout(100);
    check_all_orders(&life.clone().status(100, "active")).await;
    check_all_orders(&life.clone().status(101, "active").deleted(103)).await;
    let life = Life::of("checkout last").linked_by_checkout().with_key().created(100).status(101, "active");
    check_all_orders(&life.clone().checkout(105)).await;
    check_all_orders(&life.deleted(103).checkout(105)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_trial_that_is_taken_over_converges() {
    let life = Life::of("trial").with_trial().created(100).status(100, "trialing");
    check_all_orders(&life.shown(105, "customer.subscription.trial_will_end").status(110, "active")).await;
}

/// A life with runs of equal seconds. Without a key no two changes of a second undo each other.
fn long_life(random: &mut StdRng, length: usize) -> Life {
    let mut life = Life::of("long life").with_ids(Ids::Scrambled);
    if random.random_bool(0.5) {
        life = life.with_key();
    }
    if random.random_bool(0.5) {
        life = life.linked_by_checkout().checkout(102);
    }
    if random.random_bool(0.5) {
        life = life.with_trial();
    }
    life = life.created(100);
    let (mut second, mut value) = (101, 10);
    while life.events.len() < length {
        second += random.random_range(0..=1);
        value += 1;
        life = match random.random_range(0..7) {
            0 | 1 => life.quantity(second, value),
            2 => life.changed(second, "trial_end", value),
            3 => life.changed(second, "cancel_at", value),
            4 => life.status(second, &format!("status {value}")),
            5 => life.invoice(second, "invoice.payment_failed", &format!("in_{value}")),
            _ => life.shown(second, "customer.subscription.trial_will_end"),
        };
    }
    if random.random_bool(0.5) { life.deleted(second) } else { life }
}

#[tokio::test(flavor = "multi_thread")]
async fn longer_lives_converge_in_random_orders() {
    let seed = 20_261_121;
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for length in [10, 12, 14, 17, 20] {
        let life = long_life(&mut random, length);
        let mut deliveries = Vec::new();
        for _ in 0..8 {
            let mut order: Vec<usize> = (0..life.events.len()).collect();
            let duplicates = random.random_range(0..order.len());
            order.extend(0..duplicates);
            order.shuffle(&mut random);
            deliveries.extend([1, 8].map(|at_once| Delivery { order: order.clone(), at_once }));
        }
        check(&life, deliveries).await;
    }
}
