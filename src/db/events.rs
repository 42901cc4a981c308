//! Queries over `stripe_events`, the idempotency rows.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;
use super::raw_json::RawJson;
use super::schema::stripe_events as table;
use crate::stripe::Event;

/// The constraint whose violation by [`insert`] means that the event is recorded already.
pub const PRIMARY_KEY: &str = "stripe_events_pkey";

/// Inserts the idempotency row; a unique violation of [`PRIMARY_KEY`] means that it is there already.
///
/// Waits for a transaction that is inserting the same id until that one commits or rolls back. An event that failed
/// before keeps the time at which it first came, and with it its place in lists. The account is the subscription's or
/// the customer's, where it has one already.
pub async fn insert(mut conn: &Conn, event: &Event, outcome: &str) -> QueryResult<usize> {
    let insert = diesel::insert_into(table::table).values((
        table::id.eq(&event.id),
        table::type_.eq(&event.event_type),
        table::outcome.eq(outcome),
        table::api_version.eq(&event.api_version),
        table::livemode.eq(event.livemode),
        table::connect_account.eq(&event.connect_account),
        table::created.eq(event.created),
        table::received_at.eq(sql::<Timestamptz>(
            "COALESCE((SELECT min(failed_at) FROM event_failures WHERE event_id = ",
        )
        .bind::<Text, _>(&event.id)
        .sql("), now())")),
        table::customer_id.eq(&event.customer_id),
        table::subscription_id.eq(&event.subscription_id),
        table::account_id.eq(sql::<Nullable<SqlUuid>>(
            "COALESCE((SELECT account_id FROM subscriptions WHERE stripe_subscription_id = ",
        )
        .bind::<Nullable<Text>, _>(&event.subscription_id)
        .sql("), (SELECT id FROM accounts WHERE stripe_customer_id = ")
        .bind::<Nullable<Text>, _>(&event.customer_id)
        .sql("), (SELECT account_id FROM account_customers WHERE stripe_customer_id = ")
        .bind::<Nullable<Text>, _>(&event.customer_id)
        .sql("))")),
        table::payload.eq(RawJson(&event.payload)),
    ));
    Cached(insert).execute(&mut conn).await
}

/// The condition that no parked event waits for customer `$1` or subscription `$2`.
macro_rules! nothing_waits {
    () => {
        "NOT EXISTS (SELECT FROM stripe_events WHERE outcome = 'parked' AND customer_id = $1)
         AND NOT EXISTS (SELECT FROM stripe_events WHERE outcome = 'parked' AND subscription_id = $2)"
    };
}
pub(super) use nothing_waits;

/// Whether no parked event waits for this customer or this subscription.
pub async fn nothing_waits_for(
    mut conn: &Conn,
    customer: Option<&str>,
    subscription: Option<&str>,
) -> QueryResult<bool> {
    let query = diesel::sql_query(concat!("SELECT WHERE ", nothing_waits!()))
        .bind::<Nullable<Text>, _>(customer)
        .bind::<Nullable<Text>, _>(subscription);
    Ok(Cached(query).execute(&mut conn).await? == 1)
}

/// Sets what became of an event. The number of rows is 1, or the event is not there.
pub async fn set_outcome(conn: &mut Conn, id: &str, outcome: &str, account_id: Option<Uuid>) -> QueryResult<usize> {
    let update =
        diesel::update(table::table.find(id)).set((table::outcome.eq(outcome), table::account_id.eq(account_id)));
    Cached(update).execute(conn).await
}

/// What became of an event, and its payload as JSON text.
pub async fn find(conn: &mut Conn, id: &str) -> QueryResult<Option<(String, String)>> {
    table::table.find(id).select((table::outcome, sql::<Text>("payload::text"))).first(conn).await.optional()
}

/// When the newest event came; `None` where none ever has.
pub async fn last_received_at(conn: &mut Conn) -> QueryResult<Option<DateTime<Utc>>> {
    table::table.select(diesel::dsl::max(table::received_at)).first(conn).await
}

/// Locks an event that is parked and returns its payload as JSON text; `None` where it is parked no longer.
pub async fn lock_parked(conn: &mut Conn, id: &str) -> QueryResult<Option<String>> {
    table::table
        .find(id)
        .filter(table::outcome.eq("parked"))
        .select(sql::<Text>("payload::text"))
        .for_update()
        .first(conn)
        .await
        .optional()
}

/// An event that waits: its id, its customer and its subscription.
pub type WaitingRow = (String, Option<String>, Option<String>);

/// The parked events that wait for one of these, in the order in which they are to be applied: by Stripe's time, and
/// invoices last, since they need their subscription's row.
pub async fn waiting_for(
    conn: &mut Conn,
    customers: &[&str],
    subscriptions: &[&str],
    accounts: &[String],
) -> QueryResult<Vec<WaitingRow>> {
    let named = sql::<Bool>("left(lower(payload #>> '{data,object,client_reference_id}'), 36) = ANY(")
        .bind::<Array<Text>, _>(accounts)
        .sql(") OR left(lower(payload #>> '{data,object,metadata,account_id}'), 36) = ANY(")
        .bind::<Array<Text>, _>(accounts)
        .sql(")");
    table::table
        .filter(table::outcome.eq("parked"))
        .filter(
            table::customer_id
                .eq_any(customers)
                .or(table::subscription_id.eq_any(subscriptions))
                .assume_not_null()
                .or(named),
        )
        .order((sql::<Bool>("type LIKE 'invoice.%'"), table::created, table::received_at, table::id))
        .select((table::id, table::customer_id, table::subscription_id))
        .load(conn)
        .await
}

/// The events of one second that show one subscription, as JSON text.
pub async fn of_one_second(conn: &mut Conn, subscription_id: &str, created: DateTime<Utc>) -> QueryResult<Vec<String>> {
    table::table
        .filter(table::subscription_id.eq(subscription_id).and(table::created.eq(created)))
        .filter(table::type_.like("customer.subscription.%"))
        .order(table::id)
        .select(sql::<Text>("payload::text"))
        .load(conn)
        .await
}

/// The outcomes of those of these events that are recorded, by id.
pub async fn outcomes(conn: &mut Conn, ids: &[&str]) -> QueryResult<Vec<(String, String)>> {
    table::table.filter(table::id.eq_any(ids)).select((table::id, table::outcome)).load(conn).await
}
