//! Queries over `subscriptions`.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::{exists, now, sql};
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Text};
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;
use super::parked::customer_account;
use super::schema::{customer_links, stripe_events, subscriptions as table};

/// The columns that show a state of Stripe's, which is projected onto them whole. `None` is written as null.
#[derive(AsChangeset, Clone, Debug, Default, Deserialize, Insertable, PartialEq, Queryable, Selectable, Serialize)]
#[serde(default)]
#[diesel(table_name = table)]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct State {
    pub plan: Option<String>,
    pub plan_source: Option<String>,
    pub status: String,
    #[serde(skip)]
    pub stripe_customer_id: Option<String>,
    pub stripe_price_id: Option<String>,
    pub seat_limit: Option<i32>,
    pub current_period_start: Option<DateTime<Utc>>,
    pub current_period_end: Option<DateTime<Utc>>,
    pub cancel_at_period_end: bool,
    pub cancel_at: Option<DateTime<Utc>>,
    pub canceled_at: Option<DateTime<Utc>>,
    pub ended_at: Option<DateTime<Utc>>,
    pub trial_end: Option<DateTime<Utc>>,
    pub paused_collection: bool,
    pub stripe_created: Option<DateTime<Utc>>,
    pub cancellation_reason: Option<String>,
    pub cancellation_feedback: Option<String>,
    pub metadata: Value,
    pub items: Value,
    pub items_complete: bool,
    pub livemode: Option<bool>,
    pub connect_account: Option<String>,
}

/// The event as of which a row shows its state.
#[derive(AsChangeset, Clone, Debug, Default, Insertable, PartialEq, Queryable, Selectable)]
#[diesel(table_name = table)]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct AsOf {
    pub last_event_id: Option<String>,
    pub last_event_type: Option<String>,
    pub last_event_created: Option<DateTime<Utc>>,
    /// The same as `last_event_id`; a server of an earlier version does not write it.
    pub projected_event_id: Option<String>,
}

/// What the newest invoice event said.
#[derive(AsChangeset, Clone, Debug, Default, Deserialize, Insertable, PartialEq, Queryable, Selectable, Serialize)]
#[serde(default)]
#[diesel(table_name = table)]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct LatestInvoice {
    pub latest_invoice_id: Option<String>,
    pub latest_invoice_status: Option<String>,
    #[serde(skip)]
    pub latest_invoice_event_created: Option<DateTime<Utc>>,
    pub latest_invoice_created: Option<DateTime<Utc>>,
    pub latest_invoice_url: Option<String>,
    pub next_payment_attempt: Option<DateTime<Utc>>,
}

/// A row of `subscriptions`.
///
/// As JSON it is what a change shows of it: the contract's columns by their names. Bookkeeping is skipped.
#[derive(Clone, Debug, Deserialize, PartialEq, Queryable, Selectable, Serialize)]
#[diesel(table_name = table)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct Row {
    pub id: Uuid,
    pub account_id: Uuid,
    pub stripe_subscription_id: Option<String>,
    #[diesel(embed)]
    #[serde(flatten)]
    pub state: State,
    #[diesel(embed)]
    #[serde(skip)]
    pub as_of: AsOf,
    #[diesel(embed)]
    #[serde(flatten)]
    pub latest_invoice: LatestInvoice,
    /// Placed by the account id in its metadata alone: it moves when its customer is linked to another account.
    #[serde(skip)]
    pub placed_by_metadata: bool,
    /// Whether it has taken over a local row.
    #[serde(skip)]
    pub took_local_row: bool,
    /// Computed by the database; read from a change, which has it beside the columns it is computed from.
    #[serde(default, skip_serializing)]
    pub ends_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    #[serde(skip)]
    pub updated_at: DateTime<Utc>,
}

impl Row {
    /// The same row with another state.
    pub fn showing(&self, state: State, as_of: AsOf, updated_at: DateTime<Utc>) -> Self {
        Self {
            id: self.id,
            account_id: self.account_id,
            stripe_subscription_id: self.stripe_subscription_id.clone(),
            state,
            as_of,
            latest_invoice: self.latest_invoice.clone(),
            placed_by_metadata: self.placed_by_metadata,
            took_local_row: self.took_local_row,
            ends_at: self.ends_at,
            created_at: self.created_at,
            updated_at,
        }
    }
}

/// The rows of Stripe subscriptions, locked until the transaction ends.
///
/// Always in the order of the ids, so that two such statements cannot deadlock.
pub async fn lock(conn: &Conn, stripe_subscription_ids: &[&str]) -> QueryResult<Vec<Row>> {
    table::table
        .filter(table::stripe_subscription_id.eq_any(stripe_subscription_ids).assume_not_null())
        .order(table::stripe_subscription_id)
        .select(Row::as_select())
        .for_no_key_update()
        .load(&mut &*conn)
        .await
}

/// The row of a Stripe subscription.
pub async fn find(conn: &mut Conn, stripe_subscription_id: &str) -> QueryResult<Option<Row>> {
    table::table
        .filter(table::stripe_subscription_id.eq(stripe_subscription_id))
        .select(Row::as_select())
        .first(conn)
        .await
        .optional()
}

/// The rows of these Stripe subscriptions.
pub async fn of_subscriptions(conn: &mut Conn, stripe_subscription_ids: &[&str]) -> QueryResult<Vec<Row>> {
    table::table
        .filter(table::stripe_subscription_id.eq_any(stripe_subscription_ids))
        .select(Row::as_select())
        .load(conn)
        .await
}

/// The account's oldest local row (one that no Stripe subscription has taken over), locked.
pub async fn lock_local(conn: &mut Conn, account_id: Uuid) -> QueryResult<Option<Row>> {
    table::table
        .filter(table::account_id.eq(account_id).and(table::stripe_subscription_id.is_null()))
        .order((table::created_at, table::id))
        .select(Row::as_select())
        .for_no_key_update()
        .first(conn)
        .await
        .optional()
}

