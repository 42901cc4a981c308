//! Queries over the view `account_entitlements` and its settings.

use std::time::Duration;

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{Array, Bool, Double, Integer, Jsonb, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use serde_json::Value;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;

/// Whether an account may use the application, and why: a row of `account_entitlements`.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct Entitlement {
    /// The account.
    #[diesel(sql_type = SqlUuid)]
    pub account_id: Uuid,
    /// Whether it may.
    #[diesel(sql_type = Bool)]
    pub entitled: bool,
    /// Why, or why not, in words for the admin.
    #[diesel(sql_type = Text)]
    pub reason: String,
    /// The plan, if entitled. All below are absent if not.
    #[diesel(sql_type = Nullable<Text>)]
    pub plan: Option<String>,
    /// Why the plan has its name.
    #[diesel(sql_type = Nullable<Text>)]
    pub plan_source: Option<String>,
    /// The number of seats, if limited.
    #[diesel(sql_type = Nullable<Integer>)]
    pub seat_limit: Option<i32>,
    /// The end of the period or the trial, or of the subscription if that comes before.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub until: Option<DateTime<Utc>>,
    /// Whether the period or the trial ended so long ago that an event must be missing.
    #[diesel(sql_type = Bool)]
    pub overdue: bool,
    /// The row of `subscriptions` that entitles the account.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub subscription_id: Option<Uuid>,
    /// The event whose state that row shows; absent for a local one.
    #[diesel(sql_type = Nullable<Text>)]
    pub since_event: Option<String>,
}

/// The entitlements of these accounts, in no particular order. One query by index, however many accounts there are.
pub async fn of_accounts(conn: &mut Conn, account_ids: &[Uuid]) -> QueryResult<Vec<Entitlement>> {
    let query = diesel::sql_query(
        "SELECT account_id, entitled, reason, plan, plan_source, seat_limit, until, overdue, subscription_id, since_event
         FROM account_entitlements WHERE account_id = ANY($1)",
    )
    .bind::<Array<SqlUuid>, _>(account_ids);
    Cached(query).load(conn).await
}

/// What the view said of an account at `at`, if the account had these `rows` of `subscriptions` then, each as JSON.
///
/// The rule stands in the view alone: its own text runs over the given rows in place of the table's, and over the given
/// time in place of now.
pub async fn at(
    conn: &mut Conn,
    account_id: Uuid,
    rows: &Value,
    at: DateTime<Utc>,
) -> QueryResult<Option<Entitlement>> {
    #[derive(QueryableByName)]
    struct View {
        #[diesel(sql_type = Text)]
        definition: String,
    }
    let view: View = diesel::sql_query("SELECT pg_get_viewdef('account_entitlements'::regclass) AS definition")
        .get_result(conn)
        .await?;
    let definition = view.definition.trim_end_matches(';').replace("now()", "$2");
    diesel::sql_query(format!(
        "WITH subscriptions AS (SELECT * FROM jsonb_populate_recordset(NULL::subscriptions, $1))
         SELECT account_id, entitled, reason, plan, plan_source, seat_limit, until, overdue, subscription_id, since_event
         FROM ({definition}) AS entitlements WHERE account_id = $3"
    ))
    .bind::<Jsonb, _>(rows)
    .bind::<Timestamptz, _>(at)
    .bind::<SqlUuid, _>(account_id)
    .get_result(conn)
    .await
    .optional()
}

/// The settings of the view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `ENTITLED_STATUSES`, the best first.
    pub entitled_statuses: Vec<String>,
    /// `UNLISTED_PRICES=ignore`.
    pub ignore_unlisted_prices: bool,
    /// `OVERDUE_AFTER`.
    pub overdue_after: Duration,
}

/// The settings as they are, and whether a server has written them; `None` if somebody deleted them.
pub async fn settings(conn: &mut Conn) -> QueryResult<Option<(Settings, bool)>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Array<Text>)]
        entitled_statuses: Vec<String>,
        #[diesel(sql_type = Bool)]
        ignore_unlisted_prices: bool,
        #[diesel(sql_type = Double)]
        overdue_after_secs: f64,
        #[diesel(sql_type = Bool)]
        is_written: bool,
    }
    let row: Option<Row> = diesel::sql_query(
        "SELECT entitled_statuses, ignore_unlisted_prices, written_at IS NOT NULL AS is_written,
                EXTRACT(epoch FROM overdue_after)::float8 AS overdue_after_secs
         FROM entitlement_settings",
    )
    .get_result(conn)
    .await
    .optional()?;
    Ok(row.map(|row| {
        let overdue_after = Duration::try_from_secs_f64(row.overdue_after_secs).unwrap_or_default();
        let Row { entitled_statuses, ignore_unlisted_prices, is_written, .. } = row;
        (Settings { entitled_statuses, ignore_unlisted_prices, overdue_after }, is_written)
    }))
}

/// Writes the settings.
pub async fn set_settings(conn: &mut Conn, settings: &Settings) -> QueryResult<usize> {
    diesel::sql_query(
        "INSERT INTO entitlement_settings (entitled_statuses, ignore_unlisted_prices, overdue_after, written_at)
         VALUES ($1, $2, make_interval(secs => $3), now())
         ON CONFLICT (is_only) DO UPDATE SET entitled_statuses = EXCLUDED.entitled_statuses,
             ignore_unlisted_prices = EXCLUDED.ignore_unlisted_prices, overdue_after = EXCLUDED.overdue_after,
             written_at = EXCLUDED.written_at",
    )
    .bind::<Array<Text>, _>(&settings.entitled_statuses)
    .bind::<Bool, _>(settings.ignore_unlisted_prices)
    .bind::<Double, _>(settings.overdue_after.as_secs_f64())
    .execute(conn)
    .await
}
