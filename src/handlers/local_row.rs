//! Local rows, such as a trial that the application gave: taken over by the first subscription of Stripe's that entitles.

use chrono::{DateTime, TimeDelta, Utc};

use super::account::Place;
use super::projection::with_local_plan;
use super::{Context, HandlerError, Work};
use crate::db::{Conn, accounts, subscriptions};
use crate::stripe::{Event, PlanName, Subscription};

/// How much older than the local row a subscription that takes it over may be: the application may make the row only after
/// the checkout.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// Whether a subscription that an event shows like this takes over a local row that was made at `local_row_since`. What
/// the event shows counts also if the event is stale, so that the order of arrival does not matter.
pub(super) fn is_wanted(
    ctx: Context<'_>,
    shown: &Subscription,
    took_local_row: bool,
    local_row_since: Option<DateTime<Utc>>,
) -> bool {
    let Some(since) = local_row_since.filter(|_| !took_local_row) else {
        return false;
    };
    let settings = &ctx.policy.entitlement;
    let is_listed = matches!(shown.plan_name, PlanName::Mapped(_)) || !shown.items_complete;
    let entitles =
        settings.entitled_statuses.contains(&shown.status) && (is_listed || !settings.ignore_unlisted_prices);
    entitles && shown.created.is_none_or(|created| created + TOLERANCE >= since)
}

/// Has the subscription take over the account's oldest local row: that row becomes the subscription's row, and one that
/// the subscription has already is merged into it. The account keeps the plan of its first local row that was taken over;
/// rows that no price names show it from then on.
pub(super) async fn take_over(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
    place: Place,
    shown: &Subscription,
) -> Result<(), HandlerError> {
    // Two subscriptions must not take over the same local row.
    let account = accounts::lock(conn, place.account_id).await?.ok_or(HandlerError::Gone("the account"))?;
    let local = subscriptions::lock_local(conn, place.account_id).await?;
    let took = work.row(&shown.id).is_none_or(|row| row.took_local_row);
    let Some(local) = local.filter(|local| is_wanted(ctx, shown, took, Some(local.created_at))) else {
        return Ok(());
    };
    let Some(mut row) = work.row(&shown.id).cloned() else {
        return Ok(());
    };
    let local_plan = account.local_plan.or_else(|| local.state.plan.clone());
    if let Some(plan) = &local.state.plan {
        accounts::keep_local_plan(conn, place.account_id, plan).await?;
    }
    // Before the local row gets its id; if the row is yet to be inserted, there is none.
    subscriptions::delete(conn, row.id).await?;
    row.id = local.id;
    row.created_at = local.created_at;
    row.took_local_row = true;
    row.state = with_local_plan(row.state, local_plan.as_deref());
    work.take_over(local, row, &event.id);
    for other in subscriptions::lock_of_account(conn, place.account_id).await? {
        work.adopt(other);
    }
    for mut other in work.rows_of_account(place.account_id) {
        other.state = with_local_plan(other.state, local_plan.as_deref());
        work.put(other, Some(&event.id));
    }
    Ok(())
}
