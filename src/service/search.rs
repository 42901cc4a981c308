//! Search by an id or an account's name, and the events that lead up to a state.

use diesel::QueryResult;
use uuid::Uuid;

use super::{AccountView, READ_LIMIT, Service, ServiceError};
use crate::db::listing::{Filter, Listed};
use crate::db::search::NamedAccount;
use crate::db::{Conn, listing, search};

/// The number of the newest accounts in whose names a text is looked for. The beginnings of names are looked up in all
/// accounts.
pub const NAME_SEARCH_DEPTH: i64 = 20_000;

/// The most accounts that a search by name finds.
pub const MAX_NAMED_ACCOUNTS: usize = 50;

/// How many payloads are read of the events that cannot be found by their object's id yet.
const UNFILLED_DEPTH: i64 = 5_000;

/// How many subscriptions are looked at for an item or a price: those with the greatest ids.
pub const ITEM_SEARCH_DEPTH: i64 = 10_000;

/// How many events of a connected account are looked at for the newest one.
const CONNECT_ACCOUNT_DEPTH: i64 = 1_000;

/// The most events of a story.
const STORY_EVENTS: usize = 100;

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An event, by its id, by the id of the object that it is about or of the connected account that it came from.
    Event(String),
    /// An account, by one of its ids or the id of one of its changes.
    Account(Uuid),
    /// A subscription of an account, by its id or by that of one of its items.
    Subscription {
        /// The account.
        account: Uuid,
        /// The subscription, by Stripe's id.
        id: String,
        /// Its position among the account's subscriptions, newest first, counted from 0.
        position: i64,
    },
    /// Events of a customer that is linked to no account.
    EventsOfCustomer,
    /// Events of a subscription that has no row.
    EventsOfSubscription,
    /// Several accounts with subscriptions to a price, or whose names match: those whose name begins with the text, else
    /// those whose name contains it.
    Accounts {
        /// At most [`MAX_NAMED_ACCOUNTS`] of them.
        accounts: Vec<NamedAccount>,
        /// Whether there are more.
        has_more: bool,
    },
    /// Nothing.
    Nothing {
        /// Whether events that a former version recorded cannot be found by their object's id yet.
        is_filling: bool,
    },
}

/// Events in Stripe's order, oldest first.
#[derive(Clone, Debug)]
pub struct Story {
    /// The events.
    pub events: Vec<Listed>,
    /// Whether older events were left out.
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

/// One more than a story holds, to see whether there are more.
const ASKED: i64 = STORY_EVENTS as i64 + 1;

impl Service {
    /// Finds an event, an account, a subscription, its item or price, a change, a customer, a connected account or any
    /// other object that an event was about by its id, else accounts by their name.
    ///
    /// Every step reads an index or a bounded number of rows, so that a search that finds nothing is as fast as others.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer.
    pub async fn search(&self, text: String) -> Result<Found, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            let conn = &mut conn;
            // No id contains white space.
            if !text.contains(char::is_whitespace)
                && let Some(found) = by_id(conn, &text).await?
            {
                return Ok(found);
            }
            if let Some(found) = by_name(conn, &text).await? {
                return Ok(found);
            }
            Ok(Found::Nothing { is_filling: search::has_unfilled_object_ids(conn).await? })
        })
        .await
    }

    /// The account to which a customer is linked.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer.
    pub async fn account_of_customer(&self, customer: String) -> Result<Option<Uuid>, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(search::account_of_customer(&mut conn, &customer).await?)
        })
        .await
    }

    /// The events of a subscription.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer.
    pub async fn story_of_subscription(&self, id: String) -> Result<Story, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(Story::of(listing::of_subscription(&mut conn, &id, ASKED).await?))
        })
        .await
    }

    /// The events of an account, its customers and its subscriptions.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer.
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

async fn by_id(conn: &mut Conn, id: &str) -> QueryResult<Option<Found>> {
    if let Ok(uuid) = Uuid::try_parse(id) {
        return Ok(search::account_by_id(conn, uuid).await?.map(Found::Account));
    }
    if let Some(event) = listing::find(conn, id).await? {
        return Ok(Some(Found::Event(event.id)));
    }
    if let Some(account) = search::account_of_subscription(conn, id).await? {
        let position = search::position_in_account(conn, id).await?;
        return Ok(Some(Found::Subscription { account, id: id.to_owned(), position }));
    }
    if let Some(account) = search::account_of_customer(conn, id).await? {
        return Ok(Some(Found::Account(account)));
    }
    let of_customer = Filter { customer: Some(id.to_owned()), ..Filter::default() };
    if !listing::page(conn, &of_customer, None, 1).await?.is_empty() {
        return Ok(Some(Found::EventsOfCustomer));
    }
    if !listing::of_subscription(conn, id, 1).await?.is_empty() {
        return Ok(Some(Found::EventsOfSubscription));
    }
    let event = match search::newest_event_about(conn, id).await? {
        Some(event) => Some(event),
        None => search::unfilled_event_about(conn, id, UNFILLED_DEPTH).await?,
    };
    if let Some(event) = event {
        return Ok(Some(Found::Event(event)));
    }
    if let Some(change) = id.strip_prefix("chg_").and_then(|number| number.parse().ok()) {
        return Ok(search::account_of_change(conn, change).await?.map(Found::Account));
    }
    if id.starts_with("acct_") {
        let event = search::newest_event_of_connect_account(conn, id, CONNECT_ACCOUNT_DEPTH).await?;
        return Ok(event.map(Found::Event));
    }
    if id.starts_with("si_") || id.starts_with("price_") {
        return by_item(conn, id).await;
    }
    Ok(None)
}

async fn by_item(conn: &mut Conn, id: &str) -> QueryResult<Option<Found>> {
    let mut found = search::subscriptions_with_item(conn, id, ITEM_SEARCH_DEPTH, MAX_NAMED_ACCOUNTS as i64 + 1).await?;
    let Some(first) = found.first() else { return Ok(None) };
    if found.len() == 1 {
        let position = search::position_in_account(conn, &first.stripe_subscription_id).await?;
        let Some(only) = found.pop() else { return Ok(None) };
        return Ok(Some(Found::Subscription { account: only.account_id, id: only.stripe_subscription_id, position }));
    }
    let has_more = found.len() > MAX_NAMED_ACCOUNTS;
    found.truncate(MAX_NAMED_ACCOUNTS);
    found.dedup_by_key(|row| row.account_id);
    Ok(Some(match found.as_slice() {
        [only] if !has_more => Found::Account(only.account_id),
        _ => Found::Accounts {
            accounts: found.into_iter().map(|row| NamedAccount { id: row.account_id, name: row.name }).collect(),
            has_more,
        },
    }))
}

async fn by_name(conn: &mut Conn, text: &str) -> QueryResult<Option<Found>> {
    let limit = MAX_NAMED_ACCOUNTS as i64 + 1;
    let mut accounts = search::accounts_by_prefix(conn, text, limit).await?;
    if accounts.is_empty() {
        accounts = search::accounts_by_part(conn, text, NAME_SEARCH_DEPTH, limit).await?;
    }
    let has_more = accounts.len() > MAX_NAMED_ACCOUNTS;
    accounts.truncate(MAX_NAMED_ACCOUNTS);
    Ok(match accounts.as_slice() {
        [] => None,
        [only] => Some(Found::Account(only.id)),
        _ => Some(Found::Accounts { accounts, has_more }),
    })
}
