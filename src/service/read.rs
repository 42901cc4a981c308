//! What can be read: events and accounts.

use std::cmp::Reverse;

use diesel::QueryResult;
use uuid::Uuid;

use super::{READ_LIMIT, Service, ServiceError};
use crate::db::entitlements::{self, Entitlement};
use crate::db::failures::Failure;
use crate::db::listing::{Filter, Listed};
use crate::db::{Conn, accounts, events, failures, features, listing, notifications, subscriptions};

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

/// Some of the accounts, newest first.
#[derive(Clone, Debug)]
pub struct AccountPage {
    /// The accounts.
    pub accounts: Vec<AccountView>,
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
    /// The lookup keys of its features.
    pub features: Vec<String>,
    /// What it is entitled to.
    pub entitlement: Entitlement,
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
            let row = accounts::find(&mut conn, id).await?;
            Ok(service.account_views(&mut conn, row.into_iter().collect()).await?.pop())
        })
        .await
    }

    /// At most `limit` accounts, newest first, from behind the account `after`; `None` if there is no such account.
    /// With `text`, only those whose name contains it or that have it as an id, their own or one of Stripe's.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer.
    pub async fn accounts(
        &self,
        text: Option<String>,
        after: Option<Uuid>,
        limit: u8,
    ) -> Result<Option<AccountPage>, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            let after = match after {
                None => None,
                Some(id) => match accounts::find(&mut conn, id).await? {
                    None => return Ok(None),
                    found => found,
                },
            };
            let ids = match &text {
                None => Vec::new(),
                Some(text) => accounts::with_id(&mut conn, text, Uuid::try_parse(text).ok()).await?,
            };
            let limit = usize::from(limit);
            // One more than asked for tells whether there are more.
            let more = limit as i64 + 1;
            let mut rows = accounts::page(&mut conn, text.as_deref(), &ids, after.as_ref(), more).await?;
            let has_more = rows.len() > limit;
            rows.truncate(limit);
            Ok(Some(AccountPage { accounts: service.account_views(&mut conn, rows).await?, has_more }))
        })
        .await
    }

    /// Adds to accounts what belongs to them, with one query for each table.
    async fn account_views(&self, conn: &mut Conn, rows: Vec<accounts::Row>) -> QueryResult<Vec<AccountView>> {
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        let further_customers = accounts::further_customers_of(conn, &ids).await?;
        let mut subscriptions = subscriptions::of_subscriptions_or_accounts(conn, &[], &ids).await?;
        subscriptions.sort_by_key(|row| (Reverse(row.created_at), row.id));
        let features = features::of_accounts(conn, &ids).await?;
        let entitlements = entitlements::of_accounts(conn, &ids).await?;
        let view = |account: accounts::Row| {
            // Absent only if the account was deleted just now.
            let entitlement = entitlements.iter().find(|entitlement| entitlement.account_id == account.id)?.clone();
            let own = further_customers.iter().filter(|(id, _)| *id == account.id).map(|(_, customer)| customer);
            let customers = account.stripe_customer_id.iter().chain(own).cloned().collect();
            let own = subscriptions.iter().filter(|row| row.account_id == account.id);
            let subscriptions: Vec<_> = own.cloned().collect();
            let own = features.iter().filter(|(id, _)| *id == account.id);
            let features = own.map(|(_, lookup_key)| lookup_key.clone()).collect();
            Some(AccountView { account, customers, subscriptions, features, entitlement })
        };
        Ok(rows.into_iter().filter_map(view).collect())
    }

    /// The name of the account with this id.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer.
    pub async fn account_name(&self, id: Uuid) -> Result<Option<String>, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(accounts::find(&mut conn, id).await?.map(|account| account.name))
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
                service.parts().metrics.last_event(at);
            }
            Ok(())
        })
        .await
    }
}
