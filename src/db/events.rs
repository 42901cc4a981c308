//! Queries over `stripe_events`, the idempotency rows.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Text};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;
use super::schema::stripe_events as table;

/// The condition that no parked event waits for a customer or a subscription (each a parameter, like `$1`): those go
/// first.
macro_rules! nothing_waits {
    ($customer:literal, $subscription:literal) => {
        concat!(
            "NOT EXISTS (SELECT FROM stripe_events WHERE outcome = 'parked' AND customer_id = ",
            $customer,
            ") AND NOT EXISTS (SELECT FROM stripe_events WHERE outcome = 'parked' AND subscription_id = ",
            $subscription,
            ")"
        )
    };
}
pub(super) use nothing_waits;

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
        .filter(table::type_.like("customer.subscription.%").or(table::type_.like("v1.customer.subscription.%")))
        .order(table::id)
        .select(sql::<Text>("payload::text"))
        .load(conn)
        .await
}

/// The outcomes of those of these events that are recorded, by id.
pub async fn outcomes(conn: &mut Conn, ids: &[&str]) -> QueryResult<Vec<(String, String)>> {
    table::table.filter(table::id.eq_any(ids)).select((table::id, table::outcome)).load(conn).await
}
