//! A completed checkout: its customer is linked, and its subscription fetched and projected.

use uuid::Uuid;

use super::account::{Place, link_customer};
use super::subscription::Shown;
use super::{
    Context, Handled, HandlerError, Note, Outcome, Question, Subject, Work, move_misplaced, subscription, tie_break,
};
use crate::db::Conn;
use crate::db::parked::Awaited;
use crate::stripe::{Checkout, Event, Subscription};

/// Links the customer and projects the subscription as Stripe has it now. Without a key, or if Stripe has none, the
/// subscription's own events bring the state. Applied in any case once the account is found.
pub(super) async fn apply(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
    checkout: &Checkout<'_>,
) -> Result<Handled, HandlerError> {
    ctx.needs_own_transaction()?;
    event.created.ok_or(HandlerError::NoCreated)?;
    let mut notes = Vec::new();
    let link = link(conn, work, ctx, event).await?;
    let place = Place::of(conn, work, ctx, event, &mut notes).await?;
    let Some(place) = place else {
        let releases = ctx.policy.awaited_placement(event);
        return Ok(Handled { notes, releases, ..Handled::new(Outcome::Parked, None) });
    };
    let account_id = place.account_id;
    let named = work.facts(event)?.account_by_name;
    if let Some(names) = named.filter(|names| *names != account_id) {
        notes.push(Note::AccountConflict { event_id: event.id.clone(), belongs_to: account_id, names });
    }
    let mut handled = Handled { notes, ..Handled::new(Outcome::Applied, Some(account_id)) };
    if let Some(linked) = link {
        handled.releases.push(Awaited::Account(linked));
    }
    if let Some(subscription_id) = checkout.subscription_id {
        let is_by_name = link.is_none() && place.is_by_name;
        project(conn, work, ctx, event, subscription_id, Place { account_id, is_by_name }, &mut handled).await?;
    }
    place.keep(work, event);
    Ok(handled)
}

/// Links the checkout's customer to the account that the checkout names. A customer that is linked stays with its account.
async fn link(conn: &mut Conn, work: &mut Work, ctx: Context<'_>, event: &Event) -> Result<Option<Uuid>, HandlerError> {
    let facts = work.facts(event)?;
    let (None, Some(named)) = (facts.linked_account(), facts.account_by_name) else {
        return Ok(None);
    };
    if event.customer_ids.is_empty() {
        return Ok(None);
    }
    for customer in &event.customer_ids {
        link_customer(conn, named, customer).await?;
    }
    move_misplaced(conn, work, &ctx.policy.entitlement, named).await?;
    Ok(Some(named))
}

async fn project(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
    subscription_id: &str,
    place: Place,
    handled: &mut Handled,
) -> Result<(), HandlerError> {
    let known = tie_break::events_of_second(conn, event, subscription_id).await?;
    let question = Question {
        event_id: event.id.clone(),
        subject: Subject::Subscription(subscription_id.to_owned()),
        scope: event.scope(),
        known_events: tie_break::known_ids(&known, event, work.row(subscription_id)),
    };
    let Some(object) = ctx.answers.any(question)? else {
        return Ok(());
    };
    let shown = Subscription::project(&object.into(), &ctx.policy.plans)?;
    // Checked against the id that was asked for: the answer must not write another subscription's row.
    if shown.id == subscription_id {
        let shown = Shown { state: &shown, is_fetched: true };
        subscription::store(conn, work, ctx, event, place, shown, handled).await?;
    }
    Ok(())
}
