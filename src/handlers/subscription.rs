//! A state of a subscription: projected onto its row if it is newer than what the row shows.

use uuid::Uuid;

use super::account::Place;
use super::local_row::Candidate;
use super::projection::{Origin, columns_of, with_local_plan};
use super::{Context, Handled, HandlerError, Outcome, Work, local_row, tie_break};
use crate::db::parked::Awaited;
use crate::db::subscriptions::{AsOf, LatestInvoice, Row, State};
use crate::db::{Conn, accounts};
use crate::handlers::ordering::{self, Order, Version};
use crate::stripe::{Event, Kind, PricePlans, Subscription};

/// Applies an event that shows a subscription.
pub(super) async fn apply(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
) -> Result<Handled, HandlerError> {
    event.created.ok_or(HandlerError::NoCreated)?;
    // Alone, its other items were read before the transaction.
    if event.object().has_more_items() && ctx.answers.can_ask() {
        ctx.needs_own_transaction()?;
    }
    let shown = shown_by(event, &ctx.policy.plans)?;
    let mut notes = Vec::new();
    let Some(place) = Place::of(conn, work, ctx, event, &mut notes).await? else {
        // Another transaction may link the customer before this one commits, and look for parked events too early.
        let releases = ctx.policy.awaited_placement(event);
        return Ok(Handled { notes, releases, ..Handled::new(Outcome::Parked, None) });
    };
    let mut handled = Handled { notes, ..Handled::new(Outcome::Applied, Some(place.account_id)) };
    let shown = Shown { state: &shown, is_fetched: false };
    handled.outcome = store(conn, work, ctx, event, place, shown, &mut handled).await?;
    place.keep(work, event);
    Ok(handled)
}

/// The state that an event shows.
pub(super) fn shown_by(event: &Event, plans: &PricePlans) -> Result<Subscription, HandlerError> {
    let shown = Subscription::project(event.object(), plans)?;
    Ok(if event.kind == Kind::SubscriptionDeleted { shown.deleted() } else { shown })
}

/// A state of a subscription that counts as of an event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shown<'a> {
    pub(super) state: &'a Subscription,
    /// Whether Stripe gave it when it was asked; the event itself shows another state, or none.
    pub(super) is_fetched: bool,
}

/// Stores a state that counts as of `event`, if it is newer than the row's.
pub(super) async fn store(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
    place: Place,
    shown: Shown<'_>,
    handled: &mut Handled,
) -> Result<Outcome, HandlerError> {
    let subscription = shown.state;
    let newcomer = newcomer(event, subscription)?;
    let row = work.row(&subscription.id);
    let settings = &ctx.policy.entitlement;
    let candidate = Candidate::shown(subscription);
    let took_local_row = row.is_some_and(|row| row.took_local_row);
    // Of another account than the event's, what was loaded says nothing.
    let facts = work.facts(event)?;
    let account_id = row.map_or(place.account_id, |row| row.account_id);
    let takes_local_row = if facts.account() == Some(account_id) {
        candidate.takes_over(settings, took_local_row, facts.local_row_since)
    } else {
        candidate.entitles(settings) && !took_local_row
    };
    if takes_local_row {
        ctx.needs_own_transaction()?;
    }
    let outcome = match row {
        None => {
            create(conn, work, ctx, event, place, subscription).await?;
            handled.releases.push(Awaited::Subscription(subscription.id.clone()));
            Outcome::Applied
        }
        Some(row) => match version(row).map_or(Order::Newer, |stored| ordering::compare(stored, newcomer)) {
            Order::Older => Outcome::Stale,
            Order::Tie => {
                ctx.needs_own_transaction()?;
                let row = row.clone();
                tie_break::settle(conn, work, ctx, event, &row, shown, &mut handled.notes).await?
            }
            Order::Newer => {
                let state = state(conn, work, ctx, event, row.account_id, subscription).await?;
                let row = row.showing(state, as_of(event), facts.now);
                work.put(row, Some(&event.id));
                Outcome::Applied
            }
        },
    };
    if takes_local_row {
        local_row::take_over(conn, work, settings, account_id, candidate, Some(&event.id)).await?;
    }
    Ok(outcome)
}

/// What orders a state that counts as of `event`.
fn newcomer(event: &Event, shown: &Subscription) -> Result<Version, HandlerError> {
    Ok(Version {
        created: event.created.ok_or(HandlerError::NoCreated)?,
        is_final: Subscription::is_final(&shown.status),
        is_birth: event.kind == Kind::SubscriptionCreated,
    })
}

/// The first row of a subscription.
async fn create(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
    place: Place,
    shown: &Subscription,
) -> Result<(), HandlerError> {
    let mut state = state(conn, work, ctx, event, place.account_id, shown).await?;
    let facts = work.facts(event)?;
    if facts.local_row_since.is_some() || facts.account() != Some(place.account_id) {
        // Another transaction may take over the account's local row just now, and does not see this row yet.
        ctx.needs_own_transaction()?;
        let account = accounts::lock(conn, place.account_id).await?.ok_or(HandlerError::Gone("the account"))?;
        state = with_local_plan(state, account.local_plan.as_deref());
    }
    let now = facts.now;
    let row = Row {
        id: Uuid::new_v4(),
        account_id: place.account_id,
        stripe_subscription_id: Some(shown.id.clone()),
        state,
        as_of: as_of(event),
        latest_invoice: LatestInvoice::default(),
        ends_at: None,
        placed_by_metadata: place.is_by_name,
        took_local_row: false,
        created_at: now,
        updated_at: now,
    };
    work.put(row, Some(&event.id));
    Ok(())
}

/// The columns that show `shown` on a row of this account.
pub(super) async fn state(
    conn: &mut Conn,
    work: &Work,
    ctx: Context<'_>,
    event: &Event,
    account_id: Uuid,
    shown: &Subscription,
) -> Result<State, HandlerError> {
    let facts = work.facts(event)?;
    let local_plan = if facts.account() == Some(account_id) {
        facts.local_plan.clone()
    } else {
        ctx.needs_own_transaction()?;
        accounts::find(conn, account_id).await?.and_then(|account| account.local_plan)
    };
    Ok(columns_of(shown, &Origin::of(event), local_plan.as_deref()))
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
