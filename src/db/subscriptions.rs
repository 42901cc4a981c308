//! Queries over `subscriptions`.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::now;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;
use super::schema::subscriptions as table;

/// The columns that show a state of Stripe's, which is projected onto them whole. `None` is written as null.
#[derive(AsChangeset, Clone, Debug, Insertable, PartialEq, Queryable, Selectable)]
#[diesel(table_name = table)]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct State {
    pub plan: Option<String>,
    pub plan_source: Option<String>,
    pub status: String,
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
#[derive(AsChangeset, Clone, Debug, Insertable, PartialEq, Queryable, Selectable)]
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
#[derive(AsChangeset, Clone, Debug, PartialEq, Queryable, Selectable)]
#[diesel(table_name = table)]
#[diesel(treat_none_as_null = true)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct LatestInvoice {
    pub latest_invoice_id: Option<String>,
    pub latest_invoice_status: Option<String>,
    pub latest_invoice_event_created: Option<DateTime<Utc>>,
    pub latest_invoice_created: Option<DateTime<Utc>>,
    pub latest_invoice_url: Option<String>,
    pub next_payment_attempt: Option<DateTime<Utc>>,
}

/// A row of `subscriptions`.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = table)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct Row {
    pub id: Uuid,
    pub account_id: Uuid,
    pub stripe_subscription_id: Option<String>,
    #[diesel(embed)]
    pub state: State,
    #[diesel(embed)]
    pub as_of: AsOf,
    #[diesel(embed)]
    pub latest_invoice: LatestInvoice,
    /// Computed by the database.
    pub ends_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The row of a Stripe subscription, locked until the transaction ends.
pub async fn lock(conn: &mut Conn, stripe_subscription_id: &str) -> QueryResult<Option<Row>> {
    table::table
        .filter(table::stripe_subscription_id.eq(stripe_subscription_id))
        .select(Row::as_select())
        .for_no_key_update()
        .first(conn)
        .await
        .optional()
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

/// Inserts a Stripe subscription's row.
pub async fn insert(
    conn: &mut Conn,
    account_id: Uuid,
    stripe_subscription_id: &str,
    state: &State,
    as_of: &AsOf,
) -> QueryResult<usize> {
    diesel::insert_into(table::table)
        .values((
            table::account_id.eq(account_id),
            table::stripe_subscription_id.eq(stripe_subscription_id),
            state,
            as_of,
        ))
        .execute(conn)
        .await
}

/// Makes a local row the row of a Stripe subscription.
pub async fn take_over(
    conn: &mut Conn,
    id: Uuid,
    stripe_subscription_id: &str,
    state: &State,
    as_of: &AsOf,
) -> QueryResult<usize> {
    diesel::update(table::table.find(id))
        .set((table::stripe_subscription_id.eq(stripe_subscription_id), state, as_of, table::updated_at.eq(now)))
        .execute(conn)
        .await
}

/// Writes a newer state.
pub async fn set_state(conn: &mut Conn, id: Uuid, state: &State, as_of: &AsOf) -> QueryResult<usize> {
    let update = diesel::update(table::table.find(id)).set((state, as_of, table::updated_at.eq(now)));
    Cached(update).execute(conn).await
}

/// Writes what a newer invoice event said.
pub async fn set_latest_invoice(conn: &mut Conn, id: Uuid, invoice: &LatestInvoice) -> QueryResult<usize> {
    diesel::update(table::table.find(id)).set((invoice, table::updated_at.eq(now))).execute(conn).await
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
pub async fn insert_local(conn: &mut Conn, account_id: Uuid, plan: &str, status: &str) -> QueryResult<usize> {
    diesel::insert_into(table::table)
        .values((table::account_id.eq(account_id), table::plan.eq(plan), table::status.eq(status)))
        .execute(conn)
        .await
}
