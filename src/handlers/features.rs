//! A customer's active entitlements: the features that its subscriptions give it.

use super::{Context, HandlerError, Note, Outcome, Question, Subject};
use crate::db::Conn;
use crate::db::features::{self, AsOf};
use crate::stripe::{Event, Feature};

/// Replaces the customer's features, unless those of a later event are there. The customer is linked to an account.
///
/// An event lists at most ten, and two of one second cannot be told apart: then the features are those that Stripe
/// lists now. Without a key the newcomer counts.
pub(super) async fn apply(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let created = event.created.ok_or(HandlerError::NoCreated)?;
    let Some(customer) = event.customer_id.as_deref() else {
        return Ok(Outcome::Ignored);
    };
    let (shown, has_more) = Feature::of_summary(event.object());
    let as_of = AsOf { last_event_id: event.id.clone(), last_event_created: created };
    // The row is the lock: also for two first events at once.
    let is_first = features::insert_state(conn, customer, &as_of).await? == 1;
    let stored = if is_first { None } else { Some(features::lock_state(conn, customer).await?) };
    if stored.as_ref().is_some_and(|stored| stored.last_event_created > created) {
        return Ok(Outcome::Stale);
    }
    let is_tie = stored.as_ref().is_some_and(|stored| stored.last_event_created == created);
    let mut now = None;
    if is_tie || has_more {
        let question = Question {
            event_id: event.id.clone(),
            subject: Subject::Features(customer.to_owned()),
            connect_account: event.connect_account.clone(),
            seen: stored.map(|stored| stored.last_event_id),
        };
        now = ctx.answers.exact(question)?.and_then(|listed| listed.as_array()).map(|listed| Feature::of_list(listed));
    }
    if has_more && now.is_none() {
        notes.push(Note::FeaturesIncomplete { event_id: event.id.clone(), customer_id: customer.to_owned() });
    }
    features::delete(conn, customer).await?;
    features::insert(conn, customer, &now.unwrap_or(shown)).await?;
    features::set_state(conn, customer, &as_of).await?;
    Ok(Outcome::Applied)
}
