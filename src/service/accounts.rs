//! Accounts: creating and changing them, and linking customers. A link commits by itself; what was parked for it is applied
//! afterwards.

use std::time::Duration;

use diesel_async::AsyncConnection;
use uuid::Uuid;

use super::Service;
use super::error::{AttemptError, Class, ServiceError};
use crate::db::entitlements::Settings;
use crate::db::parked::Awaited;
use crate::db::{Conn, accounts, parked};
use crate::handlers::work::is_violation_of;
use crate::handlers::{HandlerError, Work, WriteError, link_customer, move_misplaced};

/// How long the answer to a link waits for the events that were parked for it.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);

/// How often a transaction is run again that lost against another, or whose connection was lost.
const MAX_RETRIES: u32 = 6;

/// A customer id that was given.
pub type Customer = String;

/// An account to create.
#[derive(Clone, Debug)]
pub struct NewAccount {
    /// Its id. Drawn before the transaction, so that one that is run again makes the same account.
    pub id: Uuid,
    /// What people call it.
    pub name: String,
    /// A customer to link.
    pub customer: Option<Customer>,
}

/// What to change about an account; `None` leaves as it is.
#[derive(Clone, Debug)]
pub struct AccountChange {
    /// The account.
    pub id: Uuid,
    /// A new name.
    pub name: Option<String>,
    /// A customer to link; the former one stays linked, as a further one.
    pub customer: Option<Customer>,
}

/// What creating or changing an account came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linked {
    /// Done; the account's id.
    Done(Uuid),
    /// There is no such account.
    NotFound,
    /// An account with this id exists already.
    IdTaken,
    /// The customer belongs to another account.
    CustomerTaken,
}

/// A change of accounts in one transaction.
pub(super) trait Change: Send + Sync {
    /// What it comes to.
    type Output: Send;

    /// Changes rows. It does not commit, and what it says is an [`End::Rollback`] is rolled back. `is_retry`: an earlier
    /// run may have committed, its answer being lost.
    fn run(
        &self,
        conn: &mut Conn,
        work: &mut Work,
        settings: &Settings,
        is_retry: bool,
    ) -> impl Future<Output = Result<End<Self::Output>, HandlerError>> + Send;

    /// What a violated constraint says: the application may have taken an id or a customer, by SQL, after we had looked.
    fn refused(error: &diesel::result::Error) -> Option<Self::Output>;
}

/// How a change ends.
pub(super) enum End<T> {
    /// Something was changed.
    Commit(T),
    /// Nothing is to be changed.
    Rollback(T),
}

impl Change for NewAccount {
    type Output = Linked;

    async fn run(
        &self,
        conn: &mut Conn,
        work: &mut Work,
        settings: &Settings,
        is_retry: bool,
    ) -> Result<End<Linked>, HandlerError> {
        if let Some(found) = accounts::find(conn, self.id).await? {
            let is_ours = is_retry && found.name == self.name && found.stripe_customer_id == self.customer;
            return Ok(End::Rollback(if is_ours { Linked::Done(self.id) } else { Linked::IdTaken }));
        }
        accounts::insert(conn, self.id, &self.name).await?;
        if let Some(customer) = &self.customer {
            if accounts::of_customer(conn, customer).await?.is_some() {
                return Ok(End::Rollback(Linked::CustomerTaken));
            }
            link_customer(conn, self.id, customer).await?;
            move_misplaced(conn, work, settings, self.id).await?;
        }
        Ok(End::Commit(Linked::Done(self.id)))
    }

    fn refused(error: &diesel::result::Error) -> Option<Linked> {
        refused(error)
    }
}

impl Change for AccountChange {
    type Output = Linked;

    async fn run(
        &self,
        conn: &mut Conn,
        work: &mut Work,
        settings: &Settings,
        _: bool,
    ) -> Result<End<Linked>, HandlerError> {
        let Some(account) = accounts::lock(conn, self.id).await? else {
            return Ok(End::Rollback(Linked::NotFound));
        };
        if let Some(name) = &self.name {
            accounts::set_name(conn, self.id, name).await?;
        }
        if let Some(customer) = &self.customer {
            match accounts::of_customer(conn, customer).await? {
                Some(owner) if owner != self.id => return Ok(End::Rollback(Linked::CustomerTaken)),
                _ => make_first(conn, &account, customer).await?,
            }
            move_misplaced(conn, work, settings, self.id).await?;
        }
        Ok(End::Commit(Linked::Done(self.id)))
    }

    fn refused(error: &diesel::result::Error) -> Option<Linked> {
        refused(error)
    }
}

/// Makes `customer` the one that stands in the account, and the former one a further one.
async fn make_first(conn: &mut Conn, account: &accounts::Row, customer: &str) -> Result<(), HandlerError> {
    if account.stripe_customer_id.as_deref() == Some(customer) {
        return Ok(());
    }
    accounts::delete_further_customer(conn, customer).await?;
    accounts::set_customer(conn, account.id, Some(customer)).await?;
    if let Some(former) = &account.stripe_customer_id {
        accounts::insert_further_customer(conn, account.id, former).await?;
    }
    Ok(())
}

fn refused(error: &diesel::result::Error) -> Option<Linked> {
    if is_violation_of(error, "accounts_pkey") {
        return Some(Linked::IdTaken);
    }
    ["customer_links_pkey", "accounts_stripe_customer_id_key", "account_customers_pkey"]
        .iter()
        .any(|constraint| is_violation_of(error, constraint))
        .then_some(Linked::CustomerTaken)
}

impl Service {
    /// Creates an account, and applies what was parked for it. That goes on after 10 s, but is not waited for longer.
    ///
    /// # Errors
    /// [`ServiceError`]: nothing was committed.
    pub async fn create_account(&self, account: NewAccount) -> Result<Linked, ServiceError> {
        self.link(account).await
    }

