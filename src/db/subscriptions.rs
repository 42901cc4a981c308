//! Queries over `subscriptions`.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::now;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Integer, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;
use super::events::nothing_waits;
use super::schema::subscriptions as table;
use crate::ordering::Version;
use crate::stripe::{FINAL_STATUSES, Kind};

/// The columns that show a state of Stripe's, which is projected onto them whole. `None` is written as null.
#[derive(AsChangeset, Clone, Debug, Insertable, PartialEq, Queryable, Selectable)]
#[diesel(table_name = table)]
#[diesel(treat_none_as_null = true, treat_none_as_default_value = false)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct State {
    pub plan: Option<String>,
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

/// A state for [`set_newer_state`].
#[derive(Clone, Copy, Debug)]
pub struct Newer<'a> {
    /// The plan that the price names. Without one it is the account's local one, and then `state`'s.
    pub named_plan: Option<&'a str>,
    /// What is to be shown.
    pub state: &'a State,
    /// As of which event.
    pub as_of: &'a AsOf,
    /// What decides whether it is newer.
    pub version: Version,
}

/// Writes a state, if the row is there, the state is newer than what it shows by all that two versions can tell
/// ([`crate::ordering::compare`] says the same), and no parked event waits for the customer or the subscription.
///
/// One statement, sent on a connection that may have others under way.
pub async fn set_newer_state(
    mut conn: &Conn,
    stripe_subscription_id: &str,
    stripe_customer_id: Option<&str>,
    newer: Newer<'_>,
) -> QueryResult<usize> {
    let Newer { named_plan, state, as_of, version } = newer;
    let update = diesel::sql_query(concat!(
        "UPDATE subscriptions SET
             plan = COALESCE($3, (SELECT local_plan FROM accounts WHERE accounts.id = account_id), $4),
             status = $5, stripe_customer_id = $6, stripe_price_id = $7, seat_limit = $8, current_period_start = $9,
             current_period_end = $10, cancel_at_period_end = $11, cancel_at = $12, canceled_at = $13, ended_at = $14,
             trial_end = $15, paused_collection = $16,
             last_event_id = $17, last_event_type = $18, last_event_created = $19, updated_at = now()
         WHERE stripe_subscription_id = $2
           AND (last_event_created IS NULL
                OR CASE WHEN (status = ANY($20)) = $21
                        THEN last_event_created < $19
                             OR (last_event_created = $19 AND last_event_type = $22 AND NOT $23)
                        ELSE $21 END)
           AND ",
        nothing_waits!()
    ))
    .bind::<Nullable<Text>, _>(stripe_customer_id)
    .bind::<Text, _>(stripe_subscription_id)
    .bind::<Nullable<Text>, _>(named_plan)
    .bind::<Nullable<Text>, _>(&state.plan)
    .bind::<Text, _>(&state.status)
    .bind::<Nullable<Text>, _>(&state.stripe_customer_id)
    .bind::<Nullable<Text>, _>(&state.stripe_price_id)
    .bind::<Nullable<Integer>, _>(state.seat_limit)
    .bind::<Nullable<Timestamptz>, _>(state.current_period_start)
    .bind::<Nullable<Timestamptz>, _>(state.current_period_end)
    .bind::<Bool, _>(state.cancel_at_period_end)
    .bind::<Nullable<Timestamptz>, _>(state.cancel_at)
    .bind::<Nullable<Timestamptz>, _>(state.canceled_at)
    .bind::<Nullable<Timestamptz>, _>(state.ended_at)
    .bind::<Nullable<Timestamptz>, _>(state.trial_end)
    .bind::<Bool, _>(state.paused_collection)
    .bind::<Nullable<Text>, _>(&as_of.last_event_id)
    .bind::<Nullable<Text>, _>(&as_of.last_event_type)
    .bind::<Timestamptz, _>(version.created)
    .bind::<Array<Text>, _>(&FINAL_STATUSES[..])
    .bind::<Bool, _>(version.is_final)
    .bind::<Text, _>(Kind::BIRTH)
    .bind::<Bool, _>(version.is_birth);
    Cached(update).execute(&mut conn).await
}

/// Marks an event as stale, if its state is older than what the subscription's row shows by all that two versions can
/// tell, and no parked event waits for the customer or the subscription. What is older once stays so: a row only ever
/// moves on, so it need not be locked.
pub async fn mark_stale_if_older(
    mut conn: &Conn,
    event_id: &str,
    stripe_subscription_id: &str,
    stripe_customer_id: Option<&str>,
    version: Version,
) -> QueryResult<usize> {
    let update = diesel::sql_query(concat!(
        "UPDATE stripe_events SET outcome = 'stale'
         WHERE id = $3
           AND EXISTS (SELECT FROM subscriptions
                       WHERE stripe_subscription_id = $2
                         AND CASE WHEN (status = ANY($4)) = $5
                                  THEN last_event_created > $6
                                       OR (last_event_created = $6 AND last_event_type <> $7 AND $8)
                                  ELSE last_event_created IS NOT NULL AND NOT $5 END)
           AND ",
        nothing_waits!()
    ))
    .bind::<Nullable<Text>, _>(stripe_customer_id)
    .bind::<Text, _>(stripe_subscription_id)
    .bind::<Text, _>(event_id)
    .bind::<Array<Text>, _>(&FINAL_STATUSES[..])
    .bind::<Bool, _>(version.is_final)
    .bind::<Timestamptz, _>(version.created)
    .bind::<Text, _>(Kind::BIRTH)
    .bind::<Bool, _>(version.is_birth);
    Cached(update).execute(&mut conn).await
}

/// Writes what an invoice event said, if the row is there, the event is of a later second than what the row shows,
/// and no parked event waits for the customer or the subscription. Sent like [`set_newer_state`].
pub async fn set_newer_invoice(
    mut conn: &Conn,
    stripe_subscription_id: &str,
    stripe_customer_id: Option<&str>,
    invoice: &LatestInvoice,
) -> QueryResult<usize> {
    let update = diesel::sql_query(concat!(
        "UPDATE subscriptions SET latest_invoice_id = $3, latest_invoice_status = $4,
             latest_invoice_event_created = $5, updated_at = now()
         WHERE stripe_subscription_id = $2
           AND (latest_invoice_event_created IS NULL OR latest_invoice_event_created < $5)
           AND ",
        nothing_waits!()
    ))
    .bind::<Nullable<Text>, _>(stripe_customer_id)
    .bind::<Text, _>(stripe_subscription_id)
    .bind::<Nullable<Text>, _>(&invoice.latest_invoice_id)
    .bind::<Nullable<Text>, _>(&invoice.latest_invoice_status)
    .bind::<Nullable<Timestamptz>, _>(invoice.latest_invoice_event_created);
    Cached(update).execute(&mut conn).await
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
