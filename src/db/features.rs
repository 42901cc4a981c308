//! Queries over `customer_features`, `customer_feature_states` and the view `account_features`.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{Array, Text, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::schema::{customer_feature_states as states, customer_features as features};
use crate::stripe::Feature;

/// The event whose features a customer has.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = states)]
#[allow(missing_docs, reason = "the columns of the migration")]
pub struct AsOf {
    pub last_event_id: String,
    pub last_event_created: DateTime<Utc>,
}

/// Inserts the first event of a customer's features; 0 if there is one already. Waits for a transaction that is
/// inserting one.
pub async fn insert_state(conn: &mut Conn, customer: &str, as_of: &AsOf) -> QueryResult<usize> {
    diesel::insert_into(states::table)
        .values((
            states::stripe_customer_id.eq(customer),
            states::last_event_id.eq(&as_of.last_event_id),
            states::last_event_created.eq(as_of.last_event_created),
        ))
        .on_conflict_do_nothing()
        .execute(conn)
        .await
}

/// The event whose features the customer has, locked until the transaction ends.
pub async fn lock_state(conn: &mut Conn, customer: &str) -> QueryResult<AsOf> {
    states::table.find(customer).select(AsOf::as_select()).for_no_key_update().first(conn).await
}

/// Writes the event whose features the customer has.
pub async fn set_state(conn: &mut Conn, customer: &str, as_of: &AsOf) -> QueryResult<usize> {
    diesel::update(states::table.find(customer))
        .set((states::last_event_id.eq(&as_of.last_event_id), states::last_event_created.eq(as_of.last_event_created)))
        .execute(conn)
        .await
}

/// Removes a customer's features.
pub async fn delete(conn: &mut Conn, customer: &str) -> QueryResult<usize> {
    diesel::delete(features::table.filter(features::stripe_customer_id.eq(customer))).execute(conn).await
}

/// Inserts features of a customer who has none of these lookup keys.
pub async fn insert(conn: &mut Conn, customer: &str, new: &[Feature]) -> QueryResult<usize> {
    let row = |feature: &Feature| {
        (
            features::stripe_customer_id.eq(customer.to_owned()),
            features::lookup_key.eq(feature.lookup_key.clone()),
            features::feature_id.eq(feature.id.clone()),
        )
    };
    let rows: Vec<_> = new.iter().map(row).collect();
    diesel::insert_into(features::table).values(rows).execute(conn).await
}

/// The lookup keys of these accounts' features, each with its account, in order.
pub async fn of_accounts(conn: &mut Conn, account_ids: &[Uuid]) -> QueryResult<Vec<(Uuid, String)>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = SqlUuid)]
        account_id: Uuid,
        #[diesel(sql_type = Text)]
        lookup_key: String,
    }
    let rows: Vec<Row> = diesel::sql_query(
        "SELECT account_id, lookup_key FROM account_features WHERE account_id = ANY($1) ORDER BY lookup_key COLLATE \"C\"",
    )
    .bind::<Array<SqlUuid>, _>(account_ids)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.account_id, row.lookup_key)).collect())
}
