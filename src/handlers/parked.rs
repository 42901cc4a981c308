//! Parked events: found again, and applied in order, once what they wait for is there.

use std::collections::BTreeSet;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::AsyncConnection;
use uuid::Uuid;

use super::{Concern, Context, HandlerError, Note, Outcome, act, look_up, owner_locks, place};
use crate::db::{Conn, events, failures, locks};
use crate::stripe::signature::Verified;
use crate::stripe::{Checkout, Event};

/// What has become known, and for which events may be waiting.
#[derive(Clone, Debug, Default)]
pub struct Waiting {
    customers: BTreeSet<String>,
    subscriptions: BTreeSet<String>,
    accounts: BTreeSet<Uuid>,
    /// Those that failed of themselves in this transaction, and are not tried again in it.
    failed: BTreeSet<String>,
}

impl Waiting {
    /// For the customer and the subscription of an event.
    pub fn of(event: &Event) -> Self {
        Self {
            customers: event.customer_id.iter().cloned().collect(),
            subscriptions: event.subscription_id.iter().cloned().collect(),
            ..Self::default()
        }
    }

    /// For a customer that was linked.
    pub fn for_customer(customer_id: &str) -> Self {
        Self { customers: BTreeSet::from([customer_id.to_owned()]), ..Self::default() }
    }

    /// Also for an account that was created, by events that name it.
    pub fn and_account(mut self, account_id: Uuid) -> Self {
        self.accounts.insert(account_id);
        self
    }
}

/// Applies every parked event that waits for one of `waiting` and can be placed now, in this transaction.
///
/// One that fails of itself stays parked, and its failure is recorded: it must not stand in the way of the link.
///
/// # Errors
/// [`HandlerError`] where the transaction itself has failed, or Stripe has to be asked.
pub async fn wake(
    conn: &mut Conn,
    ctx: Context<'_>,
    waiting: &mut Waiting,
    notes: &mut Vec<Note>,
) -> Result<(), HandlerError> {
    // One that is applied may make another applicable: an invoice its subscription's row, a checkout's customer.
    loop {
        let mut is_progress = false;
        for (id, customer, subscription) in waiting_for(conn, waiting).await? {
            if waiting.failed.contains(&id) {
                continue;
            }
            // Before the row's own lock, as a delivery does. What the event names need not be locked: whoever makes
            // that account looks for the event afterwards.
            locks::hold(conn, &owner_locks(customer.as_deref(), subscription.as_deref())).await?;
            let Some(event) = parked_event(conn, &id).await? else {
                continue;
            };
            match conn.transaction(async |conn| apply_one(conn, ctx, &event).await).await {
                Ok((Outcome::Parked, _)) => {}
                Ok((outcome, more)) => {
                    is_progress = true;
                    notes.extend(more);
                    notes.push(Note::Woken { event_id: id, event_type: event.event_type.clone(), outcome });
                    waiting.subscriptions.extend(event.subscription_id.clone());
                    if Checkout::read(event.object()).is_some() {
                        // It linked its customer: begin anew, with what was before it.
                        waiting.customers.extend(event.customer_id.clone());
                        break;
                    }
                }
                Err(error) if is_of_the_transaction(&error) => return Err(error),
                Err(error) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    failures::insert(conn, &event, &error).await?;
                    notes.push(Note::WokenFailed { event_id: id.clone(), error });
                    waiting.failed.insert(id);
                }
            }
        }
        if !is_progress {
            return Ok(());
        }
    }
}

async fn waiting_for(conn: &mut Conn, waiting: &Waiting) -> Result<Vec<events::WaitingRow>, HandlerError> {
    let customers: Vec<_> = waiting.customers.iter().map(String::as_str).collect();
    let subscriptions: Vec<_> = waiting.subscriptions.iter().map(String::as_str).collect();
    let accounts: Vec<_> = waiting.accounts.iter().map(Uuid::to_string).collect();
    Ok(events::waiting_for(conn, &customers, &subscriptions, &accounts).await?)
}

/// The event, if it is still parked; locked.
async fn parked_event(conn: &mut Conn, id: &str) -> Result<Option<Event>, HandlerError> {
    let payload = events::lock_parked(conn, id).await?;
    Ok(payload.and_then(|payload| Event::parse(&Verified::from_own_tables(payload)).ok()))
}

async fn apply_one(conn: &mut Conn, ctx: Context<'_>, event: &Event) -> Result<(Outcome, Vec<Note>), HandlerError> {
    let mut notes = Vec::new();
    let Some(concern) = Concern::of(event) else {
        return Ok((Outcome::Parked, notes));
    };
    let place = look_up(conn, event).await?;
    let account_id = place::settle(conn, event, &concern, &place, &mut notes).await?;
    let outcome = act(conn, ctx, event, &concern, account_id, &mut notes).await?;
    if outcome != Outcome::Parked {
        events::set_outcome(conn, &event.id, outcome.as_str(), account_id).await?;
    }
    Ok((outcome, notes))
}

/// Whether a failure is none of the event's own: the transaction cannot go on, or has to be run again.
fn is_of_the_transaction(error: &HandlerError) -> bool {
    match error {
        HandlerError::NeedsStripe(_) => true,
        HandlerError::Database(DieselError::DatabaseError(kind, _)) => matches!(
            kind,
            DatabaseErrorKind::SerializationFailure
                | DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand
                | DatabaseErrorKind::ReadOnlyTransaction
                // Deadlocks, time limits, a full disk, a shutdown: nothing that is said of the event.
                | DatabaseErrorKind::Unknown
        ),
        HandlerError::Database(_) => true,
        HandlerError::Subscription(_) | HandlerError::NoCreated | HandlerError::Gone(_) => false,
    }
}
