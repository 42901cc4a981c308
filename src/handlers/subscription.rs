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
            let known = of_its_second(conn, event, &shown.id).await?;
            write_tied(conn, ctx, &row, shown, event, &known).await
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
    let known = of_its_second(conn, event, &shown.id).await?;
    match now.filter(is_usable) {
        Some(now) => {
            let is_news = now == *shown || state(conn, row.account_id, &now).await? != row.state;
            write_tied(conn, ctx, row, &now, event, &known).await?;
            Ok(if is_news { Outcome::Applied } else { Outcome::Stale })
        }
        None => compare_previous_values(conn, ctx, event, row, &known, notes).await,
    }
}

/// The events of one second that show the subscription; `event` comes last, if it is one.
async fn of_its_second(conn: &mut Conn, event: &Event, subscription_id: &str) -> Result<Vec<Event>, HandlerError> {
    let created = event.created.ok_or(HandlerError::NoCreated)?;
    let mut known = Vec::new();
    for payload in events::of_one_second(conn, subscription_id, created).await? {
        known.extend(Event::parse(&Verified::from_own_tables(payload)).ok());
    }
    known.retain(|known| known.kind.shows_a_subscription() && known.id != event.id);
    known.extend(event.kind.shows_a_subscription().then(|| event.clone()));
    Ok(known)
}

async fn compare_previous_values(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    row: &Row,
    known: &[Event],
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let stored = known.iter().position(|known| Some(&known.id) == row.as_of.last_event_id.as_ref());
    let peers: Vec<_> =
        known.iter().map(|known| Peer { object: known.object(), previous: known.previous_attributes() }).collect();
    let verdict = ordering::newest_of(&peers, stored, known.len() - 1);
    let newest = &known[verdict.newest];
    let shown = shown_by(newest, ctx.plans)?;
    let is_shown = state(conn, row.account_id, &shown).await? == row.state;
    if Some(verdict.newest) == stored && !is_shown {
        // What the row shows was fetched, and is newer than what its event shows.
        return Ok(Outcome::Stale);
    }
    if !verdict.is_decided && !is_shown {
        notes.push(Note::UndecidedTie { event_id: newest.id.clone(), subscription_id: shown.id.clone() });
    }
    write_tied(conn, ctx, row, &shown, newest, known).await?;
    Ok(if newest.id == event.id { Outcome::Applied } else { Outcome::Stale })
}

/// Writes what won a tie. Of the second's events that show this very state, the one with the greatest id gives its
/// name to it, so that the row is the same for every order of arrival; `event` does where none shows it (yet).
async fn write_tied(
    conn: &mut Conn,
    ctx: Context<'_>,
    row: &Row,
    shown: &Subscription,
    event: &Event,
    known: &[Event],
) -> Result<Outcome, HandlerError> {
    // Nothing is named after its birth that another event shows, too: that one came later.
    let shows_it = |known: &&Event| {
        known.kind != Kind::SubscriptionCreated && shown_by(known, ctx.plans).is_ok_and(|other| other == *shown)
    };
    let named = known.iter().filter(shows_it).max_by_key(|known| &known.id);
    let is_shown = state(conn, row.account_id, shown).await? == row.state;
    let keeps_its_name = match named {
        Some(named) => row.as_of.last_event_id.as_ref() == Some(&named.id),
        None => row.as_of.last_event_id.as_ref() > Some(&event.id),
    };
    if !(is_shown && keeps_its_name) {
        write(conn, row, shown, &as_of(named.unwrap_or(event))).await?;
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
