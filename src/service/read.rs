//! What can be read: one event, one account, and how the database is.

use uuid::Uuid;

use super::{Entitlement, Service, ServiceError};
use crate::db::failures::Failure;
use crate::db::{accounts, events, failures, migrations, subscriptions};
use crate::stripe::Event;
use crate::verify::Verified;

/// One event, with its failed attempts.
#[derive(Clone, Debug)]
pub struct EventView {
    /// The event, recorded or not.
    pub attempted: Attempted,
    /// The failed attempts, newest first.
    pub failures: Vec<Failure>,
    /// The event as JSON text.
    pub payload: String,
}

/// An event that was attempted.
#[derive(Clone, Debug)]
pub enum Attempted {
    /// It is recorded, with an outcome.
    Recorded(events::Row),
    /// Every attempt so far failed; this is what the payload says, and when the first attempt was.
    Failed(Box<Event>, chrono::DateTime<chrono::Utc>),
}

/// One account, with all that belongs to it.
#[derive(Clone, Debug)]
pub struct AccountView {
    /// The account.
    pub account: accounts::Row,
    /// Its customers; the one that stands in the account itself first.
    pub customers: Vec<String>,
    /// Its subscriptions, newest first.
    pub subscriptions: Vec<subscriptions::Row>,
    /// What it is entitled to.
    pub entitlement: Entitlement,
}

/// How the database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseState {
    /// It answers, and the migrations have run.
    Ok,
    /// It answers, but a migration is pending.
    MigrationPending,
    /// It does not answer.
    Away,
}

impl Service {
    /// The event with this id, also one that only ever failed.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn event(&self, id: String) -> Result<Option<EventView>, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let mut conn = service.connection().await?;
            let failures = failures::of_event(&mut conn, &id).await?;
            if let Some((row, payload)) = events::find(&mut conn, &id).await? {
                return Ok(Some(EventView { attempted: Attempted::Recorded(row), failures, payload }));
            }
            let Some((first, payload)) = failures::newest_payload(&mut conn, &id).await? else {
                return Ok(None);
            };
            let event = Event::parse(&Verified::from_own_tables(payload.clone()))
                .map_err(|error| ServiceError::Failed(anyhow::Error::new(error)))?;
            Ok(Some(EventView { attempted: Attempted::Failed(Box::new(event), first), failures, payload }))
        })
        .await
    }

    /// The account with this id.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn account(&self, id: Uuid) -> Result<Option<AccountView>, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let mut conn = service.connection().await?;
            let Some(account) = accounts::find(&mut conn, id).await? else {
                return Ok(None);
            };
            let mut customers: Vec<_> = account.stripe_customer_id.iter().cloned().collect();
            customers.extend(accounts::further_customers(&mut conn, id).await?);
            let subscriptions = subscriptions::of_account(&mut conn, id).await?;
            let entitlement = Entitlement::of(&subscriptions, &service.parts.entitled_statuses);
            Ok(Some(AccountView { account, customers, subscriptions, entitlement }))
        })
        .await
    }

    /// How the database is, asked now.
    pub async fn database_state(&self) -> DatabaseState {
        let service = self.clone();
        let asked = self.on_runtime(async move {
            let mut conn = service.connection().await?;
            Ok(migrations::is_pending(&mut conn).await?)
        });
        match asked.await {
            Ok(false) => DatabaseState::Ok,
            Ok(true) => DatabaseState::MigrationPending,
            Err(error) => {
                log::warn!("health: the database does not answer: {}", error.chain());
                DatabaseState::Away
            }
        }
    }
}
