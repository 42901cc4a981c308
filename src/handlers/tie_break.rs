//! Two states of one second: which of them a subscription's row shows, and the name of which event.

use diesel::QueryResult;
use serde_json::Value;

use super::subscription::{Shown, as_of, shown_by, state};
use super::{Context, HandlerError, Note, Outcome, Question, Subject, Work};
use crate::db::subscriptions::{Row, State};
use crate::db::{Conn, events};
use crate::handlers::ordering::{self, Peer};
use crate::stripe::redact::comparable;
use crate::stripe::signature::Verified;
use crate::stripe::{Event, IMPORTED, Kind, Subscription};

/// Settles a tie between the row and a state that counts as of `event`.
pub(super) async fn settle(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
    row: &Row,
    shown: Shown<'_>,
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let Shown { state: shown, is_fetched } = shown;
    if was_imported_after(conn, row, event).await? {
        return Ok(Outcome::Stale);
    }
    let known = events_of_second(conn, event, &shown.id).await?;
    let question = Question {
        event_id: event.id.clone(),
        subject: Subject::Subscription(shown.id.clone()),
        scope: event.scope(),
        known_events: known_ids(&known, event, Some(row)),
    };
    // An answer that is behind what is final already, or about another subscription, tells nothing.
    let is_usable = |now: &Subscription| {
        now.id == shown.id && (Subscription::is_final(&now.status) || !Subscription::is_final(&row.state.status))
    };
    let now = match ctx.answers.exact(question)? {
        Some(object) => Some(Subscription::project(&object.into(), &ctx.policy.plans)?).filter(is_usable),
        None => None,
    };
    match now {
        Some(now) => {
            let state = state(conn, work, ctx, event, row.account_id, &now).await?;
            let is_news = is_fetched || now == *shown || state != row.state;
            write(work, ctx, row, &now, state, event, &known)?;
            Ok(if is_news { Outcome::Applied } else { Outcome::Stale })
        }
        None => compare_previous_values(conn, work, ctx, event, row, &known, notes).await,
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

/// The events of one second that show the subscription; `event` comes last, if it is one.
pub(super) async fn events_of_second(
    conn: &mut Conn,
    event: &Event,
    subscription_id: &str,
) -> Result<Vec<Event>, HandlerError> {
    let created = event.created.ok_or(HandlerError::NoCreated)?;
    let mut known = Vec::new();
    for payload in events::of_one_second(conn, subscription_id, created).await? {
        known.extend(Event::parse(&Verified::from_own_tables(payload)).ok());
    }
    known.retain(|known| known.kind.shows_a_subscription() && known.id != event.id);
    known.extend(event.kind.shows_a_subscription().then(|| event.clone()));
    Ok(known)
}

/// What was known when a question came up: the other events of the second, and the event that the row shows.
pub(super) fn known_ids(known: &[Event], event: &Event, row: Option<&Row>) -> Vec<String> {
    let others = known.iter().map(|known| &known.id).filter(|id| **id != event.id);
    let shown = row.and_then(|row| row.as_of.last_event_id.as_ref());
    let mut ids: Vec<_> = others.chain(shown).cloned().collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

async fn compare_previous_values(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
    row: &Row,
    known: &[Event],
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let Some(newcomer) = known.len().checked_sub(1) else {
        return Ok(Outcome::Stale);
    };
    let stored = known.iter().position(|known| Some(&known.id) == row.as_of.last_event_id.as_ref());
    let data: Vec<Value> = known.iter().map(|known| comparable(known.data())).collect();
    let peers = data.iter().map(|data| Peer { object: &data["object"], previous: data.get("previous_attributes") });
    let peers: Vec<_> = peers.collect();
    let verdict = ordering::newest_of(&peers, stored, newcomer);
    let newest = &known[verdict.newest];
    let shown = shown_by(newest, &ctx.policy.plans)?;
    let state = state(conn, work, ctx, event, row.account_id, &shown).await?;
    let is_shown = state == row.state;
    let shows_event = newest.id == event.id || shown_by(event, &ctx.policy.plans).is_ok_and(|own| own == shown);
    if Some(verdict.newest) == stored && !is_shown {
        // What the row shows was fetched, and is newer than what its event shows.
        return Ok(Outcome::Stale);
    }
    if !verdict.is_decided && !is_shown {
        notes.push(Note::UndecidedTie { event_id: newest.id.clone(), subscription_id: shown.id.clone() });
    }
    write(work, ctx, row, &shown, state, newest, known)?;
    Ok(if shows_event { Outcome::Applied } else { Outcome::Stale })
}

/// Writes the state that won: `shown`, whose columns are `state`. Of the second's events that show this very state, the
/// one with the greatest id gives its name to it, so that the row is the same for every order of arrival; `event` does if
/// none shows it (yet).
fn write(
    work: &mut Work,
    ctx: Context<'_>,
    row: &Row,
    shown: &Subscription,
    state: State,
    event: &Event,
    known: &[Event],
) -> Result<(), HandlerError> {
    // Nothing is named after its birth that another event shows, too: that one came later.
    let shows_it = |known: &&Event| {
        known.kind != Kind::SubscriptionCreated && shown_by(known, &ctx.policy.plans).is_ok_and(|other| other == *shown)
    };
    let named = known.iter().filter(shows_it).max_by_key(|known| &known.id);
    let keeps_its_name = match named {
        Some(named) => row.as_of.last_event_id.as_ref() == Some(&named.id),
        None => row.as_of.last_event_id.as_ref() > Some(&event.id),
    };
    if state != row.state || !keeps_its_name {
        let named = named.unwrap_or(event);
        let now = known.iter().chain([event]).find_map(|event| Some(work.facts(event).ok()?.now));
        let updated_at = now.unwrap_or(row.updated_at);
        work.put(row.showing(state, as_of(named), updated_at), Some(&event.id));
    }
    Ok(())
}
