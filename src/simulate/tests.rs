//! What holds of every life that is drawn.

use std::collections::HashSet;

use serde_json::Value;

use super::ids::Ids;
use super::model::{Life, Link, News, Shape, Thin, What};
use super::queue::{self, Job};
use super::thin::{self, Form, Forms};
use super::truth::{self, Truth};
use super::{life, payload, previous};
use crate::stripe::PricePlans;

fn lives(seed: u64) -> Vec<Life> {
    life::lives(seed, 150, &Ids::new(seed, "test"))
}

fn events(life: &Life) -> Vec<Value> {
    (0..life.occurrences.len()).map(|index| payload::event(life, index).unwrap()).collect()
}

#[test]
fn previous_attributes_applied_backwards_give_the_former_snapshot() {
    let mut updates = 0;
    for life in lives(1) {
        for (index, occurrence) in life.occurrences.iter().enumerate() {
            let event = payload::event(&life, index).unwrap();
            let previous = event.pointer("/data/previous_attributes");
            assert_eq!(previous.is_some(), occurrence.what == What::Updated);
            let Some(previous) = previous else { continue };
            let former = payload::subscription(&life, &life.occurrences[index - 1].state, life.shape);
            let mut back = previous::applied_backwards(previous, &event["data"]["object"]);
            // A key of the metadata that is new stands there as null.
            back["metadata"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
            assert_eq!(back, former);
            assert!(previous.as_object().is_some_and(|values| !values.is_empty()));
            updates += 1;
        }
    }
    assert!(updates > 500, "{updates}");
}

#[test]
fn a_seed_repeats_exactly_and_another_differs() {
    assert_eq!(lives(7), lives(7));
    assert_eq!(queue::shuffled(7, &lives(7), 20, Forms::Both), queue::shuffled(7, &lives(7), 20, Forms::Both));
    assert_ne!(lives(7), lives(8));
    let fewer = life::lives(7, 50, &Ids::new(7, "test"));
    assert_eq!(fewer, lives(7)[..fewer.len()], "a smaller load is the beginning of a greater one");
}

#[test]
fn time_never_goes_back_and_many_seconds_are_equal() {
    let (mut equal, mut all) = (0, 0);
    for life in lives(2) {
        for pair in life.occurrences.windows(2) {
            assert!(pair[0].created <= pair[1].created, "{}", life.subscription_id);
            equal += usize::from(pair[0].created == pair[1].created);
            all += 1;
        }
    }
    assert!(equal * 3 > all, "{equal} of {all}");
}

#[test]
fn ids_are_unique_across_runs() {
    let mut seen = HashSet::new();
    for tag in ["a", "b"] {
        for life in life::lives(3, 100, &Ids::new(3, tag)) {
            assert!(seen.insert(life.subscription_id));
            assert!(life.occurrences.into_iter().all(|occurrence| seen.insert(occurrence.event_id)));
        }
    }
}

#[test]
fn within_the_last_second_former_values_lead_back_one_way_unless_it_is_for_stripe_to_decide() {
    for life in lives(4) {
        let Some(last) = life.occurrences.iter().rfind(|it| it.what.shows_the_subscription()) else { continue };
        let told = life.occurrences.iter().enumerate();
        let updates: Vec<_> = told
            .filter(|(_, it)| it.created == last.created && it.what == What::Updated)
            .map(|(index, _)| payload::event(&life, index).unwrap()["data"].take())
            .collect();
        // An earlier change that is undone by a later one would look as if it came after it.
        let is_undone = updates.iter().enumerate().any(|(at, earlier)| {
            let changed = &earlier["previous_attributes"];
            let former = previous::applied_backwards(changed, &earlier["object"]);
            let is_back =
                |later: &Value| changed.as_object().unwrap().keys().all(|name| later["object"][name] == former[name]);
            updates[at + 1..].iter().any(is_back)
        });
        assert_eq!(is_undone, life.is_for_stripe_to_decide, "{}", life.subscription_id);
    }
}

#[test]
fn every_kind_of_life_is_drawn() {
    let lives = life::lives(5, 600, &Ids::new(5, "test"));
    let has = |predicate: &dyn Fn(&Life) -> bool| lives.iter().any(predicate);
    let told = |what: What| move |life: &Life| life.occurrences.iter().any(|it| it.what == what);
    for what in [What::Created, What::Paused, What::Resumed, What::TrialWillEnd, What::Deleted, What::Checkout] {
        assert!(has(&told(what.clone())), "{what:?}");
    }
    for link in [Link::CustomerBefore, Link::CustomerDuring, Link::PatchedDuring, Link::CheckoutBefore] {
        assert!(has(&|life| life.account.link == link), "{link:?}");
    }
    let truths: Vec<_> = lives.iter().map(|life| Truth::of(life, &PricePlans::default()).unwrap()).collect();
    let shows = |column: &str, value: &Value| {
        truths
            .iter()
            .any(|truth| [&truth.state, &truth.in_any_case].iter().any(|columns| columns.get(column) == Some(value)))
    };
    for (column, values) in [
        ("status", &["active", "trialing", "past_due", "paused", "canceled", "incomplete_expired"][..]),
        ("latest_invoice_status", &["open", "payment_failed", "action_required", "uncollectible", "paid", "void"]),
        ("cancellation_reason", &["cancellation_requested", "payment_failed"]),
        ("cancellation_feedback", &["too_expensive", "unused"]),
        ("plan_source", &["lookup_key", "local", "price_id"]),
        ("connect_account", &["acct_1SimConnected0001"]),
    ] {
        for value in values {
            assert!(shows(column, &Value::from(*value)), "{column} {value}");
        }
    }
    assert!(has(&|life| life.is_for_stripe_to_decide) && has(&|life| life.account.local_plan.is_some()));
    assert!(has(&|life| life.customer_id != life.account.customer_id), "a second customer");
    for shape in [Shape::Classic, Shape::Basil, Shape::Endive] {
        assert!(has(&|life| life.shape == shape), "{shape:?}");
    }
    for news in [
        News::Finalized,
        News::PaymentFailed,
        News::ActionRequired,
        News::Uncollectible,
        News::Paid,
        News::PaymentSucceeded,
        News::Voided,
    ] {
        assert!(has(&|life| life.occurrences.iter().any(|it| it.what.news() == Some(news))), "{news:?}");
    }
    let told_last = |life: &Life| life.occurrences.iter().filter_map(|it| it.what.invoice()).next_back().cloned();
    let shown = |life: &Life| truth::latest_invoice(life).unwrap().0.clone();
    // Or a program that takes what it heard last for the latest invoice would not be noticed.
    let differing = lives.iter().filter(|life| told_last(life).is_some_and(|told| told.id != shown(life).id)).count();
    assert!(
        differing * 20 > lives.len(),
        "in {differing} of {} lives the last news is of an older invoice",
        lives.len()
    );
    let last = |life: &Life| truth::last_shown(life).unwrap().state.clone();
    assert!(has(&|life| last(life).items.len() > 2), "several items");
    assert!(has(&|life| last(life).items.iter().any(|item| item.period.is_some())), "an item with its own period");
    assert!(has(&|life| last(life).trial.is_none() && last(life).items[0].trial.is_some()), "an item's own trial");
    assert!(has(&|life| last(life).cancel_at_period_end) && has(&|life| last(life).cancel_at.is_some()));
    let steps = |life: &Life, is: &dyn Fn(bool, bool) -> bool| {
        let scheduled = |at: usize| life.occurrences[at].state.is_scheduled_to_end();
        (1..life.occurrences.len()).any(|at| is(scheduled(at - 1), scheduled(at)))
    };
    assert!(has(&|life| steps(life, &|before, after| before && !after)), "a cancellation that is withdrawn");
    let features = truth::features(&lives);
    assert!(
        features.values().any(|it| it.is_for_stripe_to_decide) && features.values().any(|it| it.features.is_empty())
    );
    assert!(features.values().any(|it| !it.is_for_stripe_to_decide && it.features.len() > 2));
}

#[test]
fn within_a_second_an_invoices_events_say_ever_greater_words_and_what_is_settled_stays_so() {
    let mut events = 0;
    for life in lives(8) {
        let told: Vec<_> = life.occurrences.iter().filter(|it| it.what.invoice().is_some()).collect();
        for (at, later) in told.iter().enumerate() {
            let (invoice, news) = (later.what.invoice().unwrap(), later.what.news());
            for earlier in told[..at].iter().filter(|it| it.what.invoice().is_some_and(|it| it.id == invoice.id)) {
                assert!(earlier.created < later.created || earlier.what.news() < news, "{}", invoice.id);
                let before = earlier.what.invoice().unwrap().status;
                assert!(before == invoice.status || matches!(before, "open" | "uncollectible"), "{}", invoice.id);
                events += 1;
            }
            assert!(invoice.created <= later.created);
        }
    }
    assert!(events > 100, "{events}");
}

#[test]
fn a_notification_leads_to_its_event_or_its_object_and_contains_neither() {
    let (mut seen, mut finer) = (HashSet::new(), 0);
    for life in lives(10) {
        for (index, occurrence) in life.occurrences.iter().enumerate() {
            let sent = thin::notification(&life, index, Form::Thin).unwrap();
            let at_stripe = thin::event_at_stripe(&life, index, Form::Thin).unwrap();
            assert!(sent.get("data").is_none() && sent["object"] == "v2.core.event");
            let named = Some(&Value::from(occurrence.event_id.clone()));
            let (is_named, is_found) = (occurrence.thin == Thin::NamesSnapshot, occurrence.thin != Thin::ObjectOnly);
            assert_eq!(sent.get("snapshot_event"), named.filter(|_| is_named));
            assert_eq!(at_stripe.get("snapshot_event"), named.filter(|_| is_found));
            assert!(is_found || sent["related_object"]["id"].is_string(), "{sent}");
            assert_eq!(thin::recorded_id(occurrence, Form::Thin) == occurrence.event_id, is_found);
            assert!(sent["created"].as_str().unwrap().contains('.'), "{sent}");
            assert!(seen.insert(sent["id"].to_string()) && seen.insert(format!("{:?}", occurrence.event_id)));
            let Some(extra) = thin::notification(&life, index, Form::Finer) else { continue };
            assert!(extra["type"].as_str().unwrap().starts_with("v1.customer.subscription."), "{extra}");
            assert!(seen.insert(extra["id"].to_string()));
            finer += 1;
        }
    }
    assert!(finer > 50, "{finer}");
}

#[test]
fn an_invoice_names_its_subscription_where_its_version_does() {
    for life in lives(6) {
        for event in events(&life).iter().filter(|event| event["data"]["object"]["object"] == "invoice") {
            let path = match life.shape {
                Shape::Classic => "/data/object/subscription",
                Shape::Basil | Shape::Endive => "/data/object/parent/subscription_details/subscription",
            };
            assert_eq!(event.pointer(path).unwrap(), &Value::from(life.subscription_id.clone()));
        }
    }
}

#[test]
fn every_event_is_sent_and_every_account_is_made() {
    let lives = lives(9);
    let jobs = queue::shuffled(9, &lives, 20, Forms::Snapshot);
    let mut sent = HashSet::new();
    let mut accounts: HashSet<_> =
        lives.iter().filter(|life| life.account.link.has_account_before()).map(|life| life.account.id).collect();
    for job in &jobs {
        match job {
            Job::Deliver(delivery) => drop(sent.insert((delivery.life, delivery.occurrence))),
            Job::CreateAccount { account } => assert!(accounts.insert(account.id), "made twice"),
            Job::LinkCustomer { account } => assert!(accounts.contains(&account.id), "not made before"),
        }
    }
    let events: usize = lives.iter().map(|life| life.occurrences.len()).sum();
    assert_eq!(sent.len(), events);
    assert!(lives.iter().all(|life| accounts.contains(&life.account.id)));
    let deliveries = jobs.iter().filter(|job| matches!(job, Job::Deliver(_))).count();
    assert!((events * 115..events * 135).contains(&(deliveries * 100)), "{deliveries} deliveries of {events} events");
}
