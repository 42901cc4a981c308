//! The pools of connections.

use std::convert::Infallible;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bb8::ManageConnection;
use diesel::QueryResult;
use diesel::result::ConnectionError;
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use thiserror::Error;
use tokio::sync::Mutex;

use super::breaker::Breaker;
use super::connect::Target;
use super::sqlstate::{Driver, FirstError};

/// How long an attempt at a transaction may go on, while no session receives anything, before the server is asked whether
/// it answers; and how long that may take. Together shorter than the default of `POOL_TIMEOUT_MS`.
const SUSPICION: Duration = Duration::from_millis(400);
const ANSWER_LIMIT: Duration = Duration::from_millis(1_500);

/// How old a session is when it plans its statements anew for the first time.
const FIRST_NEW_PLANS: Duration = Duration::from_millis(500);

/// The pools of one database, and the circuit breaker that they share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: bb8::Pool<Manager>,
    /// Connections for health checks and sessions of admins: deliveries that wait for locks cannot take them, and whoever
    /// asks for these cannot keep deliveries waiting. Each is tested before it is handed out.
    reserve: bb8::Pool<Manager>,
    breaker: Breaker,
    /// Locked while the server is asked whether it answers.
    asking: Arc<Mutex<()>>,
}

/// A connection that goes back to the pool when it is dropped, unless it is closed or in a transaction.
pub type Pooled = bb8::PooledConnection<'static, Manager>;

/// Why the pool gave no connection, or took one back.
#[derive(Clone, Debug, Error)]
pub enum PoolError {
    /// The database is out of reach. The cause was logged when the outage began.
    #[error("the database is out of reach: {0}")]
    Outage(Arc<str>),
    /// No connection became free, or could be opened, in time.
    #[error("timed out waiting for a connection")]
    TimedOut,
}

/// Why a connection could not be opened, or was not good enough to be handed out.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// It could not be opened.
    #[error("{0}")]
    Connect(ConnectionError),
    /// It could not be opened, like all others of this outage.
    #[error("{0}")]
    Outage(ConnectionError),
    /// It was opened before a connection of this pool was found closed.
    #[error("the connection is closed, or may be")]
    Closed,
}

/// Opens and checks the pool's connections.
#[derive(Clone, Debug)]
pub struct Manager {
    breaker: Breaker,
    /// Whether each connection is tested with a round trip before it is handed out.
    is_tested: bool,
}

/// A connection of the pool.
pub struct Connection {
    conn: AsyncPgConnection,
    first_error: FirstError,
    _driver: Driver,
    opened_at: Instant,
    /// How old the session is when it plans its statements anew the next time.
    new_plans_at: Duration,
    generation: u64,
    /// Grows each time a connection is found closed; older connections are not handed out any more. A restarted
    /// database closes all of them, and each would otherwise fail one request.
    current: Arc<AtomicU64>,
}

impl Connection {
    /// The SQLSTATE of the first error since it was last taken.
    pub fn first_error(&self) -> &FirstError {
        &self.first_error
    }

