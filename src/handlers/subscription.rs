//! A state of a subscription: projected onto its row if it is newer than what the row shows.

use diesel::QueryResult;
use serde_json::Value;
use uuid::Uuid;

use super::{Context, HandlerError, Note, Outcome, Question};
use crate::db::subscriptions::{self, AsOf, Row, State};
use crate::db::{Conn, accounts, events};
use crate::ordering::{self, Order, Peer, Version};
use crate::stripe::{Event, IMPORTED, Kind, PricePlans, Subscription};
use crate::verify::Verified;

const BIRTH: &str = "customer.subscription.created";

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
fn shown_by(event: &Event, plans: &PricePlans) -> Result<Subscription, HandlerError> {
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
    let created = event.created.ok_or(HandlerError::NoCreated)?;
    let Some(row) = subscriptions::lock(conn, &shown.id).await? else {
        create(conn, account_id, shown, &as_of(event)).await?;
        return Ok(Outcome::Applied);
    };
    let newcomer = Version {
        created,
        is_final: Subscription::is_final(&shown.status),
        is_birth: event.kind == Kind::SubscriptionCreated,
    };
    let order = version(&row).map_or(Order::Newer, |stored| ordering::compare(stored, newcomer));
    if order == Order::Tie && was_imported_after(conn, &row, event).await? {
        return Ok(Outcome::Stale);
    }
    match (order, fetched) {
        (Order::Older, _) => Ok(Outcome::Stale),
        (Order::Newer, _) => write(conn, &row, shown, &as_of(event)).await,
        (Order::Tie, Some(question)) => {
            // Fetched while the row showed what it shows now, so at least as new.
            ctx.answers.exact(question)?;
            write(conn, &row, shown, &as_of(event)).await
        }
        (Order::Tie, None) => break_tie(conn, ctx, event, &row, shown, notes).await,
    }
}

/// Whether the row shows an imported state that Stripe gave after it had listed this event.
async fn was_imported_after(conn: &mut Conn, row: &Row, event: &Event) -> QueryResult<bool> {
    let (Some(id), Some(IMPORTED)) = (&row.as_of.last_event_id, row.as_of.last_event_type.as_deref()) else {
        return Ok(false);
    };
    let import = events::find(conn, id).await?;
    let import = import.and_then(|(_, payload)| Event::parse(&Verified::from_own_tables(payload)).ok());
    Ok(import.is_some_and(|import| import.covers(&event.id)))
}

/// Decides between two states of one second: by what Stripe says now, else by the events' previous values.
async fn break_tie(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    row: &Row,
    shown: &Subscription,
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let question = Question {
        event_id: event.id.clone(),
        subscription_id: shown.id.clone(),
        connect_account: event.connect_account.clone(),
        seen: row.as_of.last_event_id.clone(),
    };
    let now = match ctx.answers.exact(question)? {
        Some(object) => Some(Subscription::project(object, ctx.plans)?),
        None => None,
    };
    // An answer that is behind what is final already, or about another subscription, tells nothing.
    let is_usable = |now: &Subscription| {
        now.id == shown.id && (Subscription::is_final(&now.status) || !Subscription::is_final(&row.state.status))
    };
    match now.filter(is_usable) {
        Some(now) => take_stripes_word(conn, event, row, shown, &now).await,
        None => compare_previous_values(conn, ctx, event, row, notes).await,
    }
}

async fn take_stripes_word(
    conn: &mut Conn,
    event: &Event,
    row: &Row,
    shown: &Subscription,
    now: &Subscription,
) -> Result<Outcome, HandlerError> {
    if now != shown && state(conn, row.account_id, now).await? == row.state {
        return Ok(Outcome::Stale);
    }
    write_if_later_named(conn, row, now, &as_of(event)).await
}

