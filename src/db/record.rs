//! Records events: the first statement of a transaction, or the only one.
//!
//! What most events come to is done together with the idempotency row in one statement, and so in one round trip.
//! PostgreSQL runs a statement that stands alone as a transaction of its own: both are there or neither is. (Several of
//! them may share a transaction; then all are there or none is.) Such a statement carries a guard; where it does not
//! hold, nothing is recorded and nothing changed, and the event goes the long way.
//!
//! The long way writes the idempotency row first and waits for the subscription's row later; a single statement has to
//! change the subscription first, to know what it has to record. So that two deliveries of one event at once do not
//! wait for each other, whoever needs both holds a lock on the event before: the long way waits for it, the single
//! statement takes it where it is free.
//!
//! Parameters of every statement: `$1` id, `$2` type, `$3` outcome, `$4` API version, `$5` livemode, `$6` Connect
//! account, `$7` created, `$8` customer, `$9` subscription, `$10` payload; from `$11` on those of its own.

use diesel::QueryResult;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Integer, Jsonb, Nullable, Text, Timestamptz};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::accounts::of_customer;
use super::cached::Cached;
use super::events::nothing_waits;
use super::locks;
use super::raw_json::RawJson;
use super::subscriptions::{LatestInvoice, State};
use crate::handlers::ordering::Version;
use crate::stripe::Event;

/// The constraint whose violation means that the event is recorded already.
pub const PRIMARY_KEY: &str = "stripe_events_pkey";

/// What came of one of these statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtOnce {
    /// The event is recorded, its change made.
    Recorded,
    /// The event was recorded before. Nothing changed.
    Duplicate,
    /// The guard did not hold. Nothing changed.
    Missed,
}

/// A state for [`with_newer_state`].
#[derive(Debug)]
pub struct Newer {
    /// Whether the price names the plan. Where it does not, it is the account's local one, and only then `state`'s.
    pub names_plan: bool,
    /// What is to be shown.
    pub state: State,
    /// What decides whether it is newer.
    pub version: Version,
}

/// The condition that nothing that concerns it came before: no parked event of its customer or its subscription waits,
/// and it did not fail itself. If it did it keeps the time at which it first came, and only the long way looks that up.
macro_rules! nothing_came_before {
    () => {
        concat!(nothing_waits!("$8", "$9"), " AND NOT EXISTS (SELECT FROM event_failures WHERE event_id = $1)")
    };
}

/// [`crate::stripe::FINAL_STATUSES`].
macro_rules! final_statuses {
    () => {
        "('canceled', 'incomplete_expired')"
    };
}

/// [`crate::stripe::Kind::BIRTH`].
macro_rules! birth {
    () => {
        "'customer.subscription.created'"
    };
}

/// The condition that the event is not recorded. The primary key says so in any case; this spares the row that would
/// be written in vain. Where a row is changed its guard does the same: the row shows the event already, or a newer one.
macro_rules! is_new {
    () => {
        "NOT EXISTS (SELECT FROM stripe_events WHERE id = $1)"
    };
}

/// The columns and values of an idempotency row, from the event's parameters and the row `change`.
macro_rules! insert {
    ($received_at:expr) => {
        concat!("INSERT INTO stripe_events (id, type, outcome, api_version, livemode, connect_account, created, received_at,
             customer_id, subscription_id, account_id, payload)
         SELECT $1, $2, $3, $4, $5, $6, $7, ", $received_at, ", $8, $9, account_id, $10
         FROM change")
    };
}

/// A statement of this text with the event's parameters, `$1` to `$10`.
macro_rules! of_event {
    ($event:expr, $outcome:expr, $sql:expr) => {
        diesel::sql_query($sql)
            .bind::<Text, _>(&$event.id)
            .bind::<Text, _>(&$event.event_type)
            .bind::<Text, _>($outcome)
            .bind::<Nullable<Text>, _>(&$event.api_version)
            .bind::<Bool, _>($event.livemode)
            .bind::<Nullable<Text>, _>(&$event.connect_account)
            .bind::<Nullable<Timestamptz>, _>($event.created)
            .bind::<Nullable<Text>, _>(&$event.customer_id)
            .bind::<Nullable<Text>, _>(&$event.subscription_id)
            .bind::<Jsonb, _>(RawJson(&$event.payload))
    };
}