    /// Has the pool drop this connection and all that were opened before now. Call it when this one is found closed.
    /// Returns whether this connection was handed out before another was found closed, or with it, so that it is worth
    /// trying the next one.
    pub fn retire_all(&self) -> bool {
        // Only the first of one generation counts: those that follow tell of the same event.
        self.current
            .compare_exchange(self.generation, self.generation + 1, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
            || self.is_retired()
    }

    /// Has the session plan its statements anew each time that it has become twice as old. A plan that was made while the
    /// tables were empty may read a whole index for each event, since no plan costs anything then; PostgreSQL would keep it
    /// until the next autoanalyze.
    async fn renew_plans(&mut self) -> QueryResult<()> {
        let age = self.opened_at.elapsed();
        if age < self.new_plans_at {
            return Ok(());
        }
        self.new_plans_at = 2 * age;
        self.conn.batch_execute("DISCARD PLANS").await
    }

    fn is_retired(&self) -> bool {
        self.generation != self.current.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Deref for Connection {
    type Target = AsyncPgConnection;

    fn deref(&self) -> &AsyncPgConnection {
        &self.conn
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut AsyncPgConnection {
        &mut self.conn
    }
}

impl ManageConnection for Manager {
    type Connection = Connection;
    type Error = ConnectError;

    async fn connect(&self) -> Result<Connection, ConnectError> {
        let current = self.breaker.generation().clone();
        let generation = current.load(Ordering::Relaxed);
        let first_error = FirstError::counting(self.breaker.received());
        let (conn, driver) = match self.breaker.target().connect_watched(&first_error).await {
            Ok(opened) => opened,
            Err(error) => {
                let server = first_error.take();
                let is_outage = self.breaker.connecting_failed(&error.to_string(), server.as_ref()).await;
                return Err(if is_outage { ConnectError::Outage(error) } else { ConnectError::Connect(error) });
            }
        };
        first_error.note_open();
        Ok(Connection {
            conn,
            first_error,
            _driver: driver,
            opened_at: Instant::now(),
            new_plans_at: FIRST_NEW_PLANS,
            generation,
            current,
        })
    }

    async fn is_valid(&self, conn: &mut Connection) -> Result<(), ConnectError> {
        let is_closed = conn.is_retired()
            || conn.conn.is_broken()
            || (self.is_tested && conn.conn.batch_execute("SELECT 1").await.is_err())
            || conn.renew_plans().await.is_err();
        if is_closed { Err(ConnectError::Closed) } else { Ok(()) }
    }

    fn has_broken(&self, conn: &mut Connection) -> bool {
        std::thread::panicking() || conn.is_retired() || conn.conn.is_broken()
    }
}

impl Pool {
    /// At most `size` connections, each waited for at most `timeout`. Opens none yet.
    pub fn new(target: Target, size: u32, timeout: Duration) -> Self {
        const RESERVE: u32 = 2;
        let breaker = Breaker::new(target);
        let build = |size, is_tested| {
            let manager = Manager { breaker: breaker.clone(), is_tested };
            let builder = bb8::Pool::builder().max_size(size).connection_timeout(timeout);
            // The session that was used last is the fastest: its statements are prepared, and its memory is in the caches.
            let builder = builder.queue_strategy(bb8::QueueStrategy::Lifo);
            builder.error_sink(Box::new(LogErrors)).build_unchecked(manager)
        };
        let (connections, reserve) = (build(size, false), build(RESERVE, true));
        Self { connections, reserve, breaker, asking: Arc::default() }
    }

    /// The database that its connections lead to.
    pub fn target(&self) -> &Target {
        self.breaker.target()
    }

    /// A connection for deliveries and reads, which may turn out to be closed.
    ///
    /// # Errors
    /// [`PoolError`]; at once if the database is out of reach.
    pub async fn get(&self) -> Result<Pooled, PoolError> {
        self.get_from(&self.connections).await
    }

    /// One of the connections in reserve.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn get_reserve(&self) -> Result<Pooled, PoolError> {
        self.get_from(&self.reserve).await
    }

    async fn get_from(&self, pool: &bb8::Pool<Manager>) -> Result<Pooled, PoolError> {
        self.breaker.refuse_if_open().await.map_err(PoolError::Outage)?;
        let taken = self.breaker.until_outage(pool.get_owned()).await.map_err(PoolError::Outage)?;
        taken.map_err(|_| PoolError::TimedOut)
    }

    /// Runs `task`, which uses connections, until an outage begins. A server that has fallen silent without closing its
    /// connections is noticed here.
    ///
    /// # Errors
    /// [`PoolError::Outage`], which ended the task.
    pub async fn until_outage<T>(&self, task: impl Future<Output = T>) -> Result<T, PoolError> {
        let watched = async {
            tokio::select! {
                biased;
                result = task => result,
                never = self.watch_for_silence() => match never {},
            }
        };
        self.breaker.until_outage(watched).await.map_err(PoolError::Outage)
    }

    async fn watch_for_silence(&self) -> Infallible {
        loop {
            let is_silent = self.breaker.received().are_all_silent_for(SUSPICION).await;
            // One asks for all that wait.
            if let (true, Ok(_asking)) = (is_silent, self.asking.try_lock()) {
                self.open_if_silent().await;
            }
        }
    }

    /// Opens the breaker if the server does not answer on a connection in reserve, open or to be opened, nor on any other.
    async fn open_if_silent(&self) {
        // A connection that is handed out has answered.
        let answer = async { while self.reserve.get().await.is_err() {} };
        tokio::select! {
            () = answer => {}
            is_silent = self.breaker.received().are_all_silent_for(ANSWER_LIMIT) => if is_silent {
                self.breaker.open("the server does not answer");
            },
        }
    }

    /// How many connections there are, and are idle, without those in reserve.
    pub fn state(&self) -> bb8::State {
        self.connections.state()
    }
}

#[derive(Clone, Debug)]
struct LogErrors;

impl bb8::ErrorSink<ConnectError> for LogErrors {
    fn sink(&self, error: ConnectError) {
        match error {
            ConnectError::Connect(error) => log::warn!("cannot open a connection to the database: {error}"),
            ConnectError::Outage(error) => log::debug!("cannot open a connection to the database: {error}"),
            ConnectError::Closed => log::debug!("an idle connection to the database is closed"),
        }
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<ConnectError>> {
        Box::new(self.clone())
    }
}