async fn compare_previous_values(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    row: &Row,
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let created = event.created.ok_or(HandlerError::NoCreated)?;
    let mut known = Vec::new();
    for payload in events::of_one_second(conn, row.stripe_subscription_id.as_deref().unwrap_or(""), created).await? {
        known.extend(Event::parse(&Verified::from_own_tables(payload)).ok().filter(|known| known.id != event.id));
    }
    let stored = known.iter().position(|known| Some(&known.id) == row.as_of.last_event_id.as_ref());
    known.push(event.clone());
    let peers: Vec<_> =
        known.iter().map(|known| Peer { object: known.object(), previous: known.previous_attributes() }).collect();
    let verdict = ordering::newest_of(&peers, stored, known.len() - 1);
    let newest = &known[verdict.newest];
    if Some(verdict.newest) == stored {
        return Ok(Outcome::Stale);
    }
    let shown = shown_by(newest, ctx.plans)?;
    if !verdict.is_decided && state(conn, row.account_id, &shown).await? == row.state {
        return write_if_later_named(conn, row, &shown, &as_of(newest)).await;
    }
    if !verdict.is_decided {
        notes.push(Note::UndecidedTie { event_id: newest.id.clone(), subscription_id: shown.id.clone() });
    }
    write(conn, row, &shown, &as_of(newest)).await?;
    Ok(if newest.id == event.id { Outcome::Applied } else { Outcome::Stale })
}

/// Writes a state; where the row shows the very same already, the event with the greater id gives its name to it, so
/// that the row is the same for either order of arrival.
async fn write_if_later_named(
    conn: &mut Conn,
    row: &Row,
    shown: &Subscription,
    as_of: &AsOf,
) -> Result<Outcome, HandlerError> {
    if row.as_of.last_event_id < as_of.last_event_id || state(conn, row.account_id, shown).await? != row.state {
        write(conn, row, shown, as_of).await?;
    }
    Ok(Outcome::Applied)
}

async fn write(conn: &mut Conn, row: &Row, shown: &Subscription, as_of: &AsOf) -> Result<Outcome, HandlerError> {
    let state = state(conn, row.account_id, shown).await?;
    subscriptions::set_state(conn, row.id, &state, as_of).await?;
    Ok(Outcome::Applied)
}

/// The first row of a subscription: the account's local row, which it takes over, or a new one.
async fn create(conn: &mut Conn, account_id: Uuid, shown: &Subscription, as_of: &AsOf) -> Result<(), HandlerError> {
    // Two first events of two subscriptions must not take over the same local row.
    let account = accounts::lock(conn, account_id).await?.ok_or(HandlerError::Gone("the account"))?;
    let Some(local) = subscriptions::lock_local(conn, account_id).await? else {
        let state = columns(shown, account.local_plan);
        subscriptions::insert(conn, account_id, &shown.id, &state, as_of).await?;
        return Ok(());
    };
    if let Some(plan) = &local.state.plan {
        accounts::set_local_plan(conn, account_id, plan).await?;
    }
    let state = columns(shown, local.state.plan.or(account.local_plan));
    subscriptions::take_over(conn, local.id, &shown.id, &state, as_of).await?;
    Ok(())
}

/// The columns that show `shown`. The account is asked for its plan only where the price names none.
async fn state(conn: &mut Conn, account_id: Uuid, shown: &Subscription) -> QueryResult<State> {
    let local_plan = match shown.named_plan {
        Some(_) => None,
        None => accounts::find(conn, account_id).await?.and_then(|account| account.local_plan),
    };
    Ok(columns(shown, local_plan))
}

/// The columns that show a subscription object of Stripe's on a row of this account.
pub async fn columns_of(
    conn: &mut Conn,
    plans: &PricePlans,
    account_id: Uuid,
    object: &Value,
) -> Result<State, HandlerError> {
    let shown = Subscription::project(object, plans)?;
    Ok(state(conn, account_id, &shown).await?)
}

fn columns(shown: &Subscription, local_plan: Option<String>) -> State {
    State {
        plan: shown.named_plan.clone().or(local_plan).or_else(|| shown.price_id.clone()),
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
    }
}

fn as_of(event: &Event) -> AsOf {
    AsOf {
        last_event_id: Some(event.id.clone()),
        last_event_type: Some(event.event_type.clone()),
        last_event_created: event.created,
    }
}

/// `None` for a row that no event has written yet: whatever comes is newer.
fn version(row: &Row) -> Option<Version> {
    Some(Version {
        created: row.as_of.last_event_created?,
        is_final: Subscription::is_final(&row.state.status),
        is_birth: row.as_of.last_event_type.as_deref() == Some(BIRTH),
    })
}
