//! Projection: a subscription object of any API version → the columns of its row. Pure.
//!
//! Source: <https://docs.stripe.com/api/subscriptions/object>; since version 2025-03-31 the billing period stands on
//! the items (<https://docs.stripe.com/changelog/basil/2025-03-31/deprecate-subscription-current-period-start-and-end>).

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use thiserror::Error;

use super::json::{self, Any};
use super::object::{Item, Object, Price};

/// Statuses that a subscription never leaves.
/// Source: <https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses>.
pub const FINAL_STATUSES: [&str; 2] = ["canceled", "incomplete_expired"];

/// Which price is which plan: `PRICE_PLANS`, price id → plan name.
#[derive(Clone, Debug, Default)]
pub struct PricePlans(HashMap<String, String>);

impl PricePlans {
    /// The plan that `price_id` is mapped to.
    pub fn plan(&self, price_id: &str) -> Option<&str> {
        self.0.get(price_id).map(String::as_str)
    }
}

impl FromIterator<(String, String)> for PricePlans {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// What a subscription object says. Absent, or out of a column's range, is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// `sub_…`.
    pub id: String,
    /// Stripe's word as it is, also one that nobody knows yet.
    pub status: String,
    /// `cus_…`.
    pub customer_id: Option<String>,
    /// The plan item's price (before 2020: its plan).
    pub price_id: Option<String>,
    /// The name that `PRICE_PLANS` or the price's lookup key give the plan.
    pub named_plan: Option<String>,
    /// The plan item's quantity; a metered item has none.
    pub seat_limit: Option<i32>,
    /// Start of the current billing period.
    pub current_period_start: Option<DateTime<Utc>>,
    /// End of the current billing period.
    pub current_period_end: Option<DateTime<Utc>>,
    /// Whether it ends with the period.
    pub cancel_at_period_end: bool,
    /// When it will be canceled.
    pub cancel_at: Option<DateTime<Utc>>,
    /// When somebody asked for its end.
    pub canceled_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// When the trial ends or ended.
    pub trial_end: Option<DateTime<Utc>>,
    /// Whether `pause_collection` is set.
    pub paused_collection: bool,
}

/// A subscription object without what a row cannot do without.
#[derive(Debug, Error)]
pub enum SubscriptionError {
    /// It has no `id`.
    #[error("the subscription has no `id`")]
    NoId,
    /// It has no `status`.
    #[error("the subscription has no `status`")]
    NoStatus,
}

impl Subscription {
    /// Projects a subscription object.
    ///
    /// # Errors
    /// Where `id` or `status` is absent.
    pub fn project(object: &Object, plans: &PricePlans) -> Result<Self, SubscriptionError> {
        let items = items(object);
        // The item that names the plan: the first whose price is mapped, else the first.
        let is_mapped = |item: &&PlanItem<'_>| item.price_id.and_then(|id| plans.plan(id)).is_some();
        let item = items.iter().find(is_mapped).or(items.first());
        let price_id = item.and_then(|item| item.price_id);
        let lookup_key = || item.and_then(|item| item.lookup_key);
        // The whole pair from one place: a start from here with an end from there would be a period of nobody's.
        let own = Period { start: object.current_period_start, end: object.current_period_end };
        let periods = [Some(own), item.map(|item| item.period)].into_iter().flatten();
        let period = periods.chain(items.iter().map(|item| item.period)).find(Period::is_known).unwrap_or_default();
        Ok(Self {
            id: object.id.clone().ok_or(SubscriptionError::NoId)?,
            status: object.status.clone().ok_or(SubscriptionError::NoStatus)?,
            customer_id: object.any_customer().map(str::to_owned),
            price_id: price_id.map(str::to_owned),
            named_plan: price_id.and_then(|id| plans.plan(id)).or_else(lookup_key).map(str::to_owned),
            seat_limit: item.and_then(|item| item.seats),
            current_period_start: period.start,
            current_period_end: period.end,
            cancel_at_period_end: object.cancel_at_period_end,
            cancel_at: object.cancel_at,
            canceled_at: object.canceled_at,
            ended_at: object.ended_at,
            trial_end: object.trial_end,
            paused_collection: object.has_paused_collection,
        })
    }

    /// The same subscription as its deletion leaves it.
    pub fn deleted(self) -> Self {
        Self { status: "canceled".to_owned(), ..self }
    }

    /// Whether a subscription with this status never changes its status again.
    pub fn is_final(status: &str) -> bool {
        FINAL_STATUSES.contains(&status)
    }
}

/// The subscription's items. The oldest shape has one plan and one quantity on the subscription itself.
fn items(subscription: &Object) -> Vec<PlanItem<'_>> {
    if let Some(items) = &subscription.items.data {
        return items.iter().map(PlanItem::of).collect();
    }
    let plan = subscription.plan.as_ref();
    plan.map(|plan| PlanItem::new(Some(plan), subscription.quantity, Period::default())).into_iter().collect()
}

/// What an item says, as far as it matters.
struct PlanItem<'a> {
    /// Its price's. Before 2020 this was its plan.
    price_id: Option<&'a str>,
    lookup_key: Option<&'a str>,
    /// A metered item has none.
    seats: Option<i32>,
    period: Period,
}

