//! Queries over `accounts` and `account_customers`.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Bool, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::parked::is_awaited;
use super::schema::{account_customers, accounts, customer_links, subscriptions};

/// A row of `accounts`.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = accounts)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct Row {
    pub id: Uuid,
    pub name: String,
    pub stripe_customer_id: Option<String>,
    pub local_plan: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The account to which a customer is linked.
pub async fn of_customer(conn: &mut Conn, customer: &str) -> QueryResult<Option<Uuid>> {
    customer_links::table.find(customer).select(customer_links::account_id).first(conn).await.optional()
}

/// A mark of links whose parked events have to be looked for. Each later link makes it another one.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct NewLinks {
    /// The account.
    #[diesel(sql_type = SqlUuid)]
    pub id: Uuid,
    #[diesel(sql_type = Text)]
    version: String,
}

/// A mark, and whether there is anything to do for it.
#[derive(Clone, Debug, QueryableByName)]
pub struct Marked {
    /// The mark.
    #[diesel(embed)]
    pub mark: NewLinks,
    /// Whether an event is parked for the account or one of its customers, or a row of theirs may have to be moved.
    #[diesel(sql_type = Bool)]
    pub is_awaited: bool,
}

/// The marks of at most `limit` accounts whose ids follow `after`, in the order of the ids.
pub async fn new_links(conn: &mut Conn, after: Uuid, limit: i64) -> QueryResult<Vec<Marked>> {
    diesel::sql_query(concat!(
        "SELECT id, xmin::text AS version, ",
        is_awaited!(),
        " AS is_awaited
         FROM accounts WHERE has_new_links AND id > $1 ORDER BY id LIMIT $2",
    ))
    .bind::<SqlUuid, _>(after)
    .bind::<BigInt, _>(limit)
    .load(conn)
    .await
}

/// The mark of one account, if it has one.
pub async fn new_links_of(conn: &mut Conn, id: Uuid) -> QueryResult<Option<NewLinks>> {
    diesel::sql_query("SELECT id, xmin::text AS version FROM accounts WHERE has_new_links AND id = $1")
        .bind::<SqlUuid, _>(id)
        .get_result(conn)
        .await
        .optional()
}

/// Takes a mark away once its parked events are applied. It stays if the account has changed since it was read.
pub async fn unmark(conn: &mut Conn, seen: &NewLinks) -> QueryResult<usize> {
    diesel::sql_query("UPDATE accounts SET has_new_links = false WHERE id = $1 AND has_new_links AND xmin::text = $2")
        .bind::<SqlUuid, _>(seen.id)
        .bind::<Text, _>(&seen.version)
        .execute(conn)
        .await
}

/// The same for marks for which there is nothing to do. Passes over accounts that another transaction has locked.
pub async fn unmark_all(conn: &mut Conn, seen: &[NewLinks]) -> QueryResult<usize> {
    let ids: Vec<_> = seen.iter().map(|mark| mark.id).collect();
    let versions: Vec<_> = seen.iter().map(|mark| mark.version.as_str()).collect();
    diesel::sql_query(
        "UPDATE accounts SET has_new_links = false
         FROM (SELECT accounts.id FROM accounts JOIN unnest($1, $2) AS seen (id, version) ON accounts.id = seen.id
               WHERE has_new_links AND accounts.xmin::text = seen.version
               ORDER BY accounts.id FOR NO KEY UPDATE OF accounts SKIP LOCKED) AS unchanged
         WHERE accounts.id = unchanged.id",
    )
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Array<Text>, _>(versions)
    .execute(conn)
    .await
}

/// The customers of an account, whether they stand in the account itself or are further ones.
pub async fn customers(conn: &mut Conn, id: Uuid) -> QueryResult<Vec<String>> {
    customer_links::table
        .filter(customer_links::account_id.eq(id))
        .order(customer_links::stripe_customer_id)
        .select(customer_links::stripe_customer_id)
        .load(conn)
        .await
}

/// Inserts an account.
pub async fn insert(conn: &mut Conn, id: Uuid, name: &str) -> QueryResult<usize> {
    diesel::insert_into(accounts::table).values((accounts::id.eq(id), accounts::name.eq(name))).execute(conn).await
}

/// The account with this id.
pub async fn find(conn: &mut Conn, id: Uuid) -> QueryResult<Option<Row>> {
    accounts::table.find(id).select(Row::as_select()).first(conn).await.optional()
}

/// The plans of the local rows that were taken over in these accounts, by account.
pub async fn local_plans(conn: &mut Conn, ids: &[Uuid]) -> QueryResult<Vec<(Uuid, String)>> {
    accounts::table
        .filter(accounts::id.eq_any(ids).and(accounts::local_plan.is_not_null()))
        .select((accounts::id, accounts::local_plan.assume_not_null()))
        .load(conn)
        .await
}

