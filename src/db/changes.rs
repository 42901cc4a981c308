//! Queries over `subscription_changes`, and over the view `committed_changes` by which it is read.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::sql_types::{Array, BigInt, Bool, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
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
#[derive(Clone, Debug, diesel::QueryableByName, Serialize, ToSchema)]
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
                         (SELECT changed_at FROM subscription_changes earlier
                          WHERE earlier.subscription_id >= change.subscription_id
                            AND earlier.subscription_id <= change.subscription_id
                          ORDER BY earlier.subscription_id DESC, changed_at DESC, earlier.id DESC LIMIT 1))
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

macro_rules! select {
    ($from:literal, $rest:literal) => {
        concat!(
            "SELECT id, subscription_id, account_id, stripe_subscription_id, event_id, kinds, before, after, changed_at
             FROM ",
            $from,
            " ",
            $rest
        )
    };
}

/// At most `limit` settled changes with ids above `after`, of one account or of all, oldest first.
pub async fn page(conn: &mut Conn, after: i64, account: Option<Uuid>, limit: i64) -> QueryResult<Vec<Change>> {
    let of_all = select!("committed_changes", "WHERE id > $1 ORDER BY id LIMIT $2");
    let of_account = select!("committed_changes", "WHERE id > $1 AND account_id = $3 ORDER BY id LIMIT $2");
    let query = diesel::sql_query(if account.is_some() { of_account } else { of_all });
    let query = query.into_boxed().bind::<BigInt, _>(after).bind::<BigInt, _>(limit);
    match account {
        Some(account) => query.bind::<SqlUuid, _>(account).load(conn).await,
        None => query.load(conn).await,
    }
}

#[derive(diesel::QueryableByName)]
struct LastId {
    #[diesel(sql_type = Nullable<BigInt>)]
    id: Option<i64>,
}

/// The id of the last settled change; 0 if there is none.
pub async fn last_id(conn: &mut Conn) -> QueryResult<i64> {
    let last: LastId = diesel::sql_query("SELECT max(id) AS id FROM committed_changes").get_result(conn).await?;
    Ok(last.id.unwrap_or(0))
}

/// The newest `limit` changes of rows that belonged to the account after the change, newest first.
pub async fn newest_of_account(conn: &mut Conn, account: Uuid, limit: i64) -> QueryResult<Vec<Change>> {
    diesel::sql_query(select!("subscription_changes", "WHERE account_id = $1 ORDER BY id DESC LIMIT $2"))
        .bind::<SqlUuid, _>(account)
        .bind::<BigInt, _>(limit)
        .load(conn)
        .await
}

/// For each row that ever belonged to the account, its last change at or before `at`, and its first one after that.
pub async fn around(conn: &mut Conn, account: Uuid, at: DateTime<Utc>) -> QueryResult<Vec<Change>> {
    diesel::sql_query(concat!(
        "WITH row AS (SELECT DISTINCT subscription_id AS row_id FROM subscription_changes WHERE account_id = $1
                      UNION SELECT id FROM subscriptions WHERE account_id = $1) ",
        select!(
            "row, LATERAL (
                 (SELECT * FROM subscription_changes WHERE subscription_id = row_id AND changed_at <= $2
                  ORDER BY changed_at DESC, id DESC LIMIT 1)
                 UNION ALL
                 (SELECT * FROM subscription_changes WHERE subscription_id = row_id AND changed_at > $2
                  ORDER BY changed_at, id LIMIT 1)) AS change",
            "ORDER BY id"
        )
    ))
    .bind::<SqlUuid, _>(account)
    .bind::<Timestamptz, _>(at)
    .load(conn)
    .await
}

/// An event of a subscription that had been applied by some time, and what orders its state among others.
#[derive(Clone, Debug, diesel::QueryableByName)]
pub struct AppliedEvent {
    /// The row of the subscription.
    #[diesel(sql_type = SqlUuid)]
    pub row_id: Uuid,
    /// The event's id.
    #[diesel(sql_type = Text)]
    pub id: String,
    /// The event's type; `None` if the event is not stored any more. All below are absent then, too.
    #[diesel(sql_type = Nullable<Text>)]
    pub event_type: Option<String>,
    /// Stripe's time of the event.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub created: Option<DateTime<Utc>>,
    /// The status of the object in the event.
    #[diesel(sql_type = Nullable<Text>)]
    pub status: Option<String>,
    /// Whether a change other than of the invoice or of the account names the event.
    #[diesel(sql_type = Bool)]
    pub changed_state: bool,
    /// Whether the row names the event today.
    #[diesel(sql_type = Bool)]
    pub is_shown_today: bool,
}

