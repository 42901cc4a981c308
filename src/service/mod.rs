//! The service layer: the only place that opens a transaction, and so the only one that can lose or keep an event.
//! It knows nothing of HTTP.

mod accounts;
mod at_once;
mod batch;
mod deliver;
mod drift;
mod entitlement;
mod error;
mod overview;
mod preview;
mod queue;
mod read;
mod replay;
mod search;
mod thin;
mod transaction;
mod upkeep;
mod watched;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

pub use accounts::{AccountChange, Customer, Linked, NewAccount};
pub use deliver::Recorded;
pub use drift::{Comparison, Difference};
pub use entitlement::Entitlement;
pub use error::ServiceError;
pub use overview::{CHART_HOURS, Overview};
pub use read::{AccountView, DatabaseState, EventPage, EventView};
pub use replay::Replayed;
pub use search::{Found, Story};
pub use upkeep::{Prunable, Replayable};

use at_once::Queue;
use transaction::AttemptError;
use writes::Room;

use crate::db::pool::Pool;
use crate::metrics::{Metrics, PoolFigures};
use crate::stripe::{PricePlans, api};

/// What the service is made of; nothing here is read from the environment.
#[derive(Debug)]
pub struct Parts {
    /// Connections to the database.
    pub pool: Pool,
    /// How long an event waits for its turn behind those that came before it, at most.
    pub turn_timeout: Duration,
    /// Stripe's API; `None` without a key, and then nothing calls out.
    pub stripe: Option<api::Client>,
    /// Which price is which plan.
    pub plans: PricePlans,
    /// The statuses that entitle an account.
    pub entitled_statuses: Vec<String>,
    /// Where what happens is counted.
    pub metrics: Arc<Metrics>,
    /// The runtime on which all database work runs.
    pub runtime: Handle,
}

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service {
    parts: Arc<Parts>,
    room: Arc<Room>,
    queue: Arc<Queue>,
}

/// How long one attempt at a transaction may take; in the long way, waiting for a connection included. Longer than the
/// time limits of the session, which catch what the server itself can notice.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(20);

/// How long a read may take, and the question of how the database is.
const READ_LIMIT: Duration = Duration::from_secs(15);
const HEALTH_LIMIT: Duration = Duration::from_secs(5);

impl Service {
    /// A service of these parts.
    pub fn new(parts: Parts) -> Self {
        Self { parts: Arc::new(parts), room: Arc::default(), queue: Arc::default() }
    }

    /// Where what happens is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.parts.metrics
    }

    /// How many connections the pool has, now.
    pub fn pool_figures(&self) -> PoolFigures {
        let state = self.parts.pool.state();
        PoolFigures { in_use: state.connections.saturating_sub(state.idle_connections), idle: state.idle_connections }
    }

    /// Runs what reads on the runtime that owns the connections, for at most `limit`: a database that has stopped
    /// without hanging up would otherwise be waited for without end.
    async fn read<T, F>(&self, limit: Duration, task: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let limited = async move {
            tokio::time::timeout(limit, task).await.unwrap_or_else(|_| Err(AttemptError::TimedOut.into()))
        };
        self.on_runtime(limited).await
    }

    /// Runs `task` on the runtime that owns the connections, since the workers of the HTTP server end before it.
    /// Dropping the returned future aborts the task, and with it an open transaction and its connection. What was
    /// committing commits.
    async fn on_runtime<T, F>(&self, task: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        tasks.spawn_on(task, &self.parts.runtime);
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(ServiceError::Failed(anyhow::Error::new(error).context("the task died"))),
            None => Err(ServiceError::Failed(anyhow::anyhow!("the task vanished"))),
        }
    }
}
