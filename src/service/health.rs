//! Whether the database can record events. Calls within one second share one check.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::{HEALTH_LIMIT, Service};
use crate::db::migrations;

/// How long the result of a check is used again.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// The state of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseState {
    /// It answers, and the migrations have run.
    Ok,
    /// It answers, but a migration is pending.
    MigrationPending,
    /// It answers, but takes no writes: it is read-only, or its disk is full.
    Unwritable,
    /// It does not answer.
    Away,
}

/// The result of the last check, and when the check ended. Locked while a check runs: others wait for its result.
#[derive(Debug, Default)]
pub(super) struct LastCheck(Mutex<Option<(Instant, DatabaseState)>>);

impl Service {
    /// The state of the database, as of at most a second ago.
    ///
    /// The check has a connection of its own: deliveries that use up the pool while they wait for locks do not make
    /// the database unhealthy.
    pub async fn database_state(&self) -> DatabaseState {
        let mut last = self.inner.health.0.lock().await;
        if let Some((at, state)) = *last
            && at.elapsed() < SHARED_FOR
        {
            return state;
        }
        let state = self.check_database().await;
        *last = Some((Instant::now(), state));
        state
    }

    async fn check_database(&self) -> DatabaseState {
        let service = self.clone();
        let check = self.read(HEALTH_LIMIT, async move {
            let mut conn = service.reserve_connection().await?;
            if migrations::is_pending(&mut conn).await? {
                return Ok(DatabaseState::MigrationPending);
            }
            let takes_writes = service.takes_writes(&mut conn).await?;
            Ok(if takes_writes { DatabaseState::Ok } else { DatabaseState::Unwritable })
        });
        match check.await {
            Ok(state) => state,
            Err(error) => {
                log::log!(error.log_level(log::Level::Warn), "health check failed: {}", error.chain());
                DatabaseState::Away
            }
        }
    }
}