/// The account with this id, locked until the transaction ends. Rows that refer to it can still be inserted.
pub async fn lock(conn: &mut Conn, id: Uuid) -> QueryResult<Option<Row>> {
    accounts::table.find(id).select(Row::as_select()).for_no_key_update().first(conn).await.optional()
}

/// Renames an account.
pub async fn set_name(conn: &mut Conn, id: Uuid, name: &str) -> QueryResult<usize> {
    diesel::update(accounts::table.find(id))
        .set((accounts::name.eq(name), accounts::updated_at.eq(diesel::dsl::now)))
        .execute(conn)
        .await
}

/// Sets, or with `None` takes away, the customer that stands in the account itself.
pub async fn set_customer(conn: &mut Conn, id: Uuid, customer: Option<&str>) -> QueryResult<usize> {
    diesel::update(accounts::table.find(id))
        .set((accounts::stripe_customer_id.eq(customer), accounts::updated_at.eq(diesel::dsl::now)))
        .execute(conn)
        .await
}

/// Keeps the plan of a local row that was taken over, if it is the account's first.
pub async fn keep_local_plan(conn: &mut Conn, id: Uuid, plan: &str) -> QueryResult<usize> {
    diesel::update(accounts::table.find(id).filter(accounts::local_plan.is_null()))
        .set((accounts::local_plan.eq(plan), accounts::updated_at.eq(diesel::dsl::now)))
        .execute(conn)
        .await
}

/// Links a further customer.
pub async fn insert_further_customer(conn: &mut Conn, id: Uuid, customer: &str) -> QueryResult<usize> {
    diesel::insert_into(account_customers::table)
        .values((account_customers::stripe_customer_id.eq(customer), account_customers::account_id.eq(id)))
        .execute(conn)
        .await
}

/// Takes a customer out of the further ones.
pub async fn delete_further_customer(conn: &mut Conn, customer: &str) -> QueryResult<usize> {
    diesel::delete(account_customers::table.find(customer)).execute(conn).await
}

/// The accounts to which a Stripe id belongs (a customer's, an account's in place of a customer, or a subscription's),
/// and the account that has `id` itself.
pub async fn with_id(conn: &mut Conn, stripe_id: &str, id: Option<Uuid>) -> QueryResult<Vec<Uuid>> {
    let by_customer = accounts::table.filter(accounts::stripe_customer_id.eq(stripe_id)).select(accounts::id);
    let by_further_customer = account_customers::table
        .filter(account_customers::stripe_customer_id.eq(stripe_id))
        .select(account_customers::account_id);
    let by_subscription = subscriptions::table
        .filter(subscriptions::stripe_subscription_id.eq(stripe_id))
        .select(subscriptions::account_id);
    let by_id = accounts::table.filter(accounts::id.nullable().eq(id)).select(accounts::id);
    by_customer.union(by_further_customer).union(by_subscription).union(by_id).load(conn).await
}

/// At most `limit` accounts, newest first, from behind `after`. With `text`, only those whose name contains it, in any
/// case, or whose id is one of `ids`.
pub async fn page(
    conn: &mut Conn,
    text: Option<&str>,
    ids: &[Uuid],
    after: Option<&Row>,
    limit: i64,
) -> QueryResult<Vec<Row>> {
    let mut query = accounts::table.select(Row::as_select()).into_boxed();
    if let Some(text) = text {
        let in_name = sql::<Bool>("position(lower(").bind::<Text, _>(text).sql(") IN lower(name)) > 0");
        query = query.filter(in_name.or(accounts::id.eq_any(ids)));
    }
    if let Some(after) = after {
        let is_behind = sql::<Bool>("(created_at, id) < (")
            .bind::<Timestamptz, _>(after.created_at)
            .sql(", ")
            .bind::<SqlUuid, _>(after.id)
            .sql(")");
        query = query.filter(is_behind);
    }
    query.order((accounts::created_at.desc(), accounts::id.desc())).limit(limit).load(conn).await
}

/// The further customers of these accounts, each with its account, oldest link first.
pub async fn further_customers_of(conn: &mut Conn, ids: &[Uuid]) -> QueryResult<Vec<(Uuid, String)>> {
    account_customers::table
        .filter(account_customers::account_id.eq_any(ids))
        .order((account_customers::created_at, account_customers::stripe_customer_id))
        .select((account_customers::account_id, account_customers::stripe_customer_id))
        .load(conn)
        .await
}
