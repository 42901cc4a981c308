//! Drift: where a subscription's row shows something else than Stripe has.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::error::AttemptError;
use super::{Service, ServiceError};
use crate::db::subscriptions::{Row, State};
use crate::db::{Conn, accounts, maintenance, subscriptions};
use crate::handlers::projection::{Origin, columns_of};
use crate::stripe::{Subscription, SubscriptionError};

/// A column that shows something else than Stripe has. Both in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The column.
    pub column: &'static str,
    /// What our row shows.
    pub ours: String,
    /// What it would show for Stripe's state.
    pub stripes: String,
}

/// How a row compares with Stripe's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The row shows Stripe's state, as of the event of this time.
    Same {
        /// `last_event_created`.
        as_of: Option<DateTime<Utc>>,
    },
    /// It shows another one.
    Differs(Vec<Difference>),
    /// There is no row, and an event is parked that will make one.
    Parked,
    /// There is no row.
    Absent,
}

impl Service {
    /// Compares the row of a subscription with the object as Stripe has it.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer or the object is no subscription.
    pub async fn compare(&self, object: Value) -> Result<Comparison, ServiceError> {
        let compared = self.compare_page(vec![object]).await?;
        compared.into_iter().next().unwrap_or(Ok(Comparison::Absent)).map_err(failed)
    }

    /// Compares the rows of several subscriptions with the objects as Stripe has them, in the objects' order; inside, why
    /// an object is no subscription.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn compare_page(
        &self,
        objects: Vec<Value>,
    ) -> Result<Vec<Result<Comparison, SubscriptionError>>, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let plans = &service.parts().policy.plans;
            let shown: Vec<_> = objects.iter().map(|object| Subscription::project(&object.into(), plans)).collect();
            let ids: Vec<_> = shown.iter().flatten().map(|shown| shown.id.as_str()).collect();
            let mut conn = service.connection().await?;
            let rows = Rows::load(&mut conn, &ids).await?;
            Ok(shown.into_iter().map(|shown| shown.map(|shown| rows.compare(&shown))).collect())
        })
        .await
    }
}

/// What the tables have of several subscriptions.
struct Rows {
    /// By `stripe_subscription_id`.
    rows: HashMap<String, Row>,
    /// By account.
    local_plans: HashMap<Uuid, String>,
    /// Those without a row of which an event is parked.
    parked: HashSet<String>,
}

impl Rows {
    async fn load(conn: &mut Conn, ids: &[&str]) -> Result<Self, AttemptError> {
        let rows = subscriptions::of_subscriptions(conn, ids).await?;
        let rows: HashMap<_, _> =
            rows.into_iter().filter_map(|row| Some((row.stripe_subscription_id.clone()?, row))).collect();
        let account_ids: Vec<_> = rows.values().map(|row| row.account_id).collect();
        let local_plans = accounts::local_plans(conn, &account_ids).await?.into_iter().collect();
        let absent: Vec<_> = ids.iter().copied().filter(|id| !rows.contains_key(*id)).collect();
        let parked = maintenance::parked_subscriptions(conn, &absent).await?.into_iter().collect();
        Ok(Self { rows, local_plans, parked })
    }

    fn compare(&self, shown: &Subscription) -> Comparison {
        let Some(row) = self.rows.get(&shown.id) else {
            return if self.parked.contains(&shown.id) { Comparison::Parked } else { Comparison::Absent };
        };
        let local_plan = self.local_plans.get(&row.account_id);
        // The object does not say where it was seen.
        let origin = Origin { livemode: row.state.livemode, connect_account: row.state.connect_account.clone() };
        let stripes = columns_of(shown, &origin, local_plan.map(String::as_str));
        let differences = differences(&row.state, &stripes);
        if differences.is_empty() {
            return Comparison::Same { as_of: row.as_of.last_event_created };
        }
        Comparison::Differs(differences)
    }
}

fn failed(error: SubscriptionError) -> ServiceError {
    ServiceError::Failed(error.into())
}

fn differences(ours: &State, stripes: &State) -> Vec<Difference> {
    let (ours, stripes) = (columns(ours), columns(stripes));
    let pairs = ours.into_iter().zip(stripes);
    let unequal = pairs.filter(|((_, ours), (_, stripes))| ours != stripes);
    unequal.map(|((column, ours), (_, stripes))| Difference { column, ours, stripes }).collect()
}

fn columns(state: &State) -> [(&'static str, String); 22] {
    fn text(value: Option<impl ToString>) -> String {
        value.map_or_else(|| "null".to_owned(), |value| value.to_string())
    }
    fn time(value: Option<DateTime<Utc>>) -> String {
        text(value.map(|time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true)))
    }
    // Taken apart, so that no column that is added later can be forgotten here.
    let State {
        plan,
        status,
        stripe_customer_id,
        stripe_price_id,
        seat_limit,
        current_period_start,
        current_period_end,
        cancel_at_period_end,
        cancel_at,
        canceled_at,
        ended_at,
        trial_end,
        paused_collection,
        plan_source,
        stripe_created,
        cancellation_reason,
        cancellation_feedback,
        metadata,
        items,
        items_complete,
        livemode,
        connect_account,
    } = state;
    [
        ("status", status.clone()),
        ("plan", text(plan.as_ref())),
        ("stripe_customer_id", text(stripe_customer_id.as_ref())),
        ("stripe_price_id", text(stripe_price_id.as_ref())),
        ("seat_limit", text(*seat_limit)),
        ("current_period_start", time(*current_period_start)),
        ("current_period_end", time(*current_period_end)),
        ("cancel_at_period_end", cancel_at_period_end.to_string()),
        ("cancel_at", time(*cancel_at)),
        ("canceled_at", time(*canceled_at)),
        ("ended_at", time(*ended_at)),
        ("trial_end", time(*trial_end)),
        ("paused_collection", paused_collection.to_string()),
        ("plan_source", text(plan_source.as_ref())),
        ("stripe_created", time(*stripe_created)),
        ("cancellation_reason", text(cancellation_reason.as_ref())),
        ("cancellation_feedback", text(cancellation_feedback.as_ref())),
        ("metadata", metadata.to_string()),
        ("items", items.to_string()),
        ("items_complete", items_complete.to_string()),
        ("livemode", text(*livemode)),
        ("connect_account", text(connect_account.as_ref())),
    ]
}
