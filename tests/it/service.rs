//! The transaction itself: what a handler does, or fails to do, and what is then on disk. Each promise is held for an event
//! that is applied by itself, and for one that is applied together with others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use subledger::db::Conn;
use subledger::db::pool::Pool;
use subledger::handlers::{Context, Handle, Handled, HandlerError, Handlers, Outcome, Policy, Sharing, Work};
use subledger::service::{Parts, Recorded, Service, ServiceError};
use subledger::stripe::Event as StripeEvent;
use subledger::stripe::redact::StoredPayloads;
use tokio::runtime::Handle as Runtime;

use crate::support::Event;
use crate::support::database::Database;
use crate::support::events::subscription;

/// The service without HTTP, with these handlers: one replica of it.
fn service_with(database: &Database, pool_size: u32, handlers: impl Handle + 'static) -> Service {
    Service::new(Parts {
        pool: Pool::new(database.target(), pool_size, Duration::from_secs(2)),
        pool_size,
        queue_timeout: Duration::from_secs(2),
        stripe: None,
        policy: Policy::default(),
        handlers: Arc::new(handlers),
        push: None,
        reconcile_every: None,
        stored_payloads: StoredPayloads::Full,
        runtime: Runtime::current(),
        metrics: std::sync::Arc::default(),
    })
}

/// The service without HTTP.
pub fn service_on(database: &Database, pool_size: u32) -> Service {
    service_with(database, pool_size, Handlers)
}

/// The event that the handlers of these tests treat otherwise.
const SPECIAL: &str = "evt_1";

fn created() -> StripeEvent {
    Event::new(SPECIAL, "customer.subscription.created", 100, subscription("sub_1", "cus_1", "active", 5)).parsed()
}

fn other(number: usize) -> StripeEvent {
    let object = subscription("sub_1", &format!("cus_other_{number}"), "active", 5);
    Event::new(&format!("evt_other_{number}"), "customer.subscription.created", 100, object).parsed()
}

async fn count(database: &Database, from: &str) -> i64 {
    database.client().await.query_one(&format!("SELECT count(*) FROM {from}"), &[]).await.unwrap().get(0)
}

async fn insert_account(conn: &mut Conn) -> Result<usize, HandlerError> {
    Ok(diesel::sql_query("INSERT INTO accounts (name) VALUES ('made by the handler')").execute(conn).await?)
}

/// How a special event is handled, after an account was inserted.
type Special = fn(&mut Conn) -> BoxFuture<'_, Result<(), HandlerError>>;

/// Handles the special event in its own way, and all others as ever.
struct Handling(Special);

impl Handle for Handling {
    fn handle<'a>(
        &'a self,
        conn: &'a mut Conn,
        work: &'a mut Work,
        ctx: Context<'a>,
        event: &'a StripeEvent,
    ) -> BoxFuture<'a, Result<Handled, HandlerError>> {
        async move {
            if event.id != SPECIAL {
                return Handlers.handle(conn, work, ctx, event).await;
            }
            insert_account(conn).await?;
            self.0(conn).await?;
            Ok(Handled::new(Outcome::Applied, None))
        }
        .boxed()
    }
}

/// Delivers the special event at the same time as so many others, which are applied whatever becomes of it. They are events
/// of one subscription, so that they are queued together.
async fn deliver_among(service: &Service, database: &Database, others: usize) -> Result<Recorded, ServiceError> {
    let others: Vec<_> = (0..others).map(|number| service.apply(other(number))).collect();
    let (special, answers) = tokio::join!(service.apply(created()), join_all(others));
    for answer in &answers {
        assert!(matches!(answer, Ok(Recorded::First(Outcome::Parked))), "{answer:?}");
    }
    assert_eq!(count(database, "stripe_events WHERE id LIKE 'evt_other%'").await, answers.len() as i64);
    special
}

