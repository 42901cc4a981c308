//! What the tables hold, read with SQL alone, as any other program reads them.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::sql_types::{Array, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;

use crate::db::Conn;

#[derive(diesel::QueryableByName)]
struct Whole {
    #[diesel(sql_type = Jsonb)]
    row: Value,
}

/// A row of `subscription_changes`.
#[derive(Clone, Debug, diesel::QueryableByName)]
pub(super) struct Change {
    #[diesel(sql_type = Text)]
    pub(super) stripe_subscription_id: String,
    #[diesel(sql_type = Array<Text>)]
    pub(super) kinds: Vec<String>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub(super) before: Option<Value>,
    #[diesel(sql_type = Jsonb)]
    pub(super) after: Value,
    #[diesel(sql_type = Timestamptz)]
    pub(super) changed_at: DateTime<Utc>,
}

/// A row of `event_notifications`.
#[derive(Clone, Debug, diesel::QueryableByName)]
pub(super) struct Notification {
    #[diesel(sql_type = Text)]
    pub(super) notification_id: String,
    #[diesel(sql_type = Text)]
    pub(super) event_id: String,
}

/// A feature of a customer.
#[derive(Clone, Debug, diesel::QueryableByName)]
pub(super) struct Feature {
    #[diesel(sql_type = Text)]
    pub(super) stripe_customer_id: String,
    #[diesel(sql_type = Text)]
    pub(super) lookup_key: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) feature_id: Option<String>,
}

/// The rows of these Stripe subscriptions and of these accounts, all columns of them.
pub(super) async fn subscriptions(conn: &mut Conn, ids: &[&str], accounts: &[Uuid]) -> QueryResult<Vec<Value>> {
    let rows: Vec<Whole> = diesel::sql_query(
        "SELECT to_jsonb(s) AS row FROM subscriptions s
         WHERE stripe_subscription_id = ANY($1) OR account_id = ANY($2) ORDER BY id",
    )
    .bind::<Array<Text>, _>(ids)
    .bind::<Array<SqlUuid>, _>(accounts)
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|whole| whole.row).collect())
}

/// The changes of these Stripe subscriptions, oldest first.
pub(super) async fn changes(conn: &mut Conn, ids: &[&str]) -> QueryResult<Vec<Change>> {
    diesel::sql_query(
        "SELECT stripe_subscription_id, kinds, before, after, changed_at
         FROM subscription_changes WHERE stripe_subscription_id = ANY($1) ORDER BY id",
    )
    .bind::<Array<Text>, _>(ids)
    .load(conn)
    .await
}

/// The features of these customers, in the order of their keys.
pub(super) async fn features(conn: &mut Conn, customers: &[&str]) -> QueryResult<Vec<Feature>> {
    diesel::sql_query(
        "SELECT stripe_customer_id, lookup_key, feature_id FROM customer_features
         WHERE stripe_customer_id = ANY($1) ORDER BY lookup_key COLLATE \"C\"",
    )
    .bind::<Array<Text>, _>(customers)
    .load(conn)
    .await
}

/// The events of those of these notifications that are recorded.
pub(super) async fn notifications(conn: &mut Conn, ids: &[&str]) -> QueryResult<Vec<Notification>> {
    diesel::sql_query("SELECT notification_id, event_id FROM event_notifications WHERE notification_id = ANY($1)")
        .bind::<Array<Text>, _>(ids)
        .load(conn)
        .await
}
