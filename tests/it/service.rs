//! The transaction itself: what a handler does, or fails to do, and what is then on disk.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use subledger::db::{Conn, pool};
use subledger::handlers::{Context, Handle, Handled, HandlerError, Handlers, Outcome};
use subledger::service::{Parts, Recorded, Service, ServiceError};
use subledger::stripe::redact::StoredPayloads;
use subledger::stripe::trust::Mode;
use subledger::stripe::{Event as StripeEvent, PricePlans};
use tokio::runtime::Handle as Runtime;

use crate::support::Event;
use crate::support::database::Database;
use crate::support::events::subscription;

/// The service without HTTP: one replica of it.
pub fn service_on(database: &Database, pool_size: u32) -> Service {
    Service::new(Parts {
        pool: pool::build(database.target(), pool_size, Duration::from_secs(2)),
        turn_timeout: Duration::from_secs(2),
        stripe: None,
        plans: PricePlans::default(),
        entitled_statuses: Vec::new(),
        mode: Mode::Any,
        overdue_after: Duration::from_secs(48 * 3_600),
        reconcile_every: None,
        stored_payloads: StoredPayloads::Full,
        runtime: Runtime::current(),
        metrics: std::sync::Arc::default(),
    })
}

fn created() -> StripeEvent {
    Event::new("evt_1", "customer.subscription.created", 100, subscription("sub_1", "cus_1", "active", 5)).parsed()
}

async fn count(database: &Database, from: &str) -> i64 {
    database.client().await.query_one(&format!("SELECT count(*) FROM {from}"), &[]).await.unwrap().get(0)
}

fn applied() -> Handled {
    Handled { outcome: Outcome::Applied, account_id: None, notes: Vec::new() }
}

async fn insert_account(conn: &mut Conn) -> Result<usize, HandlerError> {
    Ok(diesel::sql_query("INSERT INTO accounts (name) VALUES ('made by the handler')").execute(conn).await?)
}

/// Changes a row, then ignores a statement that fails.
struct SwallowsAnError;