/// The text of the statement that makes `$change`, and records the event with the account of the row that it returns,
/// if it returns one. An event that is neither recorded by it nor there already brings no row. What changes data runs to
/// its end whatever `LIMIT` says; the look for a duplicate is spared where there is none.
macro_rules! record {
    ($($change:expr),+ $(,)?) => {
        concat!(
            "WITH change AS (", $($change),+, "), recorded AS (", insert!("now()"), " RETURNING id)
             SELECT true AS is_recorded_now FROM recorded
             UNION ALL
             SELECT false FROM stripe_events WHERE id = $1
             LIMIT 1"
        )
    };
}

/// The text of the statement that writes a newer state, of this `$plan`.
macro_rules! newer_state {
    ($plan:expr) => {
        record!(
            "UPDATE subscriptions SET plan = ",
            $plan,
            ", status = $12, stripe_customer_id = $13, stripe_price_id = $14, seat_limit = $15,
                 current_period_start = $16, current_period_end = $17, cancel_at_period_end = $18, cancel_at = $19,
                 canceled_at = $20, ended_at = $21, trial_end = $22, paused_collection = $23,
                 last_event_id = $1, last_event_type = $2, last_event_created = $7, updated_at = now()
             WHERE stripe_subscription_id = $9
               AND (last_event_created IS NULL
                    OR CASE WHEN (status IN ",
            final_statuses!(),
            ") = $24
                            THEN last_event_created < $7
                                 OR (last_event_created = $7 AND last_event_type = ",
            birth!(),
            " AND NOT $25)
                            ELSE $24 END)
               AND ",
            nothing_came_before!(),
            " AND pg_try_advisory_xact_lock",
            locks::in_schema!("$26"),
            "
             RETURNING account_id",
        )
    };
}

/// Runs a statement of [`record`] and waits until it has committed, where it stands alone.
macro_rules! run {
    ($conn:expr, $statement:expr) => {{
        // All rows, not the first: the commit comes after the last.
        let answers: Vec<Answer> = Cached($statement).load(&mut &*$conn).await?;
        Ok(meaning(&answers))
    }};
}

#[derive(QueryableByName)]
struct Answer {
    #[diesel(sql_type = Bool)]
    is_recorded_now: bool,
}

fn meaning(answers: &[Answer]) -> AtOnce {
    match answers.first() {
        None => AtOnce::Missed,
        Some(answer) if answer.is_recorded_now => AtOnce::Recorded,
        Some(_) => AtOnce::Duplicate,
    }
}

/// Records an event, for its change to follow in the same transaction; a unique violation of [`PRIMARY_KEY`] means that
/// it is recorded already.
///
/// Waits for a transaction that is recording the same event until that one commits or rolls back. An event that failed
/// before keeps the time at which it first came, and with it its place in lists.
pub async fn insert(conn: &mut Conn, event: &Event, outcome: &str) -> QueryResult<usize> {
    let statement = of_event!(
        event,
        outcome,
        concat!(
            "WITH change AS (SELECT pg_advisory_xact_lock",
            locks::in_schema!("$11"),
            ", NULL::uuid AS account_id) ",
            insert!("COALESCE((SELECT min(failed_at) FROM event_failures WHERE event_id = $1), now())")
        )
    );
    Cached(statement.bind::<BigInt, _>(locks::of_event(&event.id))).execute(conn).await
}

/// Records an event and writes its state, if the subscription's row is there, the state is newer than what it shows
/// by all that two versions can tell ([`crate::handlers::ordering::compare`] says the same), and nothing came before.
pub async fn with_newer_state(conn: &Conn, event: &Event, outcome: &str, newer: &Newer) -> QueryResult<AtOnce> {
    let Newer { names_plan, state, version } = newer;
    // The account is looked at only where the price names no plan.
    let sql = if *names_plan {
        newer_state!("$11")
    } else {
        newer_state!("COALESCE((SELECT local_plan FROM accounts WHERE accounts.id = account_id), $11)")
    };
    let statement = of_event!(event, outcome, sql)
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
        .bind::<Bool, _>(version.is_final)
        .bind::<Bool, _>(version.is_birth)
        .bind::<BigInt, _>(locks::of_event(&event.id));
    run!(conn, statement)
}

/// Records an event whose state is older than what the subscription's row shows by all that two versions can tell, if
/// nothing came before. What is older once stays so: a row only ever moves on, so it need not be locked.
pub async fn as_stale(conn: &Conn, event: &Event, outcome: &str, version: Version) -> QueryResult<AtOnce> {
    let sql = record!(
        "SELECT account_id FROM subscriptions
         WHERE stripe_subscription_id = $9
           AND CASE WHEN (status IN ",
        final_statuses!(),
        ") = $11
                    THEN last_event_created > $7 OR (last_event_created = $7 AND last_event_type <> ",
        birth!(),
        " AND $12)
                    ELSE last_event_created IS NOT NULL AND NOT $11 END
           AND ",
        nothing_came_before!(),
        " AND ",
        is_new!(),
    );
    let statement = of_event!(event, outcome, sql).bind::<Bool, _>(version.is_final).bind::<Bool, _>(version.is_birth);
    run!(conn, statement)
}

/// Records an invoice event and writes what it said, if the subscription's row is there, the event is of a later
/// second than what the row shows, and nothing came before.
pub async fn with_newer_invoice(
    conn: &Conn,
    event: &Event,
    outcome: &str,
    invoice: &LatestInvoice,
) -> QueryResult<AtOnce> {
    let sql = record!(
        "UPDATE subscriptions SET latest_invoice_id = $11, latest_invoice_status = $12,
             latest_invoice_event_created = $13, updated_at = now()
         WHERE stripe_subscription_id = $9
           AND (latest_invoice_event_created IS NULL OR latest_invoice_event_created < $13)
           AND ",
        nothing_came_before!(),
        " AND pg_try_advisory_xact_lock",
        locks::in_schema!("$14"),
        "
         RETURNING account_id",
    );
    let statement = of_event!(event, outcome, sql)
        .bind::<Nullable<Text>, _>(&invoice.latest_invoice_id)
        .bind::<Nullable<Text>, _>(&invoice.latest_invoice_status)
        .bind::<Nullable<Timestamptz>, _>(invoice.latest_invoice_event_created)
        .bind::<BigInt, _>(locks::of_event(&event.id));
    run!(conn, statement)
}

/// Records an event that changes nothing, with the account of its subscription or its customer, if nothing came
/// before.
pub async fn unchanged(conn: &Conn, event: &Event, outcome: &str) -> QueryResult<AtOnce> {
    let sql = record!(
        "SELECT COALESCE((SELECT account_id FROM subscriptions WHERE stripe_subscription_id = $9), ",
        of_customer!("$8"),
        ") AS account_id
         WHERE ",
        nothing_came_before!(),
        " AND ",
        is_new!(),
    );
    run!(conn, of_event!(event, outcome, sql))
}

#[cfg(test)]
mod tests {
    use crate::stripe::{FINAL_STATUSES, Kind};

    #[test]
    fn the_statements_know_the_same_words_as_the_code() {
        let quoted = |word: &str| format!("'{word}'");
        assert_eq!(final_statuses!(), format!("({})", FINAL_STATUSES.map(quoted).join(", ")));
        assert_eq!(birth!(), quoted(Kind::BIRTH));
    }
}
