//! Queries over parked events: those of `stripe_events` whose outcome is `parked`. All are paged by `(created, id)`.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;
use crate::stripe::EARLIEST_TIME;

/// A parked event.
#[derive(Clone, Debug, diesel::QueryableByName)]
pub struct Parked {
    /// The event's id.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// Stripe's time of the event.
    #[diesel(sql_type = Timestamptz)]
    pub created: DateTime<Utc>,
    /// The payload as JSON text.
    #[diesel(sql_type = Text)]
    pub payload: String,
}

/// The last event of a page: the next page begins behind it.
pub type After = (DateTime<Utc>, String);

/// Before every event.
pub fn beginning() -> After {
    (EARLIEST_TIME, String::new())
}

/// What parked events may wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Awaited {
    /// The link of a customer, `cus_…` or `acct_…`.
    Customer(String),
    /// The row of a subscription.
    Subscription(String),
    /// An account that events name.
    Account(Uuid),
}

/// The parked event with this id.
pub async fn find(conn: &mut Conn, id: &str) -> QueryResult<Option<Parked>> {
    diesel::sql_query(
        "SELECT id, created, payload::text AS payload FROM stripe_events WHERE id = $1 AND outcome = 'parked'",
    )
    .bind::<Text, _>(id)
    .get_result(conn)
    .await
    .optional()
}

/// SQL: the `acct_…` that a parked event carries as `customer_account`, which may be an expanded object.
/// An index stands on this expression.
macro_rules! customer_account {
    () => {
        "COALESCE(payload #>> '{data,object,customer_account,id}', payload #>> '{data,object,customer_account}')"
    };
}
pub(crate) use customer_account;

