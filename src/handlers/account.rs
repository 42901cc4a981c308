//! Which account an event belongs to, linking customers to accounts, and moving what a link shows to be misplaced.

use uuid::Uuid;

use super::local_row::Candidate;
use super::projection::with_local_plan;
use super::{Context, HandlerError, Note, Work, local_row};
use crate::db::entitlements::Settings;
use crate::db::facts::Facts;
use crate::db::subscriptions::Row;
use crate::db::{Conn, accounts, subscriptions};
use crate::stripe::Event;

/// The account of an event: that of the subscription's row, else the one to which its customer is linked, else the one
/// that its object names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) account_id: Uuid,
    /// Whether only the object's metadata says so.
    pub(super) is_by_name: bool,
}

impl Place {
    /// `None`: the event has to wait. A row that was placed by its metadata alone is moved to its customer's account on
    /// the way.
    pub(super) async fn of(
        conn: &mut Conn,
        work: &mut Work,
        ctx: Context<'_>,
        event: &Event,
        notes: &mut Vec<Note>,
    ) -> Result<Option<Self>, HandlerError> {
        let facts = work.facts(event)?;
        let (linked, named) = (facts.linked_account(), facts.account_by_name);
        link_second_customer(conn, ctx, event, facts, notes).await?;
        let row = event.subscription_id.as_deref().and_then(|id| work.row(id)).cloned();
        match (row, linked) {
            (Some(row), Some(linked)) if row.placed_by_metadata && row.account_id != linked => {
                ctx.needs_own_transaction()?;
                move_row(conn, work, &ctx.policy.entitlement, row, linked).await?;
                Ok(Some(Self { account_id: linked, is_by_name: false }))
            }
            (Some(row), linked) => {
                let is_by_name = row.placed_by_metadata && linked.is_none();
                Ok(Some(Self { account_id: row.account_id, is_by_name }))
            }
            (None, Some(linked)) => Ok(Some(Self { account_id: linked, is_by_name: false })),
            (None, None) => Ok(named.map(|account_id| Self { account_id, is_by_name: true })),
        }
    }

    /// A row that was placed by its metadata stays from now on, whatever becomes of the link, if the link says the same.
    /// For an event that is applied: a batch that leaves the event out must not write this.
    pub(super) fn keep(self, work: &mut Work, event: &Event) {
        let row = event.subscription_id.as_deref().and_then(|id| work.row(id));
        if let Some(row) = row.filter(|row| row.placed_by_metadata && !self.is_by_name) {
            work.put(Row { placed_by_metadata: false, ..row.clone() }, None);
        }
    }
}

/// An event that carries a `cus_…` and an `acct_…` of one customer links the one that is not linked yet to the account of
/// the other. Both may be linked to different accounts, which is noted.
pub(super) async fn link_second_customer(
    conn: &mut Conn,
    ctx: Context<'_>,
    event: &Event,
    facts: &Facts,
    notes: &mut Vec<Note>,
) -> Result<(), HandlerError> {
    let [first, second] = event.customer_ids.as_slice() else {
        return Ok(());
    };
    let (account_id, unlinked) = match (facts.account_of_customer, facts.account_of_customer_account) {
        (Some(account_id), None) => (account_id, second),
        (None, Some(account_id)) => (account_id, first),
        (Some(one), Some(other)) if one != other => {
            notes.push(Note::CustomerConflict {
                event_id: event.id.clone(),
                account_of_customer: one,
                account_of_customer_account: other,
            });
            return Ok(());
        }
        _ => return Ok(()),
    };
    ctx.needs_own_transaction()?;
    link_customer(conn, account_id, unlinked).await
}

/// Links a customer as the account's first or as a further one, unless it is linked to this account already.
///
/// # Errors
/// [`HandlerError::Gone`] if there is no such account; a violated constraint if the customer belongs to another one.
pub async fn link_customer(conn: &mut Conn, account_id: Uuid, customer: &str) -> Result<(), HandlerError> {
    let account = accounts::lock(conn, account_id).await?.ok_or(HandlerError::Gone("the account"))?;
    // Asked under the account's lock: another transaction may have linked it meanwhile.
    if accounts::of_customer(conn, customer).await? == Some(account_id) {
        return Ok(());
    }
    match account.stripe_customer_id {
        None => accounts::set_customer(conn, account_id, Some(customer)).await?,
        Some(_) => accounts::insert_further_customer(conn, account_id, customer).await?,
    };
    Ok(())
}

/// Moves the rows that stand in other accounts by their metadata alone to the account to which their customers are linked.
/// Those that stand in this account by their metadata stay from now on, whatever becomes of the link.
///
/// # Errors
/// [`HandlerError::Database`]
pub async fn move_misplaced(
    conn: &mut Conn,
    work: &mut Work,
    settings: &Settings,
    account_id: Uuid,
) -> Result<(), HandlerError> {
    let mut rows = subscriptions::lock_placed_by_metadata(conn, account_id).await?;
    // Rows keep their cus_… alone.
    if accounts::customers(conn, account_id).await?.iter().any(|customer| customer.starts_with("acct_")) {
        rows.extend(subscriptions::lock_placed_by_metadata_of_customer_account(conn, account_id).await?);
    }
    for row in rows {
        work.adopt(row.clone());
        // One that was moved before may have changed this one.
        let mut row = row.stripe_subscription_id.as_deref().and_then(|id| work.row(id)).cloned().unwrap_or(row);
        if row.account_id == account_id {
            row.placed_by_metadata = false;
            work.put(row, None);
        } else {
            move_row(conn, work, settings, row, account_id).await?;
        }
    }
    Ok(())
}

/// Moves a row, which may take over a local row of its new account.
async fn move_row(
    conn: &mut Conn,
    work: &mut Work,
    settings: &Settings,
    mut row: Row,
    account_id: Uuid,
) -> Result<(), HandlerError> {
    // Locked, since a transaction that takes over a local row of this account does not see this row in it yet.
    let account = accounts::lock(conn, account_id).await?.ok_or(HandlerError::Gone("the account"))?;
    row.account_id = account_id;
    row.placed_by_metadata = false;
    row.state = with_local_plan(row.state, account.local_plan.as_deref());
    work.put(row.clone(), None);
    match Candidate::of_row(&row).filter(|candidate| candidate.entitles(settings) && !row.took_local_row) {
        Some(candidate) => local_row::take_over(conn, work, settings, account_id, candidate, None).await,
        None => Ok(()),
    }
}