impl<'a> PlanItem<'a> {
    fn of(item: &'a Item) -> Self {
        let period = Period { start: item.current_period_start, end: item.current_period_end };
        Self::new(item.price.as_deref().or(item.plan.as_deref()), item.quantity, period)
    }

    fn new(price: Option<&'a Any<Price>>, quantity: Option<i32>, period: Period) -> Self {
        let (price_id, expanded) = match price {
            Some(Any::Text(id)) => (Some(id.as_str()).filter(|id| json::is_id(id)), None),
            Some(Any::Object(price)) => (price.id.as_deref(), Some(price)),
            _ => (None, None),
        };
        let usage_type = expanded.and_then(|price| price.recurring.usage_type.as_ref().or(price.usage_type.as_ref()));
        let is_metered = usage_type.is_some_and(|usage_type| usage_type == "metered");
        Self {
            price_id,
            lookup_key: expanded.and_then(|price| price.lookup_key.as_deref()),
            seats: quantity.filter(|_| !is_metered),
            period,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Period {
    start: Option<DateTime<Utc>>,
    end: Option<DateTime<Utc>>,
}

impl Period {
    fn is_known(&self) -> bool {
        self.start.is_some() || self.end.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn project(object: Value) -> Subscription {
        let plans = [("price_pro".to_owned(), "pro".to_owned())].into_iter().collect();
        Subscription::project(&Object::from(&object), &plans).unwrap()
    }

    fn with_items(items: Value) -> Subscription {
        project(json!({"id": "sub_1", "status": "active", "items": {"data": items}}))
    }

    #[test]
    fn the_plan_item_is_the_first_mapped_one_else_the_first() {
        let two = with_items(json!([
            {"price": {"id": "price_addon", "lookup_key": "addon"}, "quantity": 1, "current_period_end": 10},
            {"price": {"id": "price_pro", "lookup_key": "other"}, "quantity": 7, "current_period_end": 20},
        ]));
        assert_eq!(two.price_id.as_deref(), Some("price_pro"));
        assert_eq!(two.named_plan.as_deref(), Some("pro"));
        assert_eq!(two.seat_limit, Some(7));
        assert_eq!(two.current_period_end, DateTime::from_timestamp(20, 0));
        let unmapped = with_items(json!([{"price": {"id": "price_a", "lookup_key": "team"}}, {"price": "price_b"}]));
        assert_eq!(unmapped.named_plan.as_deref(), Some("team"));
        assert_eq!(unmapped.seat_limit, None);
    }

    #[test]
    fn prices_stand_as_ids_as_plans_or_on_the_subscription_itself() {
        assert_eq!(with_items(json!([{"price": "price_x"}])).price_id.as_deref(), Some("price_x"));
        assert_eq!(with_items(json!([{"plan": {"id": "gold"}, "price": null}])).price_id.as_deref(), Some("gold"));
        let oldest = project(json!({"id": "sub_1", "status": "active", "plan": {"id": "gold"}, "quantity": 3}));
        assert_eq!((oldest.price_id.as_deref(), oldest.seat_limit), (Some("gold"), Some(3)));
    }

    #[test]
    fn what_is_absent_or_out_of_range_is_null() {
        let none = with_items(json!([]));
        assert_eq!(
            (none.price_id, none.named_plan, none.seat_limit, none.current_period_start),
            (None, None, None, None)
        );
        let metered =
            with_items(json!([{"price": {"id": "p", "recurring": {"usage_type": "metered"}}, "quantity": 1}]));
        assert_eq!(metered.seat_limit, None);
        let huge = with_items(json!([{"price": "p", "quantity": 4_294_967_297_i64, "current_period_end": 1e30}]));
        assert_eq!((huge.seat_limit, huge.current_period_end), (None, None));
        assert!(Subscription::project(&Object::from(&json!({"id": "sub_1"})), &PricePlans::default()).is_err());
        assert!(Subscription::project(&Object::from(&json!({"status": "active"})), &PricePlans::default()).is_err());
    }

    #[test]
    fn a_paused_collection_and_an_unknown_status_are_kept() {
        let paused = project(json!({"id": "s", "status": "hibernating", "pause_collection": {"behavior": "void"}}));
        assert!(paused.paused_collection);
        assert_eq!(paused.status, "hibernating");
        assert!(!project(json!({"id": "s", "status": "active", "pause_collection": null})).paused_collection);
        assert_eq!(paused.deleted().status, "canceled");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z_]{0,12}".prop_map(Value::from),
        ];
        let name = prop_oneof![
            Just("items"),
            Just("data"),
            Just("price"),
            Just("plan"),
            Just("quantity"),
            Just("recurring"),
            Just("id"),
            Just("status"),
            Just("usage_type"),
            Just("current_period_end"),
            Just("cancel_at"),
            Just("customer"),
        ];
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(name.clone(), inner, 0..8)
                    .prop_map(|map| map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_shape_is_projected_without_wrapping(object in any_json(), quantity in any::<i64>()) {
            if let Ok(subscription) = Subscription::project(&Object::from(&object), &PricePlans::default()) {
                prop_assert_eq!(object.get("status").and_then(Value::as_str), Some(subscription.status.as_str()));
            }
            let seats = with_items(json!([{"price": "p", "quantity": quantity}])).seat_limit;
            prop_assert_eq!(seats.map(i64::from), i32::try_from(quantity).is_ok().then_some(quantity));
        }
    }
}
