//! A customer's active entitlements: the features that its subscriptions give it.

use super::account::link_second_customer;
use super::{Context, Handled, HandlerError, Note, Outcome, Question, Subject, Work};
use crate::db::Conn;
use crate::db::features::{self, AsOf};
use crate::db::parked::Awaited;
use crate::stripe::{Event, Feature};

/// Replaces the customer's features, unless those of a later event are there; parked while the customer is linked nowhere.
///
/// An event lists at most ten, and two of one second cannot be told apart: then the features are those that Stripe
/// lists now. Without a key the newcomer counts.
pub(super) async fn apply(
    conn: &mut Conn,
    work: &mut Work,
    ctx: Context<'_>,
    event: &Event,
) -> Result<Handled, HandlerError> {
    ctx.needs_own_transaction()?;
    let created = event.created.ok_or(HandlerError::NoCreated)?;
    let Some(customer) = event.customer_id.as_deref() else {
        return Ok(Handled::new(Outcome::Ignored, None));
    };
    let Some(account_id) = work.facts(event)?.linked_account() else {
        // Another transaction may link the customer before this one commits, and look for parked events too early.
        let releases = event.customer_ids.iter().cloned().map(Awaited::Customer).collect();
        return Ok(Handled { releases, ..Handled::new(Outcome::Parked, None) });
    };
    let mut handled = Handled::new(Outcome::Applied, Some(account_id));
    link_second_customer(conn, ctx, event, work.facts(event)?, &mut handled.notes).await?;
    let (shown, has_more) = Feature::of_summary(event.object());
    let as_of = AsOf { last_event_id: event.id.clone(), last_event_created: created };
    // The row is the lock: also for two first events at once.
    let is_first = features::insert_state(conn, customer, &as_of).await? == 1;
    let stored = if is_first { None } else { Some(features::lock_state(conn, customer).await?) };
    if stored.as_ref().is_some_and(|stored| stored.last_event_created > created) {
        return Ok(Handled { outcome: Outcome::Stale, ..handled });
    }
    let is_tie = stored.as_ref().is_some_and(|stored| stored.last_event_created == created);
    let mut now = None;
    if is_tie || has_more {
        let question = Question {
            event_id: event.id.clone(),
            subject: Subject::Features(customer.to_owned()),
            scope: event.scope(),
            known_events: stored.map(|stored| stored.last_event_id).into_iter().collect(),
        };
        now = ctx.answers.exact(question)?.and_then(|listed| listed.as_array()).map(|listed| Feature::of_list(listed));
    }
    if has_more && now.is_none() {
        handled.notes.push(Note::FeaturesIncomplete { event_id: event.id.clone(), customer_id: customer.to_owned() });
    }
    features::delete(conn, customer).await?;
    features::insert(conn, customer, &now.unwrap_or(shown)).await?;
    features::set_state(conn, customer, &as_of).await?;
    Ok(handled)
}
