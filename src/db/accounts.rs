//! Queries over `accounts` and `account_customers`.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;
use super::events::nothing_waits;
use super::schema::{account_customers, accounts, subscriptions};

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

/// The account to which a customer (a parameter, like `$1`) is linked.
macro_rules! of_customer {
    ($customer:literal) => {
        concat!(
            "COALESCE((SELECT id FROM accounts WHERE stripe_customer_id = ",
            $customer,
            "), (SELECT account_id FROM account_customers WHERE stripe_customer_id = ",
            $customer,
            "))"
        )
    };
}
pub(super) use of_customer;

/// Where an event belongs, by what it refers to. Each is the account that the reference leads to, if there is one.
#[derive(Debug, QueryableByName)]
pub struct Place {
    /// The account of the subscription's row.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub by_subscription: Option<Uuid>,
    /// The account to which the customer is linked.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub by_customer: Option<Uuid>,
    /// The account that the object names.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub by_name: Option<Uuid>,
    /// Whether a parked event waits for the customer or the subscription.
    #[diesel(sql_type = Bool)]
    pub has_waiting: bool,
}

/// Looks up where an event belongs. `named` are account ids in the order in which they count.
pub async fn place(
    conn: &mut Conn,
    subscription: Option<&str>,
    customer: Option<&str>,
    named: &[Uuid],
) -> QueryResult<Place> {
    let query = diesel::sql_query(concat!(
        "SELECT (SELECT account_id FROM subscriptions WHERE stripe_subscription_id = $1) AS by_subscription,
                ",
        of_customer!("$2"),
        " AS by_customer,
                (SELECT id FROM accounts WHERE id = ANY($3) ORDER BY array_position($3, id) LIMIT 1) AS by_name,
                NOT (",
        nothing_waits!("$2", "$1"),
        ") AS has_waiting",
    ))
    .bind::<Nullable<Text>, _>(subscription)
    .bind::<Nullable<Text>, _>(customer)
    .bind::<Array<SqlUuid>, _>(named);
    Cached(query).get_result(conn).await
}

/// Whether a parked event of this subscription or customer names an account that exists.
pub async fn is_named_by_waiting(
    conn: &mut Conn,
    subscription: Option<&str>,
    customer: Option<&str>,
) -> QueryResult<bool> {
    #[derive(QueryableByName)]
    struct Answer {
        #[diesel(sql_type = Bool)]
        is_named: bool,
    }
    let answer: Answer = diesel::sql_query(
        "SELECT EXISTS (
             SELECT FROM stripe_events,
                    LATERAL (VALUES (payload #>> '{data,object,client_reference_id}'),
                                    (payload #>> '{data,object,metadata,account_id}')) AS named (text)
             JOIN accounts ON accounts.id = CASE WHEN text ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                                                 THEN text::uuid END
             WHERE outcome = 'parked' AND (customer_id = $2 OR subscription_id = $1)) AS is_named",
    )
    .bind::<Nullable<Text>, _>(subscription)
    .bind::<Nullable<Text>, _>(customer)
    .get_result(conn)
    .await?;
    Ok(answer.is_named)
}

/// Inserts an account.
pub async fn insert(conn: &mut Conn, id: Uuid, name: &str) -> QueryResult<usize> {
    diesel::insert_into(accounts::table).values((accounts::id.eq(id), accounts::name.eq(name))).execute(conn).await
}

/// The account with this id.
pub async fn find(conn: &mut Conn, id: Uuid) -> QueryResult<Option<Row>> {
    accounts::table.find(id).select(Row::as_select()).first(conn).await.optional()
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

/// Keeps the plan of a local subscription that was taken over.
pub async fn set_local_plan(conn: &mut Conn, id: Uuid, plan: &str) -> QueryResult<usize> {
    diesel::update(accounts::table.find(id))
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
