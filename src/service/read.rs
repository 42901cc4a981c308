//! What can be read: one event, one account, and how the database is.

use uuid::Uuid;

use super::{Entitlement, HEALTH_LIMIT, READ_LIMIT, Service, ServiceError};
use crate::db::failures::Failure;
use crate::db::listing::{Filter, Listed};
use crate::db::{accounts, events, failures, listing, migrations, notifications, subscriptions};

/// One event, with its failed attempts.
#[derive(Clone, Debug)]
pub struct EventView {
    /// The event, recorded or not.
    pub event: Listed,
    /// The failed attempts, newest first.
    pub failures: Vec<Failure>,
    /// The event as JSON text; absent where only failures are left and none of them kept it.
    pub payload: Option<String>,
}

/// Some of the events, newest first.
#[derive(Clone, Debug)]
pub struct EventPage {
    /// Each event with its failed attempts, newest first.
    pub events: Vec<(Listed, Vec<Failure>)>,
    /// Whether there are older ones.
    pub has_more: bool,
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
    /// It answers, but takes no writes: it is read-only, or its disk is full.
    Unwritable,
    /// It does not answer.
    Away,
}

impl Service {
    /// The event with this id, or that of the thin notification with this id; also one that only ever failed.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn event(&self, id: String) -> Result<Option<EventView>, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            let id = notifications::event_of(&mut conn, &id).await?.unwrap_or(id);
            let Some(event) = listing::find(&mut conn, &id).await? else {
                return Ok(None);
            };
            let failures = failures::of_event(&mut conn, &id).await?;
            let payload = match events::find(&mut conn, &id).await? {
                Some((_, payload)) => Some(payload),
                None => failures::payload(&mut conn, &id).await?,
            };
            Ok(Some(EventView { event, failures, payload }))
        })
        .await
    }

    /// At most `limit` events, newest first, from behind the event `after`; `None` where there is no such event.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn events(
        &self,
        filter: Filter,
        after: Option<String>,
        limit: u8,
    ) -> Result<Option<EventPage>, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            let after = match after {
                None => None,
                Some(id) => match listing::find(&mut conn, &id).await? {
                    None => return Ok(None),
                    found => found,
                },
            };
            let limit = usize::from(limit);
            // One more than asked for tells whether there are more.
            let mut page = listing::page(&mut conn, &filter, after.as_ref(), limit as i64 + 1).await?;
            let has_more = page.len() > limit;
            page.truncate(limit);
            let ids: Vec<_> = page.iter().map(|event| event.id.as_str()).collect();
            let failures = failures::of_events(&mut conn, &ids).await?;
            let events = page
                .into_iter()
                .map(|event| {
                    let own = failures.iter().filter(|(id, _)| *id == event.id).map(|(_, failure)| failure.clone());
                    let own = own.collect();
                    (event, own)
                })
                .collect();
            Ok(Some(EventPage { events, has_more }))
        })
        .await
    }

    /// The account with this id.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn account(&self, id: Uuid) -> Result<Option<AccountView>, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
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

    /// Lets the metrics know when the last event came, as the tables have it: after a start it is not "never".
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn remember_last_event(&self) -> Result<(), ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            if let Some(at) = events::last_received_at(&mut conn).await? {
                service.parts.metrics.last_event(at);
            }
            Ok(())
        })
        .await
    }

    /// How the database is, asked now.
    pub async fn database_state(&self) -> DatabaseState {
        let service = self.clone();
        let asked = self.read(HEALTH_LIMIT, async move {
            let mut conn = service.connection().await?;
            if migrations::is_pending(&mut conn).await? {
                return Ok(DatabaseState::MigrationPending);
            }
            let takes_writes = service.takes_writes(&mut conn).await?;
            Ok(if takes_writes { DatabaseState::Ok } else { DatabaseState::Unwritable })
        });
        match asked.await {
            Ok(state) => state,
            Err(error) => {
                log::warn!("health: the database does not answer: {}", error.chain());
                DatabaseState::Away
            }
        }
    }
}
