//! The columns of a row that show a subscription of Stripe's: its projection, and the account's local plan. Pure.

use serde_json::Value;

use crate::db::subscriptions::State;
use crate::stripe::{Event, PlanName, Subscription};

/// Where a subscription was seen: columns that the object itself does not give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Whether it is about real money.
    pub livemode: Option<bool>,
    /// `acct_…` of the connected account to which it belongs.
    pub connect_account: Option<String>,
}

impl Origin {
    /// The origin of an event's subscription.
    pub fn of(event: &Event) -> Self {
        Self { livemode: Some(event.livemode), connect_account: event.connect_account.clone() }
    }
}

/// The columns that show `shown` on a row of an account that has this local plan.
pub fn columns_of(shown: &Subscription, origin: &Origin, local_plan: Option<&str>) -> State {
    let (plan, plan_source) = plan(shown, local_plan).unzip();
    State {
        plan,
        plan_source: plan_source.map(str::to_owned),
        status: shown.status.clone(),
        stripe_customer_id: shown.customer_id.clone(),
        stripe_price_id: shown.price_id.clone(),
        seat_limit: shown.seat_limit,
        current_period_start: shown.current_period_start,
        current_period_end: shown.current_period_end,
        cancel_at_period_end: shown.cancel_at_period_end,
        cancel_at: shown.cancel_at,
        canceled_at: shown.canceled_at,
        ended_at: shown.ended_at,
        trial_end: shown.trial_end,
        paused_collection: shown.paused_collection,
        stripe_created: shown.created,
        cancellation_reason: shown.cancellation_reason.clone(),
        cancellation_feedback: shown.cancellation_feedback.clone(),
        metadata: shown.metadata.clone(),
        // Nothing in an item can fail to be written as JSON.
        items: serde_json::to_value(&shown.items).unwrap_or_else(|_| Value::Array(Vec::new())),
        items_complete: shown.items_complete,
        livemode: origin.livemode,
        connect_account: origin.connect_account.clone(),
    }
}

/// The plan's name, and the word of `plan_source` that says where it comes from.
fn plan(shown: &Subscription, local_plan: Option<&str>) -> Option<(String, &'static str)> {
    match &shown.plan_name {
        PlanName::Mapped(plan) => Some((plan.clone(), "price_plans")),
        PlanName::LookupKey(key) => Some((key.clone(), "lookup_key")),
        PlanName::Unnamed => {
            let local = local_plan.map(|plan| (plan.to_owned(), "local"));
            local.or_else(|| shown.price_id.clone().map(|id| (id, "price_id")))
        }
        PlanName::Unknown => None,
    }
}

/// The same state in an account that has this local plan: a row that no price names shows it.
pub fn with_local_plan(state: State, local_plan: Option<&str>) -> State {
    let is_named = !matches!(state.plan_source.as_deref(), None | Some("local" | "price_id"));
    // What was not read of a subscription's items may name a plan.
    if is_named || !state.items_complete {
        return state;
    }
    let local = local_plan.map(|plan| (plan.to_owned(), "local"));
    let plan = local.or_else(|| state.stripe_price_id.clone().map(|id| (id, "price_id")));
    let (plan, plan_source) = plan.unzip();
    State { plan, plan_source: plan_source.map(str::to_owned), ..state }
}
