//! The background job that keeps the columns for lookups up to date: fills `stripe_events.object_id` of events that a
//! former version recorded, and closes failures of events that were recorded since.
//!
//! Small batches, each in a transaction of its own, with pauses between them: deliveries go first. Replicas may run it
//! at the same time; they skip the rows that another one has locked.

use std::time::Duration;

use super::{READ_LIMIT, Service, ServiceError};
use crate::db::failures::SweepPosition;
use crate::db::{failures, search};

/// The events of a batch; each is written.
const EVENTS: i64 = 500;

/// The failures of a batch; few of them are written.
const FAILURES: i64 = 2_000;

/// The pause after a batch that left more to do.
const SHORT_PAUSE: Duration = Duration::from_millis(50);

/// The pause after a batch that found nothing to do.
const LONG_PAUSE: Duration = Duration::from_secs(5);

/// Where the job stands.
#[derive(Clone, Debug, Default)]
struct Position {
    /// The last event whose `object_id` was filled.
    filled: Option<String>,
    /// The last open failure that was read.
    swept: Option<SweepPosition>,
}

impl Service {
    /// Runs the job for as long as the returned future is polled. Errors are logged, and the batch is tried again.
    pub async fn backfill(self) {
        let mut position = Position::default();
        let mut pause = LONG_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.backfill_batch(&mut position).await {
                Ok(true) => SHORT_PAUSE,
                Ok(false) => LONG_PAUSE,
                Err(error) => {
                    log::debug!("backfill: {}", error.chain());
                    LONG_PAUSE
                }
            };
        }
    }

    /// Runs one batch of both parts. Returns whether there is more to do.
    async fn backfill_batch(&self, position: &mut Position) -> Result<bool, ServiceError> {
        let (service, mut now) = (self.clone(), position.clone());
        let (after, has_more) = self
            .read(READ_LIMIT, async move {
                let mut conn = service.connection().await?;
                let filled = search::fill_object_ids(&mut conn, now.filled.as_deref(), EVENTS).await?;
                // Starts over at the end: an older version may be running beside this one.
                let is_filling = !filled.is_empty();
                now.filled = filled.into_iter().next_back();
                let swept = failures::sweep(&mut conn, now.swept.as_ref(), FAILURES).await?;
                now.swept = swept.last_failed_at.zip(swept.last_event_id).filter(|_| swept.read == FAILURES);
                Ok((now, is_filling || swept.closed > 0))
            })
            .await?;
        *position = after;
        Ok(has_more)
    }
}
