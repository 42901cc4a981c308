//! The service layer: the only place that opens a transaction, and so the only one that can lose or keep an event.
//! It knows nothing of HTTP.

mod accounts;
mod apply;
mod backfill;
mod changes;
pub mod doctor;
mod drift;
mod entitlement;
mod erase;
mod error;
mod fill_columns;
mod group_commit;
mod health;
mod history;
pub mod in_order;
mod items;
mod maintenance;
mod overview;
pub mod page_reader;
mod parked;
mod push;
mod read;
pub mod reconcile;
mod reconciler;
mod replay;
mod report;
pub mod retry;
mod search;
mod sessions;
mod thin;
mod turns;
mod writes;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use uuid::Uuid;

pub use accounts::{AccountChange, Customer, Linked, NewAccount, Unlinked, Unlinking};
pub use apply::Recorded;
pub use changes::{ChangePage, ChangeReader};
pub use doctor::{Check, Finding, Findings};
pub use drift::{Comparison, Difference};
pub use erase::Erased;
pub use error::ServiceError;
pub use health::DatabaseState;
pub use maintenance::Prunable;
pub use overview::{CHART_DAYS, CHART_HOURS, COUNT_LIMIT, LAG_EVENTS, Overview};
pub use push::{PendingChanges, Push};
pub use read::{AccountPage, AccountView, EventPage, EventView};
pub use reconciler::Reconciler;
pub use replay::{Replayable, Replayed, Selection};
pub use search::{Found, ITEM_SEARCH_DEPTH, MAX_NAMED_ACCOUNTS, NAME_SEARCH_DEPTH, Story};
pub use sessions::SessionId;

pub use crate::db::maintenance::Candidate;

use error::AttemptError;
use group_commit::GroupCommit;
use health::LastCheck;
use parked::{FailedParked, Sweep};
use turns::Turns;
use writes::Room;

use crate::db::accounts::NewLinks;
use crate::db::parked::Awaited;
use crate::db::pool::Pool;
use crate::handlers::{Handle as HandleEvent, Policy};
use crate::metrics::{Metrics, PoolFigures};
use crate::stripe::api;
use crate::stripe::redact::StoredPayloads;

/// What the service is made of; nothing here is read from the environment.
pub struct Parts {
    /// Connections to the database.
    pub pool: Pool,
    /// How many there are at most, without those in reserve for health checks and admins' sessions.
    pub pool_size: u32,
    /// How long an event waits in the queue behind those that came before it, at most.
    pub queue_timeout: Duration,
    /// Stripe's API; `None` without a key, and then nothing calls out.
    pub stripe: Option<api::Client>,
    /// Which events act, and how.
    pub policy: Policy,
    /// What handles events.
    pub handlers: Arc<dyn HandleEvent>,
    /// Where changes are pushed; `None` without `CHANGES_URL`.
    pub push: Option<Push>,
    /// How often the server reconciles by itself; `None` if it does not.
    pub reconcile_every: Option<Duration>,
    /// The form in which payloads are stored.
    pub stored_payloads: StoredPayloads,
    /// Where what happens is counted.
    pub metrics: Arc<Metrics>,
    /// The runtime on which all database work runs.
    pub runtime: Handle,
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    room: Room,
    group_commit: GroupCommit,
    turns: Turns,
    /// What parked events may wait for, and could not be looked for; the next sweep does.
    unreleased: Mutex<HashSet<Awaited>>,
    /// Whether [`Service::start_sweep`] was called.
    has_sweeps: AtomicBool,
    /// Parked events that failed.
    failed_parked: Mutex<HashMap<String, FailedParked>>,
    /// What sweeps have started and is still running.
    running_sweeps: Mutex<HashSet<Sweep>>,
    /// Parked events that are being tried.
    tried_parked: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// The marks of new links whose release has begun, by account.
    released_marks: Mutex<HashMap<Uuid, NewLinks>>,
    finished_hours: overview::FinishedHours,
    shared_overview: overview::SharedOverview,
    feed: changes::Feed,
    health: LastCheck,
    findings: doctor::LastFindings,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service(…)")
    }
}

/// How long one attempt at a transaction may take, waiting for a connection included. Longer than the
/// time limits of the session, which catch what the server itself can notice.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(20);

/// How long a read may take, and the question of how the database is.
const READ_LIMIT: Duration = Duration::from_secs(15);
const HEALTH_LIMIT: Duration = Duration::from_secs(5);

impl Service {
    /// A service of these parts.
    pub fn new(parts: Parts) -> Self {
        let (group_commit, receivers) = GroupCommit::new();
        let turns = Turns::new(parts.pool_size);
        let runtime = parts.runtime.clone();
        let inner = Arc::new(Inner {
            parts,
            room: Room::default(),
            group_commit,
            turns,
            unreleased: Mutex::default(),
            has_sweeps: AtomicBool::new(false),
            failed_parked: Mutex::default(),
            running_sweeps: Mutex::default(),
            tried_parked: Mutex::default(),
            released_marks: Mutex::default(),
            finished_hours: Default::default(),
            shared_overview: Default::default(),
            feed: Default::default(),
            health: LastCheck::default(),
            findings: Default::default(),
        });
        // Weak: the workers end when the service is dropped.
        let weak = Arc::downgrade(&inner);
        receivers.start(&runtime, move |batch| {
            let service = weak.upgrade().map(|inner| Self { inner });
            async move {
                if let Some(service) = service {
                    service.apply_batch(batch).await;
                }
            }
        });
        Self { inner }
    }

    fn parts(&self) -> &Parts {
        &self.inner.parts
    }

    /// Where what happens is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.parts().metrics
    }

    /// How many connections the pool has, now.
    pub fn pool_figures(&self) -> PoolFigures {
        let state = self.parts().pool.state();
        PoolFigures { in_use: state.connections.saturating_sub(state.idle_connections), idle: state.idle_connections }
    }

    /// Runs what reads on the runtime that owns the connections, for at most `limit`: a database that has stopped
    /// without hanging up would otherwise be waited for without end.
    async fn read<T, F>(&self, limit: Duration, task: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let service = self.clone();
        self.on_runtime(async move { service.within(limit, task).await }).await
    }

    /// Runs `task`, which uses the database, for at most `limit`, and not into an outage of the database.
    fn within<T, E>(
        &self,
        limit: Duration,
        task: impl Future<Output = Result<T, E>>,
    ) -> impl Future<Output = Result<T, E>>
    where
        E: From<AttemptError>,
    {
        // Boxed: the futures around it would each be as large, more than once.
        let limited = tokio::time::timeout(limit, Box::pin(task));
        async move {
            match self.parts().pool.until_outage(limited).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(AttemptError::TimedOut.into()),
                Err(outage) => Err(AttemptError::GivenUp(outage).into()),
            }
        }
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
        tasks.spawn_on(error::classified(task), &self.parts().runtime);
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(error)) => Err(error.into()),
            None => Err(ServiceError::Failed(anyhow::anyhow!("the task vanished"))),
        }
    }
}
