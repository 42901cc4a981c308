//! Two states of one second: which of them a subscription's row shows, and the name of which event.

use diesel::QueryResult;
use serde_json::Value;

use super::subscription::{as_of, shown_by, state};
use super::{Context, HandlerError, Note, Outcome, Question};
use crate::db::subscriptions::{self, Row, State};
use crate::db::{Conn, events};
use crate::handlers::ordering::{self, Peer};
use crate::stripe::signature::Verified;
use crate::stripe::{Event, IMPORTED, Kind, Subscription};

/// Settles a tie between the row and a state that counts as of `event`. `fetched` is the question to which the state
/// is the answer, where it is not the event's own.
pub(super) async fn settle(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    row: &Row,
    shown: &Subscription,
    fetched: Option<Question>,
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    if was_imported_after(conn, row, event).await? {
        return Ok(Outcome::Stale);
    }
    let Some(question) = fetched else {
        return decide(conn, ctx, event, row, shown, notes).await;
    };
    // Fetched while the row showed what it shows now, so at least as new.
    ctx.answers.exact(question)?;
    let known = of_its_second(conn, event, &shown.id).await?;
    let state = state(conn, row.account_id, shown).await?;
    write(conn, ctx, row, shown, &state, event, &known).await?;
    Ok(Outcome::Applied)
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
async fn decide(
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
        scope: event.scope(),
        seen: row.as_of.last_event_id.clone(),
    };
    let now = match ctx.answers.exact(question)? {
        Some(object) => Some(Subscription::project(&object.into(), ctx.plans)?),
        None => None,
    };
    // An answer that is behind what is final already, or about another subscription, tells nothing.
    let is_usable = |now: &Subscription| {
        now.id == shown.id && (Subscription::is_final(&now.status) || !Subscription::is_final(&row.state.status))
    };
    let known = of_its_second(conn, event, &shown.id).await?;
    match now.filter(is_usable) {
        Some(now) => {
            let state = state(conn, row.account_id, &now).await?;
            let is_news = now == *shown || state != row.state;
            write(conn, ctx, row, &now, &state, event, &known).await?;
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
    let data: Vec<Value> = known.iter().map(Event::data).collect();
    let peers = data.iter().map(|data| Peer { object: &data["object"], previous: data.get("previous_attributes") });
    let peers: Vec<_> = peers.collect();
    let verdict = ordering::newest_of(&peers, stored, known.len() - 1);
    let newest = &known[verdict.newest];
    let shown = shown_by(newest, ctx.plans)?;
    let state = state(conn, row.account_id, &shown).await?;
    let is_shown = state == row.state;
    if Some(verdict.newest) == stored && !is_shown {
        // What the row shows was fetched, and is newer than what its event shows.
        return Ok(Outcome::Stale);
    }
    if !verdict.is_decided && !is_shown {
        notes.push(Note::UndecidedTie { event_id: newest.id.clone(), subscription_id: shown.id.clone() });
    }
    write(conn, ctx, row, &shown, &state, newest, known).await?;
    Ok(if newest.id == event.id { Outcome::Applied } else { Outcome::Stale })
}

/// Writes what won: `shown`, whose columns are `state`. Of the second's events that show this very state, the one with the greatest id gives its
/// name to it, so that the row is the same for every order of arrival; `event` does where none shows it (yet).
async fn write(
    conn: &mut Conn,
    ctx: Context<'_>,
    row: &Row,
    shown: &Subscription,
    state: &State,
    event: &Event,
    known: &[Event],
) -> QueryResult<()> {
    // Nothing is named after its birth that another event shows, too: that one came later.
    let shows_it = |known: &&Event| {
        known.kind != Kind::SubscriptionCreated && shown_by(known, ctx.plans).is_ok_and(|other| other == *shown)
    };
    let named = known.iter().filter(shows_it).max_by_key(|known| &known.id);
    let keeps_its_name = match named {
        Some(named) => row.as_of.last_event_id.as_ref() == Some(&named.id),
        None => row.as_of.last_event_id.as_ref() > Some(&event.id),
    };
    if *state != row.state || !keeps_its_name {
        subscriptions::set_state(conn, row.id, state, &as_of(named.unwrap_or(event))).await?;
    }
    Ok(())
}
