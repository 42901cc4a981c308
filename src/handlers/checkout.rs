//! A completed checkout: its customer is linked (see `place`), and its subscription fetched and projected.

use uuid::Uuid;

use super::{Context, HandlerError, Note, Outcome, Question, subscription};
use crate::db::{Conn, subscriptions};
use crate::stripe::{Checkout, Event, Subscription};

/// Projects the subscription as Stripe has it now. Without a key, or where Stripe has none, the subscription's own
/// events bring the state. Applied in any case: the account was found.
pub(super) async fn apply(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    checkout: &Checkout<'_>,
    account_id: Uuid,
    notes: &mut Vec<Note>,
) -> Result<Outcome, HandlerError> {
    let Some(subscription_id) = checkout.subscription_id else {
        return Ok(Outcome::Applied);
    };
    let row = subscriptions::lock(conn, subscription_id).await?;
    let question = Question {
        event_id: event.id.clone(),
        subscription_id: subscription_id.to_owned(),
        scope: event.scope(),
        seen: row.and_then(|row| row.as_of.last_event_id),
    };
    if let Some(object) = ctx.answers.any(question.clone())? {
        let shown = Subscription::project(&object.into(), ctx.plans)?;
        // Checked against the id that was asked for: the answer must not write another subscription's row.
        if shown.id == subscription_id {
            subscription::store(conn, ctx, event, account_id, &shown, Some(question), notes).await?;
        }
    }
    Ok(Outcome::Applied)
}
