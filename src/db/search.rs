//! Queries that find where an id belongs, whatever it is an id of.

use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
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

/// The newest event about the object with this id, among the newest `depth` events: payloads have no index.
pub async fn newest_event_about(conn: &mut Conn, object_id: &str, depth: i64) -> QueryResult<Option<String>> {
    #[derive(QueryableByName)]
    struct Found {
        #[diesel(sql_type = Text)]
        id: String,
    }
    let found: Option<Found> = diesel::sql_query(
        "SELECT id FROM (SELECT id, received_at, payload FROM stripe_events
                         ORDER BY received_at DESC, id DESC LIMIT $2) AS recent
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
