//! The pool of connections.

use std::time::Duration;

use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, PoolError, RecyclingMethod, bb8};
use futures_util::FutureExt;

use super::connect::Target;
use super::sent;

/// The pool.
pub type Pool = bb8::Pool<AsyncPgConnection>;

/// A connection that goes back to the pool when it is dropped, unless it is closed or in a transaction.
pub type Pooled = bb8::PooledConnection<'static, AsyncPgConnection>;

/// Why the pool gave no connection.
pub type PoolGetError = bb8::RunError;

/// A pool of at most `size` connections, each waited for at most `timeout`. Opens none yet.
pub fn build(target: Target, size: u32, timeout: Duration) -> Pool {
    // A round trip less a checkout. A connection that has died since is noticed by its first use, which is retried.
    build_recycling(target, size, timeout, RecyclingMethod::Fast)
}

/// Connections beside the pool, for health checks and sessions of admins: deliveries that wait for locks cannot take
/// them, and whoever asks for these cannot keep deliveries waiting. Each is tested before it is handed out.
pub fn build_reserve(target: Target, timeout: Duration) -> Pool {
    const SIZE: u32 = 2;
    build_recycling(target, SIZE, timeout, RecyclingMethod::Verified)
}

fn build_recycling(target: Target, size: u32, timeout: Duration, method: RecyclingMethod<AsyncPgConnection>) -> Pool {
    let mut config = ManagerConfig::default();
    config.recycling_method = method;
    config.custom_setup = Box::new(move |_| {
        let target = target.clone();
        async move {
            let mut conn = target.connect().await?;
            sent::watch(&mut conn);
            Ok(conn)
        }
        .boxed()
    });
    let manager = AsyncDieselConnectionManager::<AsyncPgConnection>::new_with_config("", config);
    Pool::builder().max_size(size).connection_timeout(timeout).error_sink(Box::new(LogErrors)).build_unchecked(manager)
}

#[derive(Clone, Debug)]
struct LogErrors;

impl ::bb8::ErrorSink<PoolError> for LogErrors {
    fn sink(&self, error: PoolError) {
        log::warn!("cannot open a connection to the database: {error}");
    }

    fn boxed_clone(&self) -> Box<dyn ::bb8::ErrorSink<PoolError>> {
        Box::new(self.clone())
    }
}
