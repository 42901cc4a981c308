//! A state of a subscription: projected onto its row if it is newer than what the row shows.

use diesel::QueryResult;
use uuid::Uuid;

use super::{Context, HandlerError, Note, Outcome, Question, tie};
use crate::db::subscriptions::{self, AsOf, Row, State};
use crate::db::{Conn, accounts};
use crate::handlers::ordering::{self, Order, Version};
use crate::handlers::projection::{Origin, columns_of};
use crate::stripe::{Event, Kind, PlanName, PricePlans, Subscription};

/// Applies an event that shows a subscription.
pub(super) async fn apply(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    account_id: Uuid,
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let shown = shown_by(event, ctx.plans)?;
    store(conn, ctx, event, account_id, &shown, None, notes).await
}

/// The state that an event shows.
pub(super) fn shown_by(event: &Event, plans: &PricePlans) -> Result<Subscription, HandlerError> {
    let shown = Subscription::project(event.object(), plans)?;
    Ok(if event.kind == Kind::SubscriptionDeleted { shown.deleted() } else { shown })
}

/// Stores a state that counts as of `event`, if it is newer than the row's. `fetched` is the question to which the
/// state is the answer, where it is not the event's own.
pub(super) async fn store(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    account_id: Uuid,
    shown: &Subscription,
    fetched: Option<Question>,
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let newcomer = newcomer(event, shown)?;
    let Some(row) = subscriptions::lock(conn, &shown.id).await? else {
        create(conn, account_id, shown, &Origin::of(event), &as_of(event)).await?;
        return Ok(Outcome::Applied);
    };
    let order = version(&row).map_or(Order::Newer, |stored| ordering::compare(stored, newcomer));
    match order {
        Order::Older => Ok(Outcome::Stale),
        Order::Tie => tie::settle(conn, ctx, event, &row, shown, fetched, notes).await,
        Order::Newer => {
            let state = state(conn, row.account_id, shown, &Origin::of(event)).await?;
            subscriptions::set_state(conn, row.id, &state, &as_of(event)).await?;
            Ok(Outcome::Applied)
        }
    }
}

/// What orders a state that counts as of `event`.
pub(super) fn newcomer(event: &Event, shown: &Subscription) -> Result<Version, HandlerError> {
    Ok(Version {
        created: event.created.ok_or(HandlerError::NoCreated)?,
        is_final: Subscription::is_final(&shown.status),
        is_birth: event.kind == Kind::SubscriptionCreated,
    })
}

/// The first row of a subscription: the account's local row, which it takes over, or a new one.
async fn create(
    conn: &mut Conn,
    account_id: Uuid,
    shown: &Subscription,
    origin: &Origin,
    as_of: &AsOf,
) -> Result<(), HandlerError> {
    // Two first events of two subscriptions must not take over the same local row.
    let account = accounts::lock(conn, account_id).await?.ok_or(HandlerError::Gone("the account"))?;
    let Some(local) = subscriptions::lock_local(conn, account_id).await? else {
        let state = columns_of(shown, origin, account.local_plan.as_deref());
        subscriptions::insert(conn, account_id, &shown.id, &state, as_of).await?;
        return Ok(());
    };
    if let Some(plan) = &local.state.plan {
        accounts::set_local_plan(conn, account_id, plan).await?;
    }
    let state = columns_of(shown, origin, local.state.plan.or(account.local_plan).as_deref());
    subscriptions::take_over(conn, local.id, &shown.id, &state, as_of).await?;
    Ok(())
}

/// The columns that show `shown`. The account is asked for its plan only where the price names none.
pub(super) async fn state(
    conn: &mut Conn,
    account_id: Uuid,
    shown: &Subscription,
    origin: &Origin,
) -> QueryResult<State> {
    let local_plan = match shown.plan_name {
        PlanName::Unnamed => accounts::find(conn, account_id).await?.and_then(|account| account.local_plan),
        _ => None,
    };
    Ok(columns_of(shown, origin, local_plan.as_deref()))
}

pub(super) fn as_of(event: &Event) -> AsOf {
    AsOf {
        last_event_id: Some(event.id.clone()),
        last_event_type: Some(event.event_type.clone()),
        last_event_created: event.created,
        projected_event_id: Some(event.id.clone()),
    }
}

/// `None` for a row that no event has written yet: whatever comes is newer.
fn version(row: &Row) -> Option<Version> {
    Some(Version {
        created: row.as_of.last_event_created?,
        is_final: Subscription::is_final(&row.state.status),
        is_birth: row.as_of.last_event_type.as_deref() == Some(Kind::BIRTH),
    })
}
