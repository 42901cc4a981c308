//! What the jobs ask of the tables beside applying events: what is missing, and pruning.

use std::time::Duration;

use super::{Service, ServiceError};
use crate::db::{changes, maintenance};

/// What can be pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prunable {
    /// Failed attempts.
    Failures,
    /// Idempotency rows, but parked ones. Only after the failures: a row with failures is kept.
    Events,
    /// Changes, but each subscription's last one, and such as are yet to be pushed.
    Changes,
}

impl Service {
    /// Those of these events that were never recorded.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn unrecorded(&self, event_ids: Vec<String>) -> Result<Vec<String>, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let mut conn = service.connection().await?;
            Ok(maintenance::unrecorded(&mut conn, &event_ids).await?)
        })
        .await
    }

    /// Deletes at most `limit` rows that were received more than `age` ago, by the database's clock, in a transaction
    /// of their own; returns how many.
    ///
    /// Nothing comes back to life by it, not even where the row was the `last_event_id` of a subscription: what orders
    /// states stands in the subscription's own row (`last_event_created`, `last_event_type`, its status). An event
    /// that came again would be recorded anew, and lose there, or at most tie with itself and show what is shown. And
    /// it does not come again: Stripe retries for three days and lists events for 30.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn prune(&self, what: Prunable, age: Duration, limit: u32) -> Result<usize, ServiceError> {
        let service = self.clone();
        self.on_runtime(async move {
            let mut conn = service.connection().await?;
            let age_secs = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
            Ok(match what {
                Prunable::Failures => maintenance::delete_failures(&mut conn, age_secs, limit.into()).await?,
                Prunable::Events => maintenance::delete_events(&mut conn, age_secs, limit.into()).await?,
                Prunable::Changes => {
                    let is_pushed = service.parts().push.is_some();
                    changes::delete_old(&mut conn, age_secs, is_pushed, limit.into()).await?
                }
            })
        })
        .await
    }
}