    /// Changes an account, and applies what was parked for the customer that was linked. That goes on after 10 s, but is
    /// not waited for longer.
    ///
    /// # Errors
    /// [`ServiceError`]: nothing was committed.
    pub async fn change_account(&self, change: AccountChange) -> Result<Linked, ServiceError> {
        self.link(change).await
    }

    async fn link<C>(&self, change: C) -> Result<Linked, ServiceError>
    where
        C: Change<Output = Linked> + 'static,
    {
        let linked = self.change(change).await?;
        if let Linked::Done(account_id) = linked {
            let service = self.clone();
            let release = async move { service.release_all([Awaited::Account(account_id)], true).await };
            match tokio::time::timeout(RELEASE_PATIENCE, self.parts().runtime.spawn(release)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::error!("applying what is parked for account {account_id} panicked: {error}"),
                Err(_) => log::info!("events parked for account {account_id} are still being applied"),
            }
        }
        Ok(linked)
    }

    /// Runs a change in a transaction until it commits, or fails of itself.
    pub(super) async fn change<C: Change + 'static>(&self, change: C) -> Result<C::Output, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let mut retries = 0;
            loop {
                let attempt = service.within(super::ATTEMPT_LIMIT, service.try_change(&change, retries > 0));
                let error = match attempt.await {
                    Ok(output) => return Ok(output),
                    Err(error) => error,
                };
                if retries == MAX_RETRIES || !matches!(error.class(), Class::Conflict | Class::Connection) {
                    return Err(error.into());
                }
                retries += 1;
                tokio::time::sleep(super::apply::jitter(retries)).await;
            }
        })
        .await
    }

    async fn try_change<C: Change>(&self, change: &C, is_retry: bool) -> Result<C::Output, AttemptError> {
        let mut conn = self.connection().await?;
        conn.first_error().take();
        let settings = &self.parts().policy.entitlement;
        let mut rolled_back = None;
        let session: &mut Conn = &mut conn;
        let result = session
            .transaction(async |conn| {
                let mut work = Work::default();
                match change.run(conn, &mut work, settings, is_retry).await? {
                    End::Commit(output) => {
                        if !work.is_empty() {
                            work.write(conn).await.map_err(written)?;
                        }
                        Ok(output)
                    }
                    End::Rollback(output) => {
                        rolled_back = Some(output);
                        Err(HandlerError::Database(diesel::result::Error::RollbackTransaction))
                    }
                }
            })
            .await;
        let error = match (result, rolled_back) {
            (Ok(output), _) | (_, Some(output)) => return Ok(output),
            (Err(HandlerError::Database(error)), None) => error,
            (Err(error), None) => return Err(AttemptError::Handler(error)),
        };
        if let Some(output) = C::refused(&error) {
            return Ok(output);
        }
        let error = AttemptError::of(error, conn.first_error().take());
        if error.class() == Class::Connection {
            conn.retire_all();
        }
        Err(error)
    }

    /// How many parked events wait for an account's customers.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn parked_for_account(&self, account_id: Uuid) -> Result<i64, ServiceError> {
        let service = self.clone();
        self.read(super::READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(parked::count_of_account(&mut conn, account_id).await?)
        })
        .await
    }
}

/// A failed [`Work::write`] of rows alone.
fn written(error: WriteError) -> HandlerError {
    match error {
        WriteError::Database(error) => HandlerError::Database(error),
        WriteError::AlreadyRecorded => HandlerError::Gone("an event"),
    }
}

/// A customer to unlink from an account. What the customer's events did stays: its subscriptions remain with the account
/// and follow their events; events of further subscriptions are parked until the customer is linked again.
#[derive(Clone, Debug)]
pub struct Unlinking {
    /// The account.
    pub id: Uuid,
    /// A new name for the account.
    pub name: Option<String>,
    /// The customer; `None` for the one that stands in the account itself, if there is one.
    pub customer: Option<Customer>,
}

/// The result of unlinking a customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlinked {
    /// The customer is not linked to the account any more.
    Done,
    /// There is no such account.
    NotFound,
    /// The customer was not linked to the account.
    NotLinked,
}

impl Change for Unlinking {
    type Output = Unlinked;

    async fn run(
        &self,
        conn: &mut Conn,
        _: &mut Work,
        _: &Settings,
        is_retry: bool,
    ) -> Result<End<Unlinked>, HandlerError> {
        let Some(account) = accounts::lock(conn, self.id).await? else {
            return Ok(End::Rollback(Unlinked::NotFound));
        };
        let own = account.stripe_customer_id.as_deref();
        if let Some(customer) = self.customer.as_deref() {
            if accounts::of_customer(conn, customer).await? != Some(self.id) {
                // An earlier run may have unlinked it, its answer being lost.
                return Ok(End::Rollback(if is_retry { Unlinked::Done } else { Unlinked::NotLinked }));
            }
            accounts::delete_further_customer(conn, customer).await?;
        }
        if self.customer.is_none() || self.customer.as_deref() == own {
            accounts::set_customer(conn, self.id, None).await?;
        }
        if let Some(name) = &self.name {
            accounts::set_name(conn, self.id, name).await?;
        }
        Ok(End::Commit(Unlinked::Done))
    }

    fn refused(_: &diesel::result::Error) -> Option<Unlinked> {
        None
    }
}

impl Service {
    /// Unlinks a customer from an account.
    ///
    /// # Errors
    /// [`ServiceError`]: nothing was committed.
    pub async fn unlink_customer(&self, unlinking: Unlinking) -> Result<Unlinked, ServiceError> {
        self.change(unlinking).await
    }
}
