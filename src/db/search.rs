//! Queries that find what an id or a name belongs to, and the job that fills `stripe_events.object_id`.

use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::schema::{account_customers, accounts, subscriptions};

/// The account of a subscription, by Stripe's id of it.
pub async fn account_of_subscription(conn: &mut Conn, id: &str) -> QueryResult<Option<Uuid>> {
    subscriptions::table
        .filter(subscriptions::stripe_subscription_id.eq(id))
        .select(subscriptions::account_id)
        .first(conn)
        .await
        .optional()
}

/// The number of rows that come before a subscription's in its account's list, newest first.
pub async fn position_in_account(conn: &mut Conn, id: &str) -> QueryResult<i64> {
    #[derive(QueryableByName)]
    struct Position {
        #[diesel(sql_type = BigInt)]
        position: i64,
    }
    let found: Position = diesel::sql_query(
        "SELECT count(*) AS position FROM subscriptions one JOIN subscriptions newer ON newer.account_id = one.account_id
         WHERE one.stripe_subscription_id = $1
           AND (newer.created_at > one.created_at OR (newer.created_at = one.created_at AND newer.id < one.id))",
    )
    .bind::<Text, _>(id)
    .get_result(conn)
    .await?;
    Ok(found.position)
}

/// The account to which a customer is linked.
pub async fn account_of_customer(conn: &mut Conn, customer: &str) -> QueryResult<Option<Uuid>> {
    let first = accounts::table.filter(accounts::stripe_customer_id.eq(customer)).select(accounts::id);
    let further = account_customers::table
        .filter(account_customers::stripe_customer_id.eq(customer))
        .select(account_customers::account_id);
    first.union_all(further).get_result(conn).await.optional()
}

/// The account that has this id, or a subscription row with it.
pub async fn account_by_id(conn: &mut Conn, id: Uuid) -> QueryResult<Option<Uuid>> {
    let account = accounts::table.find(id).select(accounts::id);
    let subscription = subscriptions::table.find(id).select(subscriptions::account_id);
    account.union_all(subscription).get_result(conn).await.optional()
}

/// The newest event about the object with this id. Subscriptions' own events are not looked at: they are found by
/// their `subscription_id`.
pub async fn newest_event_about(conn: &mut Conn, object_id: &str) -> QueryResult<Option<String>> {
    let found: Option<Id> = diesel::sql_query(
        "SELECT id FROM stripe_events
         WHERE object_id = $1 AND object_id <> '' AND type NOT LIKE 'customer.subscription.%'
         ORDER BY object_id DESC, received_at DESC, id DESC LIMIT 1",
    )
    .bind::<Text, _>(object_id)
    .get_result(conn)
    .await
    .optional()?;
    Ok(found.map(|found| found.id))
}

/// The newest event about the object with this id among the `depth` greatest ids of those whose `object_id` is still to
/// be filled; reads their payloads.
pub async fn unfilled_event_about(conn: &mut Conn, object_id: &str, depth: i64) -> QueryResult<Option<String>> {
    let found: Option<Id> = diesel::sql_query(
        "SELECT id FROM (SELECT id, received_at, payload FROM stripe_events
                         WHERE object_id IS NULL AND type NOT LIKE 'customer.subscription.%'
                         ORDER BY id DESC LIMIT $2) AS unfilled
         WHERE payload #>> '{data,object,id}' = $1
         ORDER BY received_at DESC, id DESC LIMIT 1",
    )
    .bind::<Text, _>(object_id)
    .bind::<BigInt, _>(depth)
    .get_result(conn)
    .await
    .optional()?;
    Ok(found.map(|found| found.id))
}

/// The newest event that came from this connected account, of the `depth` events at the end of its part of the index.
///
/// Entries of one connected account are in the order of the table's rows there: the last are about the newest. A range
/// instead of an equality, so that the planner reads the index backwards.
pub async fn newest_event_of_connect_account(conn: &mut Conn, id: &str, depth: i64) -> QueryResult<Option<String>> {
    let found: Option<Id> = diesel::sql_query(
        "SELECT id FROM (SELECT id, received_at FROM stripe_events
                         WHERE connect_account >= $1 AND connect_account <= $1
                         ORDER BY connect_account DESC LIMIT $2) AS last
         ORDER BY received_at DESC, id DESC LIMIT 1",
    )
    .bind::<Text, _>(id)
    .bind::<BigInt, _>(depth)
    .get_result(conn)
    .await
    .optional()?;
    Ok(found.map(|found| found.id))
}

/// The account of a change's row after the change, if the account still exists.
pub async fn account_of_change(conn: &mut Conn, change: i64) -> QueryResult<Option<Uuid>> {
    #[derive(QueryableByName)]
    struct Account {
        #[diesel(sql_type = SqlUuid)]
        id: Uuid,
    }
    let found: Option<Account> = diesel::sql_query(
        "SELECT accounts.id FROM subscription_changes JOIN accounts ON accounts.id = account_id
         WHERE subscription_changes.id = $1",
    )
    .bind::<BigInt, _>(change)
    .get_result(conn)
    .await
    .optional()?;
    Ok(found.map(|found| found.id))
}

