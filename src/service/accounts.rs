//! Accounts: creating and changing them, and linking customers, which applies what was parked for them.

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use uuid::Uuid;

use super::transaction::{AttemptError, Work, WorkError};
use super::{Service, ServiceError};
use crate::db::{Conn, accounts, locks};
use crate::handlers::{self, Context, HandlerError, Note, Waiting};

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

impl Work for NewAccount {
    type Output = (Linked, Vec<Note>);

    async fn run(&self, conn: &mut Conn, ctx: Context<'_>) -> Result<Self::Output, WorkError<Self::Output>> {
        let id = self.id;
        hold(conn, id, self.customer.as_deref()).await?;
        if accounts::find(conn, id).await?.is_some() {
            return refuse(Linked::IdTaken);
        }
        accounts::insert(conn, id, &self.name).await?;
        let mut waiting = Waiting::default();
        if let Some(customer) = &self.customer {
            if owner(conn, customer).await?.is_some() {
                return refuse(Linked::CustomerTaken);
            }
            handlers::link_customer(conn, id, customer).await?;
            waiting = Waiting::for_customer(customer);
        }
        let mut notes = Vec::new();
        handlers::wake(conn, ctx, &mut waiting.and_account(id), &mut notes).await?;
        Ok((Linked::Done(id), notes))
    }
}

impl Work for AccountChange {
    type Output = (Linked, Vec<Note>);

    async fn run(&self, conn: &mut Conn, ctx: Context<'_>) -> Result<Self::Output, WorkError<Self::Output>> {
        hold(conn, self.id, self.customer.as_deref()).await?;
        let Some(account) = accounts::lock(conn, self.id).await? else {
            return refuse(Linked::NotFound);
        };
        if let Some(name) = &self.name {
            accounts::set_name(conn, self.id, name).await?;
        }
        let mut notes = Vec::new();
        if let Some(customer) = &self.customer {
            match owner(conn, customer).await? {
                Some(owner) if owner != self.id => return refuse(Linked::CustomerTaken),
                _ => make_first(conn, &account, customer).await?,
            }
            handlers::wake(conn, ctx, &mut Waiting::for_customer(customer), &mut notes).await?;
        }
        Ok((Linked::Done(self.id), notes))
    }
}

fn refuse<T>(linked: Linked) -> Result<T, WorkError<(Linked, Vec<Note>)>> {
    Err(WorkError::Done((linked, Vec::new())))
}

/// Waits for events that name the same; those that come later see the link.
async fn hold(conn: &mut Conn, account_id: Uuid, customer: Option<&str>) -> Result<(), HandlerError> {
    let account = handlers::account_lock(account_id);
    let customer = customer.map(handlers::customer_lock);
    let names: Vec<_> = [Some(account), customer].into_iter().flatten().collect();
    Ok(locks::hold(conn, &names).await?)
}

async fn owner(conn: &mut Conn, customer: &str) -> Result<Option<Uuid>, HandlerError> {
    Ok(accounts::place(conn, None, Some(customer), &[]).await?.by_customer)
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

/// What the application took, by SQL and so without our locks, after we had looked.
fn taken_meanwhile(error: &AttemptError) -> Option<Linked> {
    let AttemptError::Handler(HandlerError::Database(DieselError::DatabaseError(
        DatabaseErrorKind::UniqueViolation,
        information,
    ))) = error
    else {
        return None;
    };
    match information.constraint_name()? {
        "accounts_pkey" => Some(Linked::IdTaken),
        "accounts_stripe_customer_id_key" | "account_customers_pkey" => Some(Linked::CustomerTaken),
        _ => None,
    }
}

impl Service {
    /// Creates an account.
    ///
    /// # Errors
    /// [`ServiceError`]: nothing was committed.
    pub async fn create_account(&self, account: NewAccount) -> Result<Linked, ServiceError> {
        self.link(account).await
    }

    /// Changes an account.
    ///
    /// # Errors
    /// [`ServiceError`]: nothing was committed.
    pub async fn change_account(&self, change: AccountChange) -> Result<Linked, ServiceError> {
        self.link(change).await
    }

    async fn link<W>(&self, work: W) -> Result<Linked, ServiceError>
    where
        W: Work<Output = (Linked, Vec<Note>)> + Send + 'static,
    {
        let service = self.clone();
        self.on_runtime(async move {
            match service.run(&work).await {
                Ok((linked, notes)) => {
                    service.tell(&notes);
                    Ok(linked)
                }
                Err(error) => taken_meanwhile(&error).map_or_else(|| Err(error.into()), Ok),
            }
        })
        .await
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

impl Work for Unlinking {
    type Output = Unlinked;

    async fn run(&self, conn: &mut Conn, _: Context<'_>) -> Result<Unlinked, WorkError<Unlinked>> {
        hold(conn, self.id, self.customer.as_deref()).await?;
        let Some(account) = accounts::lock(conn, self.id).await? else {
            return Err(WorkError::Done(Unlinked::NotFound));
        };
        let own = account.stripe_customer_id.as_deref();
        match self.customer.as_deref() {
            Some(customer) if own != Some(customer) => {
                if owner(conn, customer).await? != Some(self.id) {
                    return Err(WorkError::Done(Unlinked::NotLinked));
                }
                accounts::delete_further_customer(conn, customer).await?;
            }
            _ => {
                accounts::set_customer(conn, self.id, None).await?;
            }
        }
        if let Some(name) = &self.name {
            accounts::set_name(conn, self.id, name).await?;
        }
        Ok(Unlinked::Done)
    }
}

impl Service {
    /// Unlinks a customer from an account.
    ///
    /// # Errors
    /// [`ServiceError`]: nothing was committed.
    pub async fn unlink_customer(&self, unlinking: Unlinking) -> Result<Unlinked, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move { Ok(service.run(&unlinking).await?) }).await
    }
}
