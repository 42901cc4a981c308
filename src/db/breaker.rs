//! A circuit breaker: while the database is out of reach, requests for a connection fail at once instead of waiting.
//!
//! It opens if connecting fails while no open session receives anything from the server, and closes as soon as an attempt
//! in the background succeeds. Sessions that wait for locks do not open it, because connecting succeeds meanwhile.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::connect::Target;
use super::sqlstate::{FirstError, Received, ServerError};

/// How long no session may have received anything after connecting failed. A server that is merely busy may refuse one
/// connection and answer on others.
const SILENCE: Duration = Duration::from_millis(200);

/// The pause between two attempts of which the first has failed.
const PAUSE: Duration = Duration::from_millis(75);

/// How long a request waits for the end of an outage before it is refused. Longer than the pause, so that the first request
/// after a restart of the database succeeds.
const GRACE: Duration = Duration::from_millis(200);

/// How long an attempt may take before another is started beside it: the first may wait for a host that is gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// The breaker that all pools of one database share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Breaker(Arc<Inner>);

struct Inner {
    target: Target,
    /// Grows when the open connections are not to be used any more.
    generation: Arc<AtomicU64>,
    received: Received,
    state: watch::Sender<State>,
    /// How many requests were refused during this outage.
    refused: AtomicU64,
}

struct State {
    /// How many outages have begun. It tells an attempt of an outage that has ended before the attempt noticed.
    outages: u64,
    cause: Arc<str>,
    /// When the outage began; `None` if there is none.
    since: Option<Instant>,
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker").field("target", &self.0.target).finish_non_exhaustive()
    }
}

impl Breaker {
    pub(super) fn new(target: Target) -> Self {
        let state = State { outages: 0, cause: "".into(), since: None };
        let state = watch::Sender::new(state);
        Self(Arc::new(Inner {
            target,
            generation: Arc::default(),
            received: Received::default(),
            state,
            refused: AtomicU64::new(0),
        }))
    }

    pub(super) fn target(&self) -> &Target {
        &self.0.target
    }

    /// Grows when the open connections are not to be used any more.
    pub(super) fn generation(&self) -> &Arc<AtomicU64> {
        &self.0.generation
    }

    /// What the sessions of all pools have received.
    pub(super) fn received(&self) -> &Received {
        &self.0.received
    }

    /// Waits a moment for the end of an outage, if there is one.
    ///
    /// # Errors
    /// The cause of the outage, which goes on.
    pub(super) async fn refuse_if_open(&self) -> Result<(), Arc<str>> {
        if !self.is_open() {
            return Ok(());
        }
        let mut state = self.0.state.subscribe();
        if timeout(GRACE, state.wait_for(|state| state.since.is_none())).await.is_ok() {
            return Ok(());
        }
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        Err(self.0.state.borrow().cause.clone())
    }

    /// Runs `task` until an outage begins.
    ///
    /// # Errors
    /// The cause of the outage, which ended the task.
    pub(super) async fn until_outage<T>(&self, task: impl Future<Output = T>) -> Result<T, Arc<str>> {
        let mut state = self.0.state.subscribe();
        let seen = state.borrow().outages;
        tokio::select! {
            biased;
            result = task => Ok(result),
            begun = state.wait_for(|state| state.outages > seen) => {
                Err(begun.map_or_else(|_| "the pool is closed".into(), |state| state.cause.clone()))
            }
        }
    }

    /// Connecting failed. Returns whether an outage has begun, or goes on.
    pub(super) async fn connecting_failed(&self, cause: &str, server: Option<&ServerError>) -> bool {
        if self.is_open() {
            return true;
        }
        if server.is_some_and(|server| !is_outage(server.state.as_str())) {
            return false;
        }
        let is_silent = self.0.received.are_open_silent_for(SILENCE).await;
        if is_silent {
            self.open(cause);
        }
        is_silent
    }

    /// Opens the breaker, unless it is open.
    pub(super) fn open(&self, cause: &str) {
        let has_opened = self.0.state.send_if_modified(|state| {
            if state.since.is_some() {
                return false;
            }
            *state = State { outages: state.outages + 1, cause: cause.into(), since: Some(Instant::now()) };
            true
        });
        if has_opened {
            self.0.refused.store(0, Ordering::Relaxed);
            self.0.generation.fetch_add(1, Ordering::Relaxed);
            log::error!("the database is out of reach, requests are refused until it answers: {cause}");
            tokio::spawn(probe(Arc::downgrade(&self.0)));
        }
    }

    fn is_open(&self) -> bool {
        self.0.state.borrow().since.is_some()
    }
}

impl Inner {
    fn close(&self) {
        self.state.send_modify(|state| {
            let Some(since) = state.since.take() else { return };
            let (secs, refused) = (since.elapsed().as_secs_f64(), self.refused.load(Ordering::Relaxed));
            log::info!(
                "the database answers again after {secs:.1} s, in which {refused} requests for a connection were \
                 refused; the cause was: {}",
                state.cause
            );
        });
    }
}

/// Connects until it succeeds, and closes the breaker. Ends with the breaker.
async fn probe(breaker: Weak<Inner>) {
    let mut attempts = JoinSet::new();
    while let Some(inner) = breaker.upgrade() {
        let target = inner.target.clone();
        drop(inner);
        attempts.spawn(async move { target.connect_watched(&FirstError::default()).await.is_ok() });
        let has_succeeded = async {
            while let Some(attempt) = attempts.join_next().await {
                if matches!(attempt, Ok(true)) {
                    return true;
                }
            }
            false
        };
        match timeout(PATIENCE, has_succeeded).await {
            Ok(true) => {
                breaker.upgrade().inspect(|inner| inner.close());
                return;
            }
            Ok(false) => sleep(PAUSE).await,
            Err(_) => {}
        }
    }
}

/// Whether a server that refuses a connection with this SQLSTATE serves nobody. Others concern this connection alone:
/// too many of them, a wrong password.
fn is_outage(sqlstate: &str) -> bool {
    // admin_shutdown, crash_shutdown, cannot_connect_now; connection exceptions, with which a pooler reports that it
    // cannot reach the server.
    matches!(sqlstate, "57P01" | "57P02" | "57P03") || sqlstate.starts_with("08")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_serves_nobody_begins_an_outage() {
        for (state, begins) in [
            ("57P01", true),
            ("57P03", true),
            ("08006", true),
            ("08P01", true),
            ("53300", false),
            ("28P01", false),
            ("3D000", false),
            ("55000", false),
        ] {
            assert_eq!(is_outage(state), begins, "{state}");
        }
    }
}
