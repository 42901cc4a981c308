//! Items of a subscription, of every API version, and the choice of the one that names the plan. Pure.
//!
//! Source: <https://docs.stripe.com/api/subscription_items/object>.

use chrono::{DateTime, Datelike, Utc};
use serde::Serialize;
use serde_json::{Value, json};

use super::PricePlans;
use super::json::{self as members, Any};
use super::object::{Item, Object, Price};

/// An item of a subscription, in the form that the column `items` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SubscriptionItem {
    /// `si_…`; the oldest shape has none.
    pub stripe_item_id: Option<String>,
    /// The item's price; before 2020, its plan.
    pub stripe_price_id: Option<String>,
    /// The price's product.
    pub stripe_product_id: Option<String>,
    /// The price's lookup key.
    pub lookup_key: Option<String>,
    /// The name that `PRICE_PLANS` or else the lookup key gives the item.
    pub plan: Option<String>,
    /// The number of units; a metered item has none.
    pub quantity: Option<i32>,
    /// `licensed` or `metered`.
    pub usage_type: Option<String>,
    /// The price of one unit, in the currency's smallest unit.
    pub unit_amount: Option<i64>,
    /// Three letters, in lower case.
    pub currency: Option<String>,
    /// `day`, `week`, `month` or `year`.
    pub interval: Option<String>,
    /// The number of intervals in a billing period.
    pub interval_count: Option<i32>,
    /// Start of the item's billing period; of the subscription's before 2025-03-31.
    pub current_period_start: Option<DateTime<Utc>>,
    /// End of the item's billing period; of the subscription's before 2025-03-31.
    pub current_period_end: Option<DateTime<Utc>>,
}

/// An item as it is read, with what the plan item lends to its subscription.
#[derive(Debug)]
pub(super) struct ReadItem {
    pub(super) item: SubscriptionItem,
    /// The plan that `PRICE_PLANS` maps its price or else its product to.
    pub(super) mapped_plan: Option<String>,
    /// The item's own period, which it has since 2025-03-31.
    pub(super) period: Period,
    /// The end of the item's own trial.
    pub(super) trial_end: Option<DateTime<Utc>>,
}

/// The subscription `object` with all items that `GET /v1/subscription_items` listed. Of an item that the object shows
/// already, the form that it shows counts.
pub(super) fn with_all_items(mut object: Value, listed: Vec<Value>) -> Value {
    let mut items = match object["items"]["data"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    let shown = items.len();
    for item in listed {
        if item["id"].is_null() || items[..shown].iter().all(|other| other["id"] != item["id"]) {
            items.push(item);
        }
    }
    object["items"] = json!({"object": "list", "data": items, "has_more": false});
    object
}

/// A billing period, both of whose ends are taken from one place.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Period {
    pub(super) start: Option<DateTime<Utc>>,
    pub(super) end: Option<DateTime<Utc>>,
}

impl Period {
    pub(super) fn is_known(&self) -> bool {
        self.start.is_some() || self.end.is_some()
    }

    fn or(self, other: Self) -> Self {
        if self.is_known() { self } else { other }
    }
}

/// The subscription's items. The oldest shape has one plan and one quantity on the subscription itself.
pub(super) fn read_all(subscription: &Object, plans: &PricePlans) -> Vec<ReadItem> {
    let own = Period { start: subscription.current_period_start, end: subscription.current_period_end };
    if let Some(items) = &subscription.items.data {
        return items.iter().filter(|item| !is_empty(item)).map(|item| read(item, own, plans)).collect();
    }
    let plan = subscription.plan.as_ref();
    let read_plan = |plan| {
        let item = Item { quantity: subscription.quantity, ..Item::default() };
        assemble(&item, Some(plan), own, plans)
    };
    plan.map(read_plan).into_iter().collect()
}

/// The item that names the plan: the first in `PRICE_PLANS`, else the first.
pub(super) fn plan_item(items: &[ReadItem]) -> Option<&ReadItem> {
    items.iter().find(|item| item.mapped_plan.is_some()).or(items.first())
}

/// An element that is no item at all.
fn is_empty(item: &Item) -> bool {
    item.id.is_none() && item.price.is_none() && item.plan.is_none() && item.quantity.is_none()
}

