//! What the tables have to show for a life once all of it was told: read off the generator's own states and the
//! contract, never computed by the code that is put to the test.

use std::collections::{BTreeMap, HashMap};

use chrono::DateTime;
use serde_json::{Value, json};

use super::model::{FEATURES, Invoice, Item, LISTED_FEATURES, Life, Link, News, Occurrence, Shape, State};
use super::objects;
use crate::stripe::PricePlans;

/// What the row of one subscription has to show, by column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Truth {
    /// Whichever of two changes of one second came last.
    pub(super) in_any_case: BTreeMap<&'static str, Value>,
    /// The columns of the last state.
    pub(super) state: BTreeMap<&'static str, Value>,
    /// The second of the event whose state is the last one.
    pub(super) last_event_created: i64,
}

impl Truth {
    /// Of a life; `None` for one of which nothing was told. `plans` is `PRICE_PLANS` of the server.
    pub(super) fn of(life: &Life, plans: &PricePlans) -> Option<Self> {
        let last = last_shown(life)?;
        let born = life.occurrences.first()?.created;
        let invoice = latest_invoice(life);
        let of_invoice = |value: fn(&Invoice) -> Value| invoice.map(|(invoice, _)| value(invoice)).unwrap_or_default();
        let in_any_case = BTreeMap::from([
            ("account_id", json!(life.account.id)),
            ("stripe_customer_id", json!(life.customer_id)),
            ("last_event_created", time(Some(last.created))),
            ("stripe_created", time(Some(born))),
            ("livemode", json!(false)),
            ("connect_account", json!(life.connect_account)),
            ("items_complete", json!(true)),
            ("latest_invoice_id", of_invoice(|invoice| json!(invoice.id))),
            ("latest_invoice_status", json!(invoice.map(|(_, news)| news.word()))),
            ("latest_invoice_created", of_invoice(|invoice| time(Some(invoice.created)))),
            ("latest_invoice_url", of_invoice(|invoice| json!(objects::hosted_invoice_url(invoice)))),
            ("next_payment_attempt", of_invoice(|invoice| time(invoice.next_payment_attempt))),
        ]);
        let state = state_columns(life, &last.state, plans)?;
        Some(Self { in_any_case, state, last_event_created: last.created })
    }
}

/// The last occurrence that shows the subscription.
pub(super) fn last_shown(life: &Life) -> Option<&Occurrence> {
    life.occurrences.iter().rfind(|occurrence| occurrence.what.shows_the_subscription())
}

fn state_columns(life: &Life, state: &State, plans: &PricePlans) -> Option<BTreeMap<&'static str, Value>> {
    let mapped = |item: &&Item| plan_of_price(item, plans).is_some();
    let plan_item = state.items.iter().find(mapped).or(state.items.first())?;
    let (plan, plan_source) = plan(life, plan_item, plans);
    let (start, end) = item_period(plan_item, state);
    let ends_with_period = state.cancel_at_period_end.then_some(end);
    let item_trial = plan_item.trial.filter(|_| life.shape == Shape::Endive);
    let items: Vec<_> = state.items.iter().map(|item| item_columns(item, state, plans)).collect();
    Some(BTreeMap::from([
        ("status", json!(state.status)),
        ("plan", json!(plan)),
        ("plan_source", json!(plan_source)),
        ("stripe_price_id", json!(plan_item.price.id)),
        ("seat_limit", json!(plan_item.quantity)),
        ("current_period_start", time(Some(start))),
        ("current_period_end", time(Some(end))),
        ("cancel_at_period_end", json!(state.cancel_at_period_end)),
        ("cancel_at", time(state.cancel_at)),
        ("canceled_at", time(state.canceled_at)),
        ("ended_at", time(state.ended_at)),
        ("ends_at", time(state.ended_at.or(state.cancel_at).or(ends_with_period))),
        ("trial_end", time(state.trial.or(item_trial).map(|(_, end)| end))),
        ("paused_collection", json!(state.pause.is_some())),
        ("cancellation_reason", json!(state.cancellation_reason)),
        ("cancellation_feedback", json!(state.cancellation_feedback)),
        ("metadata", metadata(life, state)),
        ("items", json!(items)),
    ]))
}

