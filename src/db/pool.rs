//! The pool of connections.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bb8::ManageConnection;
use diesel::result::ConnectionError;
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use thiserror::Error;

use super::connect::Target;
use super::sqlstate::{Driver, FirstError};

/// The pool.
pub type Pool = bb8::Pool<Manager>;

/// A connection that goes back to the pool when it is dropped, unless it is closed or in a transaction.
pub type Pooled = bb8::PooledConnection<'static, Manager>;

/// Why the pool gave no connection.
pub type PoolGetError = bb8::RunError<ConnectError>;

/// Why a connection could not be opened, or was not good enough to be handed out.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// It could not be opened.
    #[error("{0}")]
    Connect(#[from] ConnectionError),
    /// It was opened before a connection of this pool was found closed.
    #[error("the connection is closed, or may be")]
    Closed,
}

/// Opens and checks the pool's connections.
#[derive(Clone, Debug)]
pub struct Manager {
    target: Target,
    /// Grows each time a connection is found closed; older connections are not handed out any more. A restarted
    /// database closes all of them, and each would otherwise fail one request.
    generation: Arc<AtomicU64>,
    /// Whether each connection is tested with a round trip before it is handed out.
    is_tested: bool,
}

/// A connection of the pool.
pub struct Connection {
    conn: AsyncPgConnection,
    first_error: FirstError,
    _driver: Driver,
    generation: u64,
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
        let generation = self.generation.load(Ordering::Relaxed);
        let first_error = FirstError::default();
        let (conn, driver) = self.target.connect_watched(&first_error).await?;
        Ok(Connection { conn, first_error, _driver: driver, generation, current: self.generation.clone() })
    }

    async fn is_valid(&self, conn: &mut Connection) -> Result<(), ConnectError> {
        let is_closed = conn.is_retired()
            || conn.conn.is_broken()
            || (self.is_tested && conn.conn.batch_execute("SELECT 1").await.is_err());
        if is_closed { Err(ConnectError::Closed) } else { Ok(()) }
    }

    fn has_broken(&self, conn: &mut Connection) -> bool {
        std::thread::panicking() || conn.is_retired() || conn.conn.is_broken()
    }
}

/// A pool of at most `size` connections, each waited for at most `timeout`. Opens none yet.
pub fn build(target: Target, size: u32, timeout: Duration) -> Pool {
    build_with(target, size, timeout, false)
}

/// Connections beside the pool, for health checks and sessions of admins: deliveries that wait for locks cannot take
/// them, and whoever asks for these cannot keep deliveries waiting. Each is tested before it is handed out.
pub fn build_reserve(target: Target, timeout: Duration) -> Pool {
    const SIZE: u32 = 2;
    build_with(target, SIZE, timeout, true)
}

fn build_with(target: Target, size: u32, timeout: Duration, is_tested: bool) -> Pool {
    let manager = Manager { target, generation: Arc::default(), is_tested };
    Pool::builder().max_size(size).connection_timeout(timeout).error_sink(Box::new(LogErrors)).build_unchecked(manager)
}

#[derive(Clone, Debug)]
struct LogErrors;

impl bb8::ErrorSink<ConnectError> for LogErrors {
    fn sink(&self, error: ConnectError) {
        match error {
            ConnectError::Connect(error) => log::warn!("cannot open a connection to the database: {error}"),
            ConnectError::Closed => log::debug!("an idle connection to the database is closed"),
        }
    }

    fn boxed_clone(&self) -> Box<dyn bb8::ErrorSink<ConnectError>> {
        Box::new(self.clone())
    }
}
