//! Group commit: queues events and applies them in batches that share one COMMIT.
//!
//! Two workers, each with a queue of its own. A subscription always goes to the same worker, so that its events are never
//! in two batches of this server at once. A worker receives one event, takes what else is queued, applies the batch, and goes on. What is
//! queued grows with the load, and with it the batch; a lone event does not wait.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::Recorded;
use super::error::{AttemptError, ServiceError};
use crate::handlers::Submission;

/// While one worker waits for the disk, the other keeps PostgreSQL busy.
const WORKERS: usize = 2;

/// How many events share a transaction at most: their rows are locked until the last of them is done.
const MAX_BATCH: usize = 32;

/// An event in the queue.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) submission: Submission,
    pub(super) answer: oneshot::Sender<Result<Recorded, ServiceError>>,
    claimed: Arc<AtomicBool>,
}

impl Entry {
    /// Takes the event out of the queue; `false` if its submitter has given up, or is gone.
    pub(super) fn claim(&self) -> bool {
        !self.answer.is_closed() && !self.claimed.swap(true, Ordering::AcqRel)
    }
}

/// The queues of the workers. The workers end when it is dropped.
#[derive(Debug)]
pub(super) struct GroupCommit {
    queues: Vec<mpsc::UnboundedSender<Entry>>,
}

/// The ends of the queues from which workers receive.
#[derive(Debug)]
pub(super) struct Receivers(Vec<mpsc::UnboundedReceiver<Entry>>);

impl GroupCommit {
    pub(super) fn new() -> (Self, Receivers) {
        let (queues, receivers) = (0..WORKERS).map(|_| mpsc::unbounded_channel()).unzip();
        (Self { queues }, Receivers(receivers))
    }

    /// Queues an event and waits until it is applied. `queue_timeout` bounds the time in the queue.
    ///
    /// # Errors
    /// The outer error: there was no attempt that ended, because no worker took the event in time, or because of a panic.
    pub(super) async fn submit(
        &self,
        submission: Submission,
        queue_timeout: Duration,
    ) -> Result<Result<Recorded, ServiceError>, AttemptError> {
        let (answer, mut answered) = oneshot::channel();
        let claimed = Arc::new(AtomicBool::new(false));
        let queue = self.queue_of(&submission);
        let entry = Entry { submission, answer, claimed: claimed.clone() };
        if queue.is_none_or(|queue| queue.send(entry).is_err()) {
            return Err(AttemptError::Panicked);
        }
        let result = match tokio::time::timeout(queue_timeout, &mut answered).await {
            Ok(result) => result,
            // A worker may claim the event at this moment. The first claim counts.
            Err(_) if !claimed.swap(true, Ordering::AcqRel) => return Err(AttemptError::Queue),
            Err(_) => answered.await,
        };
        result.map_err(|_| AttemptError::Panicked)
    }

    fn queue_of(&self, submission: &Submission) -> Option<&mpsc::UnboundedSender<Entry>> {
        let event = &submission.event;
        let mut hasher = DefaultHasher::new();
        event.subscription_id.as_ref().unwrap_or(&event.id).hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % WORKERS as u64).ok()?;
        self.queues.get(index)
    }
}

impl Receivers {
    /// Starts the workers. `apply` is given each batch, and answers its entries.
    pub(super) fn start<F, Fut>(self, runtime: &Handle, apply: F)
    where
        F: Fn(Vec<Entry>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send,
    {
        for mut queue in self.0 {
            let apply = apply.clone();
            runtime.spawn(async move {
                let mut batch = Vec::new();
                while queue.recv_many(&mut batch, MAX_BATCH).await > 0 {
                    // A panic must not end the worker. The events' submitters learn of it, since their answers are dropped.
                    let applied = AssertUnwindSafe(apply(std::mem::take(&mut batch))).catch_unwind().await;
                    if applied.is_err() {
                        log::error!("applying a batch of events panicked");
                    }
                }
            });
        }
    }
}