/// A subscription that a search by an item or a price found, and its account.
#[derive(Clone, Debug, QueryableByName)]
pub struct WithItem {
    /// `sub_…`.
    #[diesel(sql_type = Text)]
    pub stripe_subscription_id: String,
    /// The account's id.
    #[diesel(sql_type = SqlUuid)]
    pub account_id: Uuid,
    /// The account's name.
    #[diesel(sql_type = Text)]
    pub name: String,
}

/// At most `limit` of the `depth` subscriptions with the greatest ids, those with an item that has this id or this price;
/// by their accounts.
pub async fn subscriptions_with_item(conn: &mut Conn, id: &str, depth: i64, limit: i64) -> QueryResult<Vec<WithItem>> {
    diesel::sql_query(
        "SELECT stripe_subscription_id, account_id, name
         FROM (SELECT stripe_subscription_id, account_id, stripe_price_id, items FROM subscriptions
               WHERE stripe_subscription_id IS NOT NULL ORDER BY stripe_subscription_id DESC LIMIT $2) AS greatest
         JOIN accounts ON accounts.id = account_id
         WHERE stripe_price_id = $1
            OR items @> jsonb_build_array(jsonb_build_object('stripe_item_id', $1))
            OR items @> jsonb_build_array(jsonb_build_object('stripe_price_id', $1))
         ORDER BY lower(name), account_id, stripe_subscription_id LIMIT $3",
    )
    .bind::<Text, _>(id)
    .bind::<BigInt, _>(depth)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// An account that a search by name found.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, QueryableByName)]
#[diesel(table_name = accounts)]
pub struct NamedAccount {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
}

/// Accounts whose name begins with `text` in any case, of all accounts, by name.
pub async fn accounts_by_prefix(conn: &mut Conn, text: &str, limit: i64) -> QueryResult<Vec<NamedAccount>> {
    diesel::sql_query(
        "SELECT id, name FROM accounts WHERE lower(name) LIKE lower($1) ORDER BY lower(name), id LIMIT $2",
    )
    .bind::<Text, _>(format!("{}%", escaped(text)))
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// Accounts whose name contains `text` in any case, of the newest `depth` accounts, newest first.
pub async fn accounts_by_part(conn: &mut Conn, text: &str, depth: i64, limit: i64) -> QueryResult<Vec<NamedAccount>> {
    diesel::sql_query(
        "SELECT id, name FROM (SELECT id, name, created_at FROM accounts ORDER BY created_at DESC, id DESC LIMIT $2)
             AS newest
         WHERE lower(name) LIKE lower($1) ORDER BY created_at DESC, id DESC LIMIT $3",
    )
    .bind::<Text, _>(format!("%{}%", escaped(text)))
    .bind::<BigInt, _>(depth)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// `text` for LIKE, to be matched as it is.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

/// Whether an event's `object_id` is still to be filled.
pub async fn has_unfilled_object_ids(conn: &mut Conn) -> QueryResult<bool> {
    let unfilled: Vec<Id> = diesel::sql_query(
        "SELECT id FROM stripe_events WHERE object_id IS NULL AND type NOT LIKE 'customer.subscription.%'
         ORDER BY id DESC LIMIT 1",
    )
    .load(conn)
    .await?;
    Ok(!unfilled.is_empty())
}

/// Fills `object_id` of at most `limit` events with an id below `before`, from the greatest down; returns their ids in
/// that order. Skips rows that another session has locked.
pub async fn fill_object_ids(conn: &mut Conn, before: Option<&str>, limit: i64) -> QueryResult<Vec<String>> {
    let filled: Vec<Id> = diesel::sql_query(
        "WITH batch AS (
             SELECT id FROM stripe_events
             WHERE object_id IS NULL AND type NOT LIKE 'customer.subscription.%' AND ($1 IS NULL OR id < $1)
             ORDER BY id DESC LIMIT $2 FOR UPDATE SKIP LOCKED
         ), filled AS (
             UPDATE stripe_events SET object_id = COALESCE(payload #>> '{data,object,id}', '')
             FROM batch WHERE stripe_events.id = batch.id RETURNING stripe_events.id
         )
         SELECT id FROM filled ORDER BY id DESC",
    )
    .bind::<Nullable<Text>, _>(before)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await?;
    Ok(filled.into_iter().map(|filled| filled.id).collect())
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    id: String,
}

#[cfg(test)]
mod tests {
    #[test]
    fn wildcards_are_matched_as_they_are() {
        assert_eq!(super::escaped(r"50%_off\"), r"50\%\_off\\");
    }
}
