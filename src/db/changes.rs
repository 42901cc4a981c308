//! Queries over `subscription_changes`, and over the view `committed_changes` by which it is read.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::sql_types::{Array, BigInt, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;

/// A change to record.
#[derive(Clone, Debug, PartialEq)]
pub struct NewChange {
    /// The row that changed.
    pub subscription_id: Uuid,
    /// The account of the row, after the change.
    pub account_id: Uuid,
    /// `sub_…`; absent for a local row.
    pub stripe_subscription_id: Option<String>,
    /// The event that caused it, if one did.
    pub event_id: Option<String>,
    /// What happened, in the contract's words and order. None of them holds a comma.
    pub kinds: Vec<&'static str>,
    /// The contract columns before; `None` for a first row.
    pub before: Option<Value>,
    /// The contract columns after.
    pub after: Value,
}

/// A recorded change.
#[derive(Clone, Debug, diesel::QueryableByName)]
#[allow(missing_docs, reason = "the columns of contract and migration")]
pub struct Change {
    #[diesel(sql_type = BigInt)]
    pub id: i64,
    #[diesel(sql_type = SqlUuid)]
    pub subscription_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    pub account_id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    pub stripe_subscription_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub event_id: Option<String>,
    #[diesel(sql_type = Array<Text>)]
    pub kinds: Vec<String>,
    #[diesel(sql_type = Nullable<Jsonb>)]
    pub before: Option<Value>,
    #[diesel(sql_type = Jsonb)]
    pub after: Value,
    #[diesel(sql_type = Timestamptz)]
    pub changed_at: DateTime<Utc>,
}

/// Records changes, at most one for each subscription. The transaction must hold the locks of the subscriptions' rows:
/// `changed_at` is the time of this statement, but never before the subscription's last change, should the clock have
/// been set back.
pub async fn insert(conn: &Conn, changes: &[NewChange]) -> QueryResult<usize> {
    if changes.is_empty() {
        return Ok(0);
    }
    let subscription_ids: Vec<_> = changes.iter().map(|change| change.subscription_id).collect();
    let account_ids: Vec<_> = changes.iter().map(|change| change.account_id).collect();
    let stripe_ids: Vec<_> = changes.iter().map(|change| change.stripe_subscription_id.as_deref()).collect();
    let event_ids: Vec<_> = changes.iter().map(|change| change.event_id.as_deref()).collect();
    let kinds: Vec<_> = changes.iter().map(|change| change.kinds.join(",")).collect();
    let before: Vec<_> = changes.iter().map(|change| change.before.as_ref()).collect();
    let after: Vec<_> = changes.iter().map(|change| &change.after).collect();
    let statement = diesel::sql_query(
        "INSERT INTO subscription_changes
             (subscription_id, account_id, stripe_subscription_id, event_id, kinds, before, after, changed_at)
         SELECT subscription_id, account_id, stripe_subscription_id, event_id, string_to_array(kinds, ','), before, after,
                greatest(clock_timestamp(),
                         (SELECT max(changed_at) FROM subscription_changes earlier
                          WHERE earlier.subscription_id = change.subscription_id))
         FROM unnest($1, $2, $3, $4, $5, $6, $7)
             AS change (subscription_id, account_id, stripe_subscription_id, event_id, kinds, before, after)",
    )
    .bind::<Array<SqlUuid>, _>(subscription_ids)
    .bind::<Array<SqlUuid>, _>(account_ids)
    .bind::<Array<Nullable<Text>>, _>(stripe_ids)
    .bind::<Array<Nullable<Text>>, _>(event_ids)
    .bind::<Array<Text>, _>(kinds)
    .bind::<Array<Nullable<Jsonb>>, _>(before)
    .bind::<Array<Jsonb>, _>(after);
    Cached(statement).execute(&mut &*conn).await
}
