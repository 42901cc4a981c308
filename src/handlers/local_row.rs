//! Local rows, such as a trial that the application gave: taken over by the first subscription of Stripe's that entitles.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::projection::with_local_plan;
use super::{HandlerError, Work};
use crate::db::entitlements::Settings;
use crate::db::subscriptions::{Row, State};
use crate::db::{Conn, accounts, subscriptions};
use crate::stripe::{PlanName, Subscription};

/// How much older than the local row a subscription that takes it over may be: the application may make the row only after
/// the checkout.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// A subscription that may take over a local row: what an event shows of it, or what its row does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    id: &'a str,
    status: &'a str,
    created: Option<DateTime<Utc>>,
    /// Whether one of its items is in `PRICE_PLANS`, as far as its items are known.
    is_listed: bool,
}

impl<'a> Candidate<'a> {
    /// As an event shows it. That counts also if the event is stale, so that the order of arrival does not matter.
    pub(super) fn shown(shown: &'a Subscription) -> Self {
        let is_listed = matches!(shown.plan_name, PlanName::Mapped(_)) || !shown.items_complete;
        Self { id: &shown.id, status: &shown.status, created: shown.created, is_listed }
    }

    /// As its row shows it.
    pub(super) fn of_row(row: &'a Row) -> Option<Self> {
        let State { status, stripe_created, plan_source, items_complete, .. } = &row.state;
        let is_listed = matches!(plan_source.as_deref(), Some("price_plans" | "unknown")) || !items_complete;
        Some(Self { id: row.stripe_subscription_id.as_deref()?, status, created: *stripe_created, is_listed })
    }

    /// Whether it takes over a local row that was made at `local_row_since`.
    pub(super) fn takes_over(
        self,
        settings: &Settings,
        took_local_row: bool,
        local_row_since: Option<DateTime<Utc>>,
    ) -> bool {
        let Some(since) = local_row_since.filter(|_| !took_local_row) else {
            return false;
        };
        self.entitles(settings) && self.created.is_none_or(|created| created + TOLERANCE >= since)
    }

    /// Whether its status and its prices entitle.
    pub(super) fn entitles(self, settings: &Settings) -> bool {
        settings.entitled_statuses.iter().any(|status| status == self.status)
            && (self.is_listed || !settings.ignore_unlisted_prices)
    }
}

/// Has the subscription take over the account's oldest local row, if there is one that it may take: that row becomes the
/// subscription's row, and one that the subscription has already is merged into it. The account keeps the plan of its
/// first local row that was taken over; rows that no price names show it from then on.
pub(super) async fn take_over(
    conn: &mut Conn,
    work: &mut Work,
    settings: &Settings,
    account_id: Uuid,
    candidate: Candidate<'_>,
    event_id: Option<&str>,
) -> Result<(), HandlerError> {
    // Two subscriptions must not take over the same local row.
    let account = accounts::lock(conn, account_id).await?.ok_or(HandlerError::Gone("the account"))?;
    let local = subscriptions::lock_local(conn, account_id).await?;
    let Some(mut row) = work.row(candidate.id).cloned() else {
        return Ok(());
    };
    let is_taken = |local: &Row| candidate.takes_over(settings, row.took_local_row, Some(local.created_at));
    let Some(local) = local.filter(is_taken) else {
        return Ok(());
    };
    let local_plan = account.local_plan.or_else(|| local.state.plan.clone());
    if let Some(plan) = &local.state.plan {
        accounts::keep_local_plan(conn, account_id, plan).await?;
        work.keep_local_plan(account_id, plan);
    }
    // Before the local row gets its id; if the row is yet to be inserted, there is none.
    subscriptions::delete(conn, row.id).await?;
    // At once: another subscription of this transaction may look for a local row.
    subscriptions::take_local(conn, local.id, candidate.id).await?;
    row.id = local.id;
    row.created_at = local.created_at;
    row.took_local_row = true;
    row.state = with_local_plan(row.state, local_plan.as_deref());
    work.take_over(local, row, event_id);
    for other in subscriptions::lock_of_account(conn, account_id).await? {
        work.adopt(other);
    }
    for mut other in work.rows_of_account(account_id) {
        other.state = with_local_plan(other.state, local_plan.as_deref());
        work.put(other, event_id);
    }
    Ok(())
}