/// A special event that is handled like this fails, alone and among others, and leaves nothing but its failure.
async fn check_fails(special: Special) {
    for others in [0, 5] {
        let database = Database::migrated();
        let service = service_with(&database, 4, Handling(special));
        let result = deliver_among(&service, &database, others).await;
        assert!(matches!(result, Err(ServiceError::Failed(_))), "{others}: {result:?}");
        let left = format!("stripe_events WHERE id = '{SPECIAL}'");
        assert_eq!(count(&database, &left).await + count(&database, "accounts").await, 0, "{others}");
        assert_eq!(count(&database, "event_failures").await, 1, "{others}");
        let open = "pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
        assert_eq!(count(&database, open).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_swallows_an_error_cannot_make_the_event_look_applied() {
    check_fails(|conn| {
        async {
            assert!(diesel::sql_query("SELECT 1/0").execute(conn).await.is_err());
            Ok(())
        }
        .boxed()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handlers_own_violation_of_the_primary_key_is_a_failure() {
    check_fails(|conn| {
        async {
            // The very constraint that says "duplicate" if the insert of the idempotency row violates it.
            let twice = "INSERT INTO stripe_events (id, type, outcome, livemode, payload)
                         SELECT 'evt_2', '', 'stale', true, '{}' FROM generate_series(1, 2)";
            diesel::sql_query(twice).execute(conn).await?;
            Ok(())
        }
        .boxed()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_failure() {
    check_fails(|_| async { panic!("a handler may panic") }.boxed()).await;
}

/// What the application's own triggers raise, at a statement or at the commit.
async fn check_trigger_fails(trigger: &str) {
    for others in [0, 5] {
        let database = Database::migrated();
        let client = database.client().await;
        client.batch_execute(trigger).await.unwrap();
        client.batch_execute("INSERT INTO accounts (stripe_customer_id) VALUES ('cus_1')").await.unwrap();
        let service = service_on(&database, 4);
        let result = deliver_among(&service, &database, others).await;
        assert!(matches!(result, Err(ServiceError::Failed(_))), "{others}: {result:?}");
        let left = format!("stripe_events WHERE id = '{SPECIAL}'");
        assert_eq!(count(&database, &left).await + count(&database, "subscriptions").await, 0, "{others}");
        assert_eq!(count(&database, "event_failures").await, 1, "{others}");
    }
}

const FALSE_DUPLICATE: &str = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE unique_violation USING CONSTRAINT = 'stripe_events_pkey', TABLE = 'stripe_events'; END $$;";

#[tokio::test(flavor = "multi_thread")]
async fn a_triggers_violation_of_the_primary_keys_name_is_no_duplicate() {
    for trigger in [
        "CREATE TRIGGER refuse BEFORE INSERT ON subscriptions FOR EACH ROW EXECUTE FUNCTION refuse()",
        "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON subscriptions DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION refuse()",
        "CREATE TRIGGER refuse BEFORE INSERT ON stripe_events FOR EACH ROW WHEN (NEW.id = 'evt_1')
         EXECUTE FUNCTION refuse()",
    ] {
        check_trigger_fails(&format!("{FALSE_DUPLICATE} {trigger}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_idempotency_row_nothing_is_committed() {
    check_trigger_fails(
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER skip BEFORE INSERT ON stripe_events FOR EACH ROW WHEN (NEW.id = 'evt_1') EXECUTE FUNCTION skip()",
    )
    .await;
}

/// Fails as often as it is told with an error that another transaction caused, and then does its work.
struct Conflicts {
    with: &'static str,
    times: AtomicUsize,
}

impl Handle for Conflicts {
    fn handle<'a>(
        &'a self,
        conn: &'a mut Conn,
        work: &'a mut Work,
        ctx: Context<'a>,
        event: &'a StripeEvent,
    ) -> BoxFuture<'a, Result<Handled, HandlerError>> {
        async move {
            insert_account(conn).await?;
            if self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                // In a language of its own: the SQLSTATE alone counts.
                let raise = format!(
                    "DO $$ BEGIN RAISE SQLSTATE '{}' USING MESSAGE = 'Verklemmung entdeckt'; END $$",
                    self.with
                );
                conn.batch_execute(&raise).await?;
            }
            Handlers.handle(conn, work, ctx, event).await
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_lost_against_another_is_run_again_a_few_times() {
    for with in ["40001", "40P01"] {
        let database = Database::migrated();
        let service = service_with(&database, 2, Conflicts { with, times: AtomicUsize::new(3) });
        assert_eq!(service.apply(created()).await.unwrap(), Recorded::First(Outcome::Parked), "{with}");
        assert_eq!(count(&database, "accounts").await, 1, "only the last run is committed");
        let service = service_with(&database, 2, Conflicts { with, times: AtomicUsize::new(usize::MAX) });
        let another = Event::new("evt_2", "x", 100, serde_json::json!({"id": "x"})).parsed();
        let result = service.apply(another).await;
        assert!(matches!(result, Err(ServiceError::Unavailable(_))), "{result:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_by_its_sqlstate_in_whatever_language() {
    for (state, is_unavailable) in
        [("55P03", true), ("57014", true), ("53100", true), ("53200", true), ("P0001", false), ("23514", false)]
    {
        let database = Database::migrated();
        let client = database.client().await;
        let trigger = format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN RAISE SQLSTATE '{state}' USING MESSAGE = 'auf Deutsch'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON subscriptions FOR EACH ROW EXECUTE FUNCTION refuse();
             INSERT INTO accounts (stripe_customer_id) VALUES ('cus_1')"
        );
        client.batch_execute(&trigger).await.unwrap();
        let result = service_on(&database, 2).apply(created()).await;
        assert_eq!(matches!(result, Err(ServiceError::Unavailable(_))), is_unavailable, "{state}: {result:?}");
        assert!(result.is_err());
    }
}

/// Goes alone, and waits in its transaction until the future is dropped.
struct Waits(tokio::sync::mpsc::Sender<()>);

impl Handle for Waits {
    fn handle<'a>(
        &'a self,
        conn: &'a mut Conn,
        work: &'a mut Work,
        ctx: Context<'a>,
        event: &'a StripeEvent,
    ) -> BoxFuture<'a, Result<Handled, HandlerError>> {
        async move {
            if event.id != SPECIAL {
                return Handlers.handle(conn, work, ctx, event).await;
            }
            if ctx.sharing == Sharing::Batch {
                return Err(HandlerError::GoesAlone);
            }
            insert_account(conn).await?;
            self.0.send(()).await.unwrap();
            diesel::sql_query("SELECT pg_sleep(8)").execute(conn).await?;
            Ok(Handled::new(Outcome::Applied, None))
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_delivery_is_rolled_back_and_its_connection_thrown_away() {
    let database = Database::migrated();
    let (sender, mut begun) = tokio::sync::mpsc::channel(1);
    let service = service_with(&database, 1, Waits(sender));
    let delivery = tokio::spawn({
        let service = service.clone();
        async move { service.apply(created()).await }
    });
    begun.recv().await.unwrap();
    delivery.abort();
    let started = std::time::Instant::now();
    assert_eq!(service.apply(other(1)).await.unwrap(), Recorded::First(Outcome::Parked));
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
    let events: Vec<_> = (1..=3).map(other).collect();
    let mut prepared = Vec::new();
    for many in [1, 2, 3] {
        let references = events[..many].iter().map(|event| subledger::db::facts::Reference {
            event_id: &event.id,
            subscription_id: event.subscription_id.as_deref(),
            customer_id: event.customer_id.as_deref(),
            customer_account_id: None,
            first_name: None,
            second_name: None,
        });
        subledger::db::facts::load(&conn, &references.collect::<Vec<_>>()).await.unwrap();
        subledger::db::subscriptions::lock(&conn, &vec!["sub_1"; many]).await.unwrap();
        subledger::db::events::replace_outcome(&conn, &events[0], "parked", "stale", None).await.unwrap();
        let query = "SELECT string_agg(name, ',' ORDER BY name) AS value FROM pg_prepared_statements
                     WHERE statement NOT LIKE '%string_agg%'";
        let row: Setting = diesel::sql_query(query).get_result(&mut conn).await.unwrap();
        assert_eq!(row.value.split(',').count(), 3, "{}", row.value);
        prepared.push(row.value);
    }
    prepared.dedup();
    assert_eq!(prepared.len(), 1, "the same statements each time: {prepared:?}");
}