fn metadata(life: &Life, state: &State) -> Value {
    let mut metadata = json!({});
    if life.account.link == Link::MetadataDuring {
        metadata["account_id"] = json!(life.account.id);
    }
    if let Some(note) = &state.note {
        metadata["note"] = json!(note);
    }
    metadata
}

fn plan_of_price<'a>(item: &Item, plans: &'a PricePlans) -> Option<&'a str> {
    plans.plan(item.price.id).or_else(|| plans.plan(item.price.product))
}

/// The plan item's name in `PRICE_PLANS`, else its price's lookup key, else the plan of the local trial that the account
/// had, else the price's id; and the word that says so.
fn plan<'a>(life: &Life, item: &Item, plans: &'a PricePlans) -> (&'a str, &'static str) {
    if let Some(plan) = plan_of_price(item, plans) {
        return (plan, "price_plans");
    }
    if let Some(key) = item.price.lookup_key {
        return (key, "lookup_key");
    }
    match life.account.local_plan.filter(|_| life.account.is_local_row_taken) {
        Some(plan) => (plan, "local"),
        None => (item.price.id, "price_id"),
    }
}

fn item_period(item: &Item, state: &State) -> (i64, i64) {
    item.period.unwrap_or(state.period)
}

/// An element of the column `items`.
fn item_columns(item: &Item, state: &State, plans: &PricePlans) -> Value {
    let (start, end) = item_period(item, state);
    json!({
        "stripe_item_id": item.id,
        "stripe_price_id": item.price.id,
        "stripe_product_id": item.price.product,
        "lookup_key": item.price.lookup_key,
        "plan": plan_of_price(item, plans).or(item.price.lookup_key),
        "quantity": item.quantity,
        "usage_type": if item.price.is_metered { "metered" } else { "licensed" },
        "unit_amount": item.price.amount,
        "currency": "usd",
        "interval": item.price.interval,
        "interval_count": 1,
        "current_period_start": time(Some(start)),
        "current_period_end": time(Some(end)),
    })
}

/// The invoice that was made last, of two of one second the one with the greater id; and what its latest event says, of
/// one second the greater word.
pub(super) fn latest_invoice(life: &Life) -> Option<(&Invoice, News)> {
    let told = || life.occurrences.iter().filter(|it| it.what.invoice().is_some());
    let latest = told().filter_map(|it| it.what.invoice()).max_by_key(|invoice| (invoice.created, &invoice.id))?;
    let newest = told().filter(|it| it.what.invoice().is_some_and(|invoice| invoice.id == latest.id));
    let newest = newest.max_by_key(|it| (it.created, it.what.news()))?;
    newest.what.invoice().zip(newest.what.news())
}

/// The features that a customer has to have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CustomerFeatures {
    /// Lookup key and id of each, in order.
    pub(super) features: Vec<(String, String)>,
    /// Whether only Stripe knows them: two events of one second, or more features than an event lists.
    pub(super) is_for_stripe_to_decide: bool,
}

/// The features of every customer of whom any event told.
pub(super) fn features(lives: &[Life]) -> BTreeMap<&str, CustomerFeatures> {
    let mut told: HashMap<&str, Vec<(i64, &[&str])>> = HashMap::new();
    for life in lives {
        let of_life = life.occurrences.iter().filter_map(|it| Some((it.created, it.what.features()?)));
        told.entry(&life.customer_id).or_default().extend(of_life);
    }
    let of_customer = |(customer, told): (_, Vec<(i64, &[&str])>)| {
        let &(created, last) = told.last()?;
        let of_this_second = told.iter().filter(|(second, _)| *second == created).count();
        let in_order = FEATURES.into_iter().filter(|key| last.contains(key));
        let features = in_order.map(|key| (key.to_owned(), objects::feature_id(key))).collect();
        let is_for_stripe_to_decide = of_this_second > 1 || last.len() > LISTED_FEATURES;
        Some((customer, CustomerFeatures { features, is_for_stripe_to_decide }))
    };
    told.into_iter().filter_map(of_customer).collect()
}

/// Unix seconds as a column shows them.
fn time(seconds: Option<i64>) -> Value {
    json!(seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0)))
}
