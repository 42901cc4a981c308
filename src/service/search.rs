//! Where an id leads, and the story of what it leads to.

use uuid::Uuid;

use super::{AccountView, READ_LIMIT, Service, ServiceError};
use crate::db::listing::{Filter, Listed};
use crate::db::{listing, search};

/// How many of the newest events are searched for an object that no column names.
const SEARCH_DEPTH: i64 = 20_000;

/// How many events a story has at most.
const STORY_EVENTS: usize = 100;

/// Where an id leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// To this event.
    Event(String),
    /// To this account.
    Account(Uuid),
    /// To the account of this subscription.
    Subscription {
        /// The account.
        account: Uuid,
        /// The subscription, by Stripe's id.
        id: String,
    },
    /// To the events of a customer that no account has.
    EventsOfCustomer,
    /// To the events of a subscription that no account has.
    EventsOfSubscription,
}

/// Events in Stripe's order, oldest first.
#[derive(Clone, Debug)]
pub struct Story {
    /// The events.
    pub events: Vec<Listed>,
    /// Whether there are older ones.
    pub is_cut: bool,
}

impl Story {
    fn of(mut newest_first: Vec<Listed>) -> Self {
        let is_cut = newest_first.len() > STORY_EVENTS;
        newest_first.truncate(STORY_EVENTS);
        newest_first.reverse();
        Self { events: newest_first, is_cut }
    }
}

/// One more than a story has tells whether there are more.
const ASKED: i64 = STORY_EVENTS as i64 + 1;

impl Service {
    /// What has the id `id`: an event, an account, a subscription, a customer, or anything that an event was about.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn search(&self, id: String) -> Result<Option<Found>, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            let conn = &mut conn;
            if let Ok(uuid) = Uuid::try_parse(&id) {
                return Ok(search::account_by_id(conn, uuid).await?.map(Found::Account));
            }
            if listing::find(conn, &id).await?.is_some() {
                return Ok(Some(Found::Event(id)));
            }
            if let Some(account) = search::account_of_subscription(conn, &id).await? {
                return Ok(Some(Found::Subscription { account, id }));
            }
            if let Some(account) = search::account_of_customer(conn, &id).await? {
                return Ok(Some(Found::Account(account)));
            }
            let of_customer = Filter { customer: Some(id.clone()), ..Filter::default() };
            if !listing::page(conn, &of_customer, None, 1).await?.is_empty() {
                return Ok(Some(Found::EventsOfCustomer));
            }
            if !listing::of_subscription(conn, &id, 1).await?.is_empty() {
                return Ok(Some(Found::EventsOfSubscription));
            }
            Ok(search::newest_event_about(conn, &id, SEARCH_DEPTH).await?.map(Found::Event))
        })
        .await
    }

    /// The account to which a customer is linked.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn account_of_customer(&self, customer: String) -> Result<Option<Uuid>, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(search::account_of_customer(&mut conn, &customer).await?)
        })
        .await
    }

    /// What happened to a subscription.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn story_of_subscription(&self, id: String) -> Result<Story, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(Story::of(listing::of_subscription(&mut conn, &id, ASKED).await?))
        })
        .await
    }

    /// What happened to an account, its customers and its subscriptions.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn story_of_account(&self, view: AccountView) -> Result<(AccountView, Story), ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            let subscriptions: Vec<_> =
                view.subscriptions.iter().filter_map(|row| row.stripe_subscription_id.as_deref()).collect();
            let events =
                listing::of_account(&mut conn, view.account.id, &view.customers, &subscriptions, ASKED).await?;
            Ok((view, Story::of(events)))
        })
        .await
    }
}
