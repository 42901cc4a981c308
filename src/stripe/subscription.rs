//! Projection: a subscription object of any API version → the columns of its row. Pure.
//!
//! Source: <https://docs.stripe.com/api/subscriptions/object>; since version 2025-03-31 the billing period stands on
//! the items (<https://docs.stripe.com/changelog/basil/2025-03-31/deprecate-subscription-current-period-start-and-end>).

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use thiserror::Error;

use super::item::{self, Period, SubscriptionItem};
use super::object::Object;

/// Statuses that a subscription never leaves.
/// Source: <https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses>.
pub const FINAL_STATUSES: [&str; 2] = ["canceled", "incomplete_expired"];

/// The plans of prices and products: `PRICE_PLANS`, the id of a price or of a product → plan name.
#[derive(Clone, Debug, Default)]
pub struct PricePlans(HashMap<String, String>);

impl PricePlans {
    /// The plan that the price or product `id` is mapped to.
    pub fn plan(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(String::as_str)
    }
}

impl FromIterator<(String, String)> for PricePlans {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// A plan's name, as far as Stripe's object and `PRICE_PLANS` give one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlanName {
    /// The plan item's price or product is in `PRICE_PLANS`.
    Mapped(String),
    /// The lookup key of the plan item's price.
    LookupKey(String),
    /// Neither: the account's local plan or else the price's id is shown.
    Unnamed,
    /// Not all items are known, and none of the known ones is in `PRICE_PLANS`: no plan is shown.
    Unknown,
}

/// The columns that a subscription object gives. Absent, or out of a column's range, is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// `sub_…`.
    pub id: String,
    /// Stripe's word as it is, also one that is not known today.
    pub status: String,
    /// `cus_…`.
    pub customer_id: Option<String>,
    /// The plan item's price (before 2020: its plan).
    pub price_id: Option<String>,
    /// The plan's name.
    pub plan_name: PlanName,
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
    /// When its cancellation was requested.
    pub canceled_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// When the trial ends or ended.
    pub trial_end: Option<DateTime<Utc>>,
    /// Whether `pause_collection` is set.
    pub paused_collection: bool,
    /// When Stripe made it.
    pub created: Option<DateTime<Utc>>,
    /// Stripe's word for why it was canceled.
    pub cancellation_reason: Option<String>,
    /// The customer's answer to why it was canceled.
    pub cancellation_feedback: Option<String>,
    /// The application's notes: a JSON object.
    pub metadata: Value,
    /// Every known item.
    pub items: Vec<SubscriptionItem>,
    /// Whether `items` are all that there are.
    pub items_complete: bool,
}

/// A subscription object that lacks what a row must have.
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
    /// If `id` or `status` is absent.
    pub fn project(object: &Object, plans: &PricePlans) -> Result<Self, SubscriptionError> {
        let items = item::read_all(object, plans);
        let plan_item = item::plan_item(&items);
        let plan_name = plan_name(plan_item, object.items.has_more);
        // Both ends from one place: a start from here with an end from there would be nobody's period.
        let own = Period { start: object.current_period_start, end: object.current_period_end };
        let periods = [plan_item.map(|item| item.period), Some(own)].into_iter().flatten();
        let period = periods.chain(items.iter().map(|item| item.period)).find(Period::is_known).unwrap_or_default();
        Ok(Self {
            id: object.id.clone().ok_or(SubscriptionError::NoId)?,
            status: object.status.clone().ok_or(SubscriptionError::NoStatus)?,
            customer_id: object.any_customer().map(str::to_owned),
            price_id: plan_item.and_then(|read| read.item.stripe_price_id.clone()),
            plan_name,
            seat_limit: plan_item.and_then(|read| read.item.quantity),
            current_period_start: period.start,
            current_period_end: period.end,
            cancel_at_period_end: object.cancel_at_period_end,
            cancel_at: object.cancel_at,
            canceled_at: object.canceled_at,
            ended_at: object.ended_at,
            trial_end: object.trial_end.or_else(|| plan_item.and_then(|read| read.trial_end)),
            paused_collection: object.has_paused_collection,
            created: object.created,
            cancellation_reason: object.cancellation_details.reason.clone(),
            cancellation_feedback: object.cancellation_details.feedback.clone(),
            metadata: metadata(object),
            items_complete: !object.items.has_more,
            items: items.into_iter().map(|read| read.item).collect(),
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

fn plan_name(plan_item: Option<&item::ReadItem>, has_more: bool) -> PlanName {
    if let Some(plan) = plan_item.and_then(|read| read.mapped_plan.clone()) {
        return PlanName::Mapped(plan);
    }
    if has_more {
        return PlanName::Unknown;
    }
    let lookup_key = plan_item.and_then(|read| read.item.lookup_key.clone());
    lookup_key.map_or(PlanName::Unnamed, PlanName::LookupKey)
}

fn metadata(object: &Object) -> Value {
    let read = |text: &String| serde_json::from_str(text).ok().filter(Value::is_object);
    object.metadata.text.as_ref().and_then(read).unwrap_or_else(|| Value::Object(Map::new()))
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
        assert_eq!(two.plan_name, PlanName::Mapped("pro".to_owned()));
        assert_eq!(two.seat_limit, Some(7));
        assert_eq!(two.current_period_end, DateTime::from_timestamp(20, 0));
        let unmapped = with_items(json!([{"price": {"id": "price_a", "lookup_key": "team"}}, {"price": "price_b"}]));
        assert_eq!(unmapped.plan_name, PlanName::LookupKey("team".to_owned()));
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
            (none.price_id, none.plan_name, none.seat_limit, none.current_period_start),
            (None, PlanName::Unnamed, None, None)
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