/// An account's rows of Stripe subscriptions, locked in the order of their ids.
pub async fn lock_of_account(conn: &mut Conn, account_id: Uuid) -> QueryResult<Vec<Row>> {
    table::table
        .filter(table::account_id.eq(account_id).and(table::stripe_subscription_id.is_not_null()))
        .order(table::stripe_subscription_id)
        .select(Row::as_select())
        .for_no_key_update()
        .load(conn)
        .await
}

/// The rows of this account's customers that stand in an account, this one or another, because of their metadata alone,
/// locked in the order of their ids.
pub async fn lock_placed_by_metadata(conn: &mut Conn, account_id: Uuid) -> QueryResult<Vec<Row>> {
    let customers = customer_links::table
        .filter(customer_links::account_id.eq(account_id))
        .select(customer_links::stripe_customer_id.nullable());
    table::table
        .filter(table::placed_by_metadata)
        .filter(table::stripe_customer_id.eq_any(customers))
        .order(table::stripe_subscription_id)
        .select(Row::as_select())
        .for_no_key_update()
        .load(conn)
        .await
}

/// As [`lock_placed_by_metadata`], but the rows whose last event carries an `acct_…` that is linked to this account, and
/// whose `cus_…` is not.
pub async fn lock_placed_by_metadata_of_customer_account(conn: &mut Conn, account_id: Uuid) -> QueryResult<Vec<Row>> {
    let customers = customer_links::table
        .filter(customer_links::account_id.eq(account_id))
        .select(customer_links::stripe_customer_id);
    let customer_account = sql::<Nullable<Text>>(customer_account!());
    let events = stripe_events::table
        .filter(stripe_events::id.nullable().eq(table::last_event_id))
        .filter(customer_account.eq_any(customers.select(customer_links::stripe_customer_id.nullable())));
    table::table
        .filter(table::placed_by_metadata)
        .filter(table::stripe_customer_id.is_null().or(table::stripe_customer_id.assume_not_null().ne_all(customers)))
        .filter(exists(events))
        .order(table::stripe_subscription_id)
        .select(Row::as_select())
        .for_no_key_update()
        .load(conn)
        .await
}

/// Inserts a row, with its id.
pub async fn insert(conn: &Conn, row: &Row) -> QueryResult<usize> {
    let insert = diesel::insert_into(table::table).values((
        (table::id.eq(row.id), table::account_id.eq(row.account_id)),
        table::stripe_subscription_id.eq(&row.stripe_subscription_id),
        (&row.state, &row.as_of, &row.latest_invoice),
        (table::placed_by_metadata.eq(row.placed_by_metadata), table::took_local_row.eq(row.took_local_row)),
        (table::created_at.eq(row.created_at), table::updated_at.eq(row.updated_at)),
    ));
    Cached(insert).execute(&mut &*conn).await
}

/// Writes what differs between a row as it was found, locked, and as it is to be: the columns that show Stripe's state, the
/// event that they are as of, and the invoice, each of the three as a whole.
pub async fn update(conn: &Conn, found: &Row, row: &Row) -> QueryResult<usize> {
    let update = diesel::update(table::table.find(row.id)).set((
        table::account_id.eq(row.account_id),
        table::stripe_subscription_id.eq(&row.stripe_subscription_id),
        (found.state != row.state).then_some(&row.state),
        (found.as_of != row.as_of).then_some(&row.as_of),
        (found.latest_invoice != row.latest_invoice).then_some(&row.latest_invoice),
        (table::placed_by_metadata.eq(row.placed_by_metadata), table::took_local_row.eq(row.took_local_row)),
        table::updated_at.eq(now),
    ));
    Cached(update).execute(&mut &*conn).await
}

/// Gives a local row to a Stripe subscription, so that it is no local row any more.
pub async fn take_local(conn: &mut Conn, id: Uuid, stripe_subscription_id: &str) -> QueryResult<usize> {
    diesel::update(table::table.find(id))
        .set(table::stripe_subscription_id.eq(stripe_subscription_id))
        .execute(conn)
        .await
}

/// Deletes a row.
pub async fn delete(conn: &mut Conn, id: Uuid) -> QueryResult<usize> {
    diesel::delete(table::table.find(id)).execute(conn).await
}

/// All of an account's subscriptions, newest first.
pub async fn of_account(conn: &mut Conn, account_id: Uuid) -> QueryResult<Vec<Row>> {
    table::table
        .filter(table::account_id.eq(account_id))
        .order((table::created_at.desc(), table::id))
        .select(Row::as_select())
        .load(conn)
        .await
}

/// All rows of these Stripe subscriptions and of these accounts.
pub async fn of_subscriptions_or_accounts(
    conn: &mut Conn,
    stripe_subscription_ids: &[&str],
    account_ids: &[Uuid],
) -> QueryResult<Vec<Row>> {
    table::table
        .filter(
            table::account_id
                .eq_any(account_ids)
                .or(table::stripe_subscription_id.eq_any(stripe_subscription_ids).assume_not_null()),
        )
        .order(table::id)
        .select(Row::as_select())
        .load(conn)
        .await
}

/// Inserts a local row, as an application does that gives a trial.
pub async fn insert_local(
    conn: &mut Conn,
    account_id: Uuid,
    plan: &str,
    status: &str,
    created_at: DateTime<Utc>,
) -> QueryResult<usize> {
    let row = (table::account_id.eq(account_id), table::plan.eq(plan), table::status.eq(status));
    diesel::insert_into(table::table).values((row, table::created_at.eq(created_at))).execute(conn).await
}
