//! Which account an event belongs to, and linking customers to accounts.

use diesel::QueryResult;
use uuid::Uuid;

use super::{Concern, HandlerError, Note};
use crate::db::Conn;
use crate::db::accounts::{self, Place};
use crate::stripe::Event;

/// Settles the account: that of the subscription's row, else the customer's, else the one that the object names. A
/// checkout links its customer on the way. `None`: the event has to wait.
pub(super) async fn settle(
    conn: &mut Conn,
    event: &Event,
    concern: &Concern<'_>,
    place: &Place,
    notes: &mut Vec<Note>,
) -> Result<Option<Uuid>, HandlerError> {
    let account_id = place.by_subscription.or(place.by_customer).or(place.by_name);
    let Concern::Checkout(checkout) = concern else {
        return Ok(account_id);
    };
    // A customer that is linked stays with its account, whatever a later checkout names.
    if let (Some(customer), None, Some(named)) = (checkout.customer_id, place.by_customer, place.by_name) {
        link_customer(conn, named, customer).await?;
    }
    if let (Some(belongs_to), Some(names)) = (account_id, place.by_name)
        && belongs_to != names
    {
        notes.push(Note::AccountConflict { event_id: event.id.clone(), belongs_to, names });
    }
    Ok(account_id)
}

/// Links a customer, which must be linked to no account yet, as the account's first or as a further one.
///
/// # Errors
/// [`HandlerError::Gone`] where there is no such account.
pub async fn link_customer(conn: &mut Conn, account_id: Uuid, customer: &str) -> Result<(), HandlerError> {
    let account = accounts::lock(conn, account_id).await?.ok_or(HandlerError::Gone("the account"))?;
    let link: QueryResult<usize> = match account.stripe_customer_id {
        None => accounts::set_customer(conn, account_id, Some(customer)).await,
        Some(_) => accounts::insert_further_customer(conn, account_id, customer).await,
    };
    link?;
    Ok(())
}