/// The events of these subscriptions, each the id of a row and a Stripe id, that had been applied by `at`, in the order of
/// application. An event that changed something was applied when the change says, any other one when it was received.
pub async fn applied_events(
    conn: &mut Conn,
    subscriptions: &[(Uuid, &str)],
    at: DateTime<Utc>,
) -> QueryResult<Vec<AppliedEvent>> {
    let (row_ids, stripe_ids): (Vec<_>, Vec<_>) = subscriptions.iter().copied().unzip();
    diesel::sql_query(
        "WITH wanted AS (SELECT row_id, stripe_id, last_event_id
                      FROM unnest($1, $2) AS given (row_id, stripe_id) LEFT JOIN subscriptions ON id = row_id),
              change AS (SELECT row_id, event_id, last_event_id, min(changed_at) AS changed_at,
                                bool_or(NOT kinds <@ '{invoice_changed,moved}') AS changed_state
                         FROM wanted JOIN subscription_changes ON subscription_id = row_id
                         WHERE event_id IS NOT NULL
                         GROUP BY row_id, event_id, last_event_id),
              applied AS (
                  SELECT wanted.row_id, event.id, type, created, payload #>> '{data,object,status}' AS status,
                         coalesce(changed_state, false) AS changed_state,
                         event.id IS NOT DISTINCT FROM wanted.last_event_id AS is_shown_today,
                         coalesce(changed_at, received_at) AS applied_at
                  FROM wanted JOIN stripe_events event ON subscription_id = stripe_id
                           LEFT JOIN change ON change.row_id = wanted.row_id AND event_id = event.id
                  WHERE outcome = 'applied' OR event.id = wanted.last_event_id
                  UNION ALL
                  SELECT row_id, event_id, NULL, NULL, NULL, changed_state, event_id IS NOT DISTINCT FROM last_event_id, changed_at
                  FROM change WHERE NOT EXISTS (SELECT FROM stripe_events WHERE id = event_id))
         SELECT row_id, id, type AS event_type, created, status, changed_state, is_shown_today
         FROM applied WHERE applied_at <= $3 ORDER BY applied_at, created, id",
    )
    .bind::<Array<SqlUuid>, _>(row_ids)
    .bind::<Array<Text>, _>(stripe_ids)
    .bind::<Timestamptz, _>(at)
    .load(conn)
    .await
}

/// Deletes the fences that later ones make superfluous.
pub async fn delete_passed_fences(conn: &mut Conn) -> QueryResult<usize> {
    diesel::sql_query("DELETE FROM change_fences WHERE last_id < (SELECT max(last_id) FROM settled_change_fences)")
        .execute(conn)
        .await
}

/// Deletes at most `limit` changes that are older than `age_secs`; returns how many. A subscription's last change
/// stays, and so does one that is yet to be pushed, if `is_pushed`.
pub async fn delete_old(conn: &mut Conn, age_secs: i64, is_pushed: bool, limit: i64) -> QueryResult<usize> {
    diesel::sql_query(
        "DELETE FROM subscription_changes WHERE id IN (
             SELECT id FROM subscription_changes change
             WHERE changed_at < now() - $1 * interval '1 second'
               AND EXISTS (SELECT FROM subscription_changes later
                           WHERE later.subscription_id = change.subscription_id
                             AND (later.changed_at, later.id) > (change.changed_at, change.id))
               AND (NOT $2 OR (id <= (SELECT position FROM change_push)
                               AND NOT EXISTS (SELECT FROM change_push_accounts queue
                                               WHERE queue.account_id = change.account_id
                                                 AND queue.next_change_id <= change.id)))
             ORDER BY changed_at, id LIMIT $3)",
    )
    .bind::<BigInt, _>(age_secs)
    .bind::<Bool, _>(is_pushed)
    .bind::<BigInt, _>(limit)
    .execute(conn)
    .await
}