impl Handle for SwallowsAnError {
    async fn handle(&self, conn: &mut Conn, _: Context<'_>, _: &StripeEvent) -> Result<Handled, HandlerError> {
        insert_account(conn).await?;
        assert!(diesel::sql_query("SELECT 1/0").execute(conn).await.is_err());
        Ok(applied())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_swallows_an_error_cannot_make_the_event_look_applied() {
    let database = Database::migrated();
    let service = service_on(&database, 2);
    let result = service.apply_with(created(), SwallowsAnError).await;
    assert!(matches!(result, Err(ServiceError::Failed(_))), "{result:?}");
    assert_eq!(count(&database, "stripe_events").await + count(&database, "accounts").await, 0);
    assert_eq!(count(&database, "event_failures").await, 1);
}

/// Changes a row, then fails with a unique violation of its own.
struct ViolatesAUniqueConstraint;

impl Handle for ViolatesAUniqueConstraint {
    async fn handle(&self, conn: &mut Conn, _: Context<'_>, event: &StripeEvent) -> Result<Handled, HandlerError> {
        insert_account(conn).await?;
        // The very row, and so the very constraint, that says "duplicate" when the idempotency insert violates it.
        let again =
            "INSERT INTO stripe_events (id, type, outcome, livemode, payload) VALUES ($1, '', 'stale', true, '{}')";
        diesel::sql_query(again).bind::<diesel::sql_types::Text, _>(&event.id).execute(conn).await?;
        Ok(applied())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handlers_own_violation_of_the_primary_key_is_a_failure() {
    let database = Database::migrated();
    let service = service_on(&database, 2);
    let result = service.apply_with(created(), ViolatesAUniqueConstraint).await;
    assert!(matches!(result, Err(ServiceError::Failed(_))), "{result:?}");
    assert_eq!(count(&database, "stripe_events").await + count(&database, "accounts").await, 0);
}

struct DeletesTheIdempotencyRow;

impl Handle for DeletesTheIdempotencyRow {
    async fn handle(&self, conn: &mut Conn, _: Context<'_>, _: &StripeEvent) -> Result<Handled, HandlerError> {
        insert_account(conn).await?;
        conn.batch_execute("DELETE FROM stripe_events").await?;
        Ok(applied())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_idempotency_row_nothing_is_committed() {
    let database = Database::migrated();
    let service = service_on(&database, 2);
    let result = service.apply_with(created(), DeletesTheIdempotencyRow).await;
    assert!(matches!(result, Err(ServiceError::Failed(_))), "{result:?}");
    assert_eq!(count(&database, "accounts").await, 0);
}

struct Panics;

impl Handle for Panics {
    async fn handle(&self, conn: &mut Conn, _: Context<'_>, _: &StripeEvent) -> Result<Handled, HandlerError> {
        insert_account(conn).await?;
        panic!("a handler may panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_failure_and_the_connection_does_not_come_back() {
    let database = Database::migrated();
    let service = service_on(&database, 1);
    let result = service.apply_with(created(), Panics).await;
    assert!(matches!(result, Err(ServiceError::Failed(_))), "{result:?}");
    assert_eq!(count(&database, "stripe_events").await + count(&database, "accounts").await, 0);
    assert_eq!(service.apply(created()).await.unwrap(), Recorded::First(Outcome::Parked));
}

/// Fails as often as it is told with an error that another transaction caused, and then does its work.
struct Conflicts {
    with: &'static str,
    times: AtomicUsize,
}

impl Handle for Conflicts {
    async fn handle(&self, conn: &mut Conn, ctx: Context<'_>, event: &StripeEvent) -> Result<Handled, HandlerError> {
        insert_account(conn).await?;
        if self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            let raise =
                format!("DO $$ BEGIN RAISE SQLSTATE '{}' USING MESSAGE = 'deadlock detected'; END $$", self.with);
            conn.batch_execute(&raise).await?;
        }
        Handlers.handle(conn, ctx, event).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_lost_against_another_is_run_again_a_few_times() {
    for with in ["40001", "40P01"] {
        let database = Database::migrated();
        let service = service_on(&database, 2);
        let thrice = Conflicts { with, times: AtomicUsize::new(3) };
        let result = service.apply_with(created(), thrice).await;
        assert_eq!(result.unwrap(), Recorded::First(Outcome::Parked), "{with}");
        assert_eq!(count(&database, "accounts").await, 1, "only the last run is committed");
        let always = Conflicts { with, times: AtomicUsize::new(usize::MAX) };
        let another = Event::new("evt_2", "x", 100, serde_json::json!({"id": "x"})).parsed();
        let result = service.apply_with(another, always).await;
        assert!(matches!(result, Err(ServiceError::Unavailable(_))), "{result:?}");
    }
}

/// Waits, in its transaction, until the test says more or the future is dropped.
struct Waits(tokio::sync::mpsc::Sender<()>);

impl Handle for Waits {
    async fn handle(&self, conn: &mut Conn, _: Context<'_>, _: &StripeEvent) -> Result<Handled, HandlerError> {
        insert_account(conn).await?;
        self.0.send(()).await.unwrap();
        diesel::sql_query("SELECT pg_sleep(8)").execute(conn).await?;
        Ok(applied())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_delivery_is_rolled_back_and_its_connection_thrown_away() {
    let database = Database::migrated();
    let service = service_on(&database, 1);
    let (sender, mut begun) = tokio::sync::mpsc::channel(1);
    let delivery = tokio::spawn({
        let service = service.clone();
        async move { service.apply_with(created(), Waits(sender)).await }
    });
    begun.recv().await.unwrap();
    delivery.abort();
    let started = std::time::Instant::now();
    assert_eq!(service.apply(created()).await.unwrap(), Recorded::First(Outcome::Parked));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(count(&database, "accounts").await, 0);
    let open = "pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    assert_eq!(count(&database, open).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_died_in_the_pool_is_no_reason_to_fail() {
    let database = Database::migrated();
    let service = service_on(&database, 1);
    service.apply(created()).await.unwrap();
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name = 'subledger'";
    assert_eq!(database.client().await.query(kill, &[]).await.unwrap().len(), 1);
    assert_eq!(service.apply(created()).await.unwrap(), Recorded::Duplicate);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_has_time_limits() {
    let database = Database::migrated();
    let mut conn = database.target().connect().await.unwrap();
    for (setting, expected) in [
        ("statement_timeout", "10s"),
        ("lock_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("synchronous_commit", "on"),
    ] {
        let query = format!("SELECT current_setting('{setting}') AS value");
        let row: Setting = diesel::sql_query(query).get_result(&mut conn).await.unwrap();
        assert_eq!(row.value, expected, "{setting}");
    }
    let nested: Result<(), diesel::result::Error> = conn.transaction(async |_| Ok(())).await;
    nested.unwrap();
}

#[derive(diesel::QueryableByName)]
struct Setting {
    #[diesel(sql_type = diesel::sql_types::Text)]
    value: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_event_runs_is_prepared_once() {
    let database = Database::migrated();
    let mut conn = database.target().connect().await.unwrap();
    let mut prepared = Vec::new();
    for _ in 0..3 {
        let names = ["customer cus_1".to_owned()];
        subledger::db::locks::hold(&mut conn, &names).await.unwrap();
        subledger::db::accounts::place(&mut conn, Some("sub_1"), None, &[]).await.unwrap();
        subledger::db::events::set_outcome(&mut conn, "evt_1", "stale", None).await.unwrap();
        let query = "SELECT string_agg(name, ',' ORDER BY name) AS value FROM pg_prepared_statements
                     WHERE statement NOT LIKE '%string_agg%'";
        let row: Setting = diesel::sql_query(query).get_result(&mut conn).await.unwrap();
        assert_eq!(row.value.split(',').count(), 3, "{}", row.value);
        prepared.push(row.value);
    }
    prepared.dedup();
    assert_eq!(prepared.len(), 1, "the same statements each time: {prepared:?}");
}