/// At most `limit` of the events that wait for `awaited`, oldest first.
pub async fn page(conn: &mut Conn, awaited: &Awaited, after: &After, limit: i64) -> QueryResult<Vec<Parked>> {
    let (sql, key) = match awaited {
        // Stored under the cus_… that stands beside it, if there is one.
        Awaited::Customer(id) if id.starts_with("acct_") => (
            concat!(
                "(SELECT id, created, payload::text AS payload FROM stripe_events
                  WHERE outcome = 'parked' AND customer_id = $1 AND (created, id) > ($2, $3)
                  ORDER BY created, id LIMIT $4)
                 UNION ALL
                 (SELECT id, created, payload::text FROM stripe_events
                  WHERE outcome = 'parked' AND ",
                customer_account!(),
                " = $1 AND customer_id IS DISTINCT FROM $1 AND (created, id) > ($2, $3)
                  ORDER BY created, id LIMIT $4)
                 ORDER BY created, id LIMIT $4"
            ),
            id.clone(),
        ),
        Awaited::Customer(id) => (
            "SELECT id, created, payload::text AS payload FROM stripe_events
             WHERE outcome = 'parked' AND customer_id = $1 AND (created, id) > ($2, $3)
             ORDER BY created, id LIMIT $4",
            id.clone(),
        ),
        Awaited::Subscription(id) => (
            "SELECT id, created, payload::text AS payload FROM stripe_events
             WHERE outcome = 'parked' AND subscription_id = $1 AND (created, id) > ($2, $3)
             ORDER BY created, id LIMIT $4",
            id.clone(),
        ),
        Awaited::Account(id) => (
            "SELECT id, created, payload::text AS payload FROM stripe_events
             WHERE outcome = 'parked' AND (created, id) > ($2, $3)
               AND (left(lower(payload #>> '{data,object,client_reference_id}'), 36) = $1
                    OR left(lower(payload #>> '{data,object,metadata,account_id}'), 36) = $1)
             ORDER BY created, id LIMIT $4",
            id.to_string(),
        ),
    };
    let query = diesel::sql_query(sql)
        .bind::<Text, _>(key)
        .bind::<Timestamptz, _>(after.0)
        .bind::<Text, _>(after.1.clone())
        .bind::<BigInt, _>(limit);
    // Not kept prepared: a plan of when nothing was parked may read all parked events.
    query.load(conn).await
}

/// SQL: whether an event is about an invoice, as a thin one may be, too.
macro_rules! is_of_invoice {
    () => {
        "type ~ '^(v[0-9]+[.])?invoice[.]'"
    };
}
pub(super) use is_of_invoice;

/// SQL: whether the parked `event` looks as if it could be placed now: its subscription has a row, its customer is linked,
/// or it names an account, if the condition `$names_count` holds.
macro_rules! is_placeable {
    ($names_count:literal) => {
        concat!(
            "(EXISTS (SELECT FROM subscriptions WHERE stripe_subscription_id = event.subscription_id)
              OR NOT ",
            $crate::db::parked::is_of_invoice!(),
            " AND (EXISTS (SELECT FROM customer_links WHERE stripe_customer_id = event.customer_id)
                      OR EXISTS (SELECT FROM customer_links
                                 WHERE stripe_customer_id = ",
            $crate::db::parked::customer_account!(),
            ") OR ",
            $names_count,
            " AND EXISTS (
                          SELECT FROM unnest(ARRAY[payload #>> '{data,object,client_reference_id}',
                                                   payload #>> '{data,object,metadata,account_id}']) AS named
                          WHERE EXISTS (SELECT FROM accounts
                                        WHERE id = CASE WHEN named ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                                                        THEN named::uuid END))))"
        )
    };
}
pub(super) use is_placeable;

/// SQL: `true` if an event is parked for the customer `$customer`, else null. See [`awaited`].
macro_rules! is_parked_for {
    ($customer:literal) => {
        concat!(
            "COALESCE((SELECT true FROM stripe_events
                       WHERE outcome = 'parked' AND customer_id >= ",
            $customer,
            " AND customer_id <= ",
            $customer,
            " ORDER BY customer_id, created, id LIMIT 1),
                      CASE WHEN ",
            $customer,
            " LIKE 'acct\\_%' THEN
                      (SELECT true FROM stripe_events
                       WHERE outcome = 'parked' AND ",
            $crate::db::parked::customer_account!(),
            " >= ",
            $customer,
            " AND ",
            $crate::db::parked::customer_account!(),
            " <= ",
            $customer,
            " ORDER BY ",
            $crate::db::parked::customer_account!(),
            ", created, id LIMIT 1) END)"
        )
    };
}
pub(super) use is_parked_for;

/// SQL: whether an event is parked for a row of `accounts`, for one of its customers or by its name, or a row that was placed
/// by its metadata alone may have to be moved there. One look at an index each; see [`awaited`].
macro_rules! is_awaited {
    () => {
        concat!(
            "COALESCE(
                 (SELECT true FROM customer_links link
                  WHERE link.account_id = accounts.id
                    AND COALESCE(",
            $crate::db::parked::is_parked_for!("link.stripe_customer_id"),
            ",
                        (SELECT true FROM subscriptions
                         WHERE placed_by_metadata AND subscriptions.stripe_customer_id >= link.stripe_customer_id
                           AND subscriptions.stripe_customer_id <= link.stripe_customer_id
                         ORDER BY subscriptions.stripe_customer_id LIMIT 1),
                        CASE WHEN link.stripe_customer_id LIKE 'acct\\_%' THEN
                        (SELECT true FROM subscriptions
                         WHERE placed_by_metadata ORDER BY subscriptions.stripe_customer_id LIMIT 1) END)
                  LIMIT 1),
                 (SELECT true FROM stripe_events
                  WHERE outcome = 'parked'
                    AND left(lower(payload #>> '{data,object,client_reference_id}'), 36) >= accounts.id::text
                    AND left(lower(payload #>> '{data,object,client_reference_id}'), 36) <= accounts.id::text
                  ORDER BY left(lower(payload #>> '{data,object,client_reference_id}'), 36) LIMIT 1),
                 (SELECT true FROM stripe_events
                  WHERE outcome = 'parked'
                    AND left(lower(payload #>> '{data,object,metadata,account_id}'), 36) >= accounts.id::text
                    AND left(lower(payload #>> '{data,object,metadata,account_id}'), 36) <= accounts.id::text
                  ORDER BY left(lower(payload #>> '{data,object,metadata,account_id}'), 36) LIMIT 1),
                 false)"
        )
    };
}
pub(super) use is_awaited;

/// At most `limit` of all parked events that look as if they could be placed now, oldest first. One that failed within the
/// last ten minutes does not.
pub async fn placeable_page(conn: &mut Conn, after: &After, limit: i64) -> QueryResult<Vec<Parked>> {
    diesel::sql_query(concat!(
        "SELECT id, created, payload::text AS payload FROM stripe_events event
         WHERE outcome = 'parked' AND (created, id) > ($1, $2)
           AND ",
        is_placeable!("connect_account IS NULL"),
        " AND NOT EXISTS (SELECT FROM event_failures
                         WHERE event_id = event.id AND failed_at > now() - interval '10 minutes')
         ORDER BY created, id LIMIT $3",
    ))
    .bind::<Timestamptz, _>(after.0)
    .bind::<Text, _>(after.1.clone())
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// How many events wait for the customers of an account.
pub async fn count_of_account(conn: &mut Conn, account_id: Uuid) -> QueryResult<i64> {
    #[derive(diesel::QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let count: Count = diesel::sql_query(concat!(
        "SELECT count(*) AS count FROM stripe_events
         WHERE outcome = 'parked'
           AND (customer_id = ANY(ARRAY(SELECT stripe_customer_id FROM customer_links WHERE account_id = $1))
                OR ",
        customer_account!(),
        " = ANY(ARRAY(SELECT stripe_customer_id FROM customer_links
                                WHERE account_id = $1 AND stripe_customer_id LIKE 'acct\\_%')))",
    ))
    .bind::<SqlUuid, _>(account_id)
    .get_result(conn)
    .await?;
    Ok(count.count)
}

/// Those of `awaited` that are there and for which at least one event is parked, or a row may have to be moved.
///
/// Written so that one plan alone is good, also one that was made while the tables were empty: sub-queries of one value,
/// which cannot become joins or hashes of all parked events, and an order that only the right index has. An equality would
/// take its column out of the order, and leave the choice to the order of the indexes' ids.
pub async fn awaited(conn: &mut Conn, awaited: &[Awaited]) -> QueryResult<HashSet<Awaited>> {
    #[derive(diesel::QueryableByName)]
    struct Id {
        #[diesel(sql_type = Text)]
        id: String,
    }
    #[derive(diesel::QueryableByName)]
    struct AccountId {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let (mut customers, mut subscriptions, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    let mut found = HashSet::new();
    for one in awaited {
        match one {
            Awaited::Customer(id) => customers.push(id.as_str()),
            Awaited::Subscription(id) => subscriptions.push(id.as_str()),
            Awaited::Account(id) => ids.push(*id),
        }
    }
    if !ids.is_empty() {
        let query = diesel::sql_query(concat!("SELECT id FROM accounts WHERE id = ANY($1) AND ", is_awaited!()));
        let ids: Vec<AccountId> = Cached(query.bind::<Array<SqlUuid>, _>(ids)).load(conn).await?;
        found.extend(ids.into_iter().map(|account| Awaited::Account(account.id)));
    }
    if !customers.is_empty() {
        let query = diesel::sql_query(concat!(
            "SELECT awaited AS id FROM unnest($1) AS awaited
             WHERE (SELECT true FROM customer_links WHERE stripe_customer_id = awaited)
               AND ",
            is_parked_for!("awaited"),
        ));
        let ids: Vec<Id> = Cached(query.bind::<Array<Text>, _>(customers)).load(conn).await?;
        found.extend(ids.into_iter().map(|id| Awaited::Customer(id.id)));
    }
    if !subscriptions.is_empty() {
        let query = diesel::sql_query(
            "SELECT awaited AS id FROM unnest($1) AS awaited
             WHERE (SELECT true FROM subscriptions WHERE stripe_subscription_id = awaited)
               AND (SELECT true FROM stripe_events
                    WHERE outcome = 'parked' AND subscription_id >= awaited AND subscription_id <= awaited
                    ORDER BY subscription_id, created, id LIMIT 1)",
        );
        let ids: Vec<Id> = Cached(query.bind::<Array<Text>, _>(subscriptions)).load(conn).await?;
        found.extend(ids.into_iter().map(|id| Awaited::Subscription(id.id)));
    }
    Ok(found)
}