fn read(item: &Item, of_subscription: Period, plans: &PricePlans) -> ReadItem {
    assemble(item, item.price.as_deref().or(item.plan.as_deref()), of_subscription, plans)
}

fn assemble(item: &Item, price: Option<&Any<Price>>, of_subscription: Period, plans: &PricePlans) -> ReadItem {
    let (price_id, price) = match price {
        Some(Any::Text(id)) => (Some(id.clone()).filter(|id| members::is_id(id)), None),
        Some(Any::Object(price)) => (price.id.clone(), Some(price)),
        _ => (None, None),
    };
    let product_id = price.and_then(|price| price.product.clone());
    let lookup_key = price.and_then(|price| price.lookup_key.clone());
    let usage_type = price.and_then(|price| price.recurring.usage_type.as_ref().or(price.usage_type.as_ref()));
    let is_metered = usage_type.is_some_and(|usage_type| usage_type == "metered");
    let interval = price.and_then(|price| price.recurring.interval.as_ref().or(price.interval.as_ref()));
    let mapped_plan = [&price_id, &product_id].into_iter().flatten().find_map(|id| plans.plan(id)).map(str::to_owned);
    let period = Period { start: item.current_period_start, end: item.current_period_end };
    let shown_period = period.or(of_subscription);
    let item_columns = SubscriptionItem {
        stripe_item_id: item.id.clone(),
        stripe_price_id: price_id,
        stripe_product_id: product_id,
        plan: mapped_plan.clone().or_else(|| lookup_key.clone()),
        lookup_key,
        quantity: item.quantity.filter(|_| !is_metered),
        usage_type: usage_type.cloned(),
        unit_amount: price.and_then(|price| price.unit_amount.or(price.amount)),
        currency: price.and_then(|price| price.currency.clone()),
        interval: interval.cloned(),
        interval_count: price.and_then(|price| price.recurring.interval_count.or(price.interval_count)),
        current_period_start: shown_period.start.filter(has_four_digits),
        current_period_end: shown_period.end.filter(has_four_digits),
    };
    ReadItem { item: item_columns, mapped_plan, period, trial_end: item.current_trial.end_date }
}

/// Whether RFC 3339, and with it JSON, can show the time: its years have four digits.
fn has_four_digits(time: &DateTime<Utc>) -> bool {
    (1..=9999).contains(&time.year())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_items_that_are_listed_complete_those_that_are_shown() {
        let object = json!({"id": "sub_1", "items": {"has_more": true, "data": [{"id": "si_1", "quantity": 1}]}});
        let listed = vec![json!({"id": "si_2", "quantity": 2}), json!({"id": "si_1", "quantity": 9})];
        let whole = with_all_items(object, listed.clone());
        let items = json!([{"id": "si_1", "quantity": 1}, {"id": "si_2", "quantity": 2}]);
        assert_eq!(whole["items"], json!({"object": "list", "data": items, "has_more": false}));
        assert_eq!(with_all_items(json!({"id": "sub_1"}), listed.clone())["items"]["data"], json!(listed));
    }

    #[test]
    fn a_price_is_looked_up_before_its_product() {
        let plans: PricePlans = [("price_1", "by price"), ("prod_1", "by product")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .into_iter()
            .collect();
        let plan_of = |price: Value| {
            let object =
                json!({"items": {"data": [{"id": "si_0", "price": "price_0"}, {"id": "si_1", "price": price}]}});
            let items = read_all(&Object::from(&object), &plans);
            plan_item(&items).and_then(|read| read.mapped_plan.clone())
        };
        assert_eq!(plan_of(json!({"id": "price_1", "product": "prod_1"})).as_deref(), Some("by price"));
        assert_eq!(plan_of(json!({"id": "price_2", "product": {"id": "prod_1"}})).as_deref(), Some("by product"));
        assert_eq!(plan_of(json!({"id": "price_2", "product": "prod_2"})), None);
    }

    #[test]
    fn a_time_that_json_cannot_show_is_absent_from_an_item() {
        let object = json!({"items": {"data": [{"id": "si_1", "current_period_start": 0, "current_period_end": 253_402_300_800_i64}]}});
        let items = read_all(&Object::from(&object), &PricePlans::default());
        assert_eq!(items[0].item.current_period_start, DateTime::from_timestamp(0, 0));
        assert_eq!(items[0].item.current_period_end, None);
        assert!(items[0].period.end.is_some());
    }
}
