//! Starts the private PostgreSQL again after it has died.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinHandle;

use super::PrivatePostgres;

/// How often the server process is looked at.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// The pause before the first restart; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How many restarts in a row are tried: with the pauses between them, for about half a minute.
const MAX_RESTARTS: u32 = 6;

/// A server that has run for so long counts as healthy: the restarts before it no longer count.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// A private PostgreSQL with a thread that starts it again after it has died.
#[derive(Debug)]
pub struct Supervised {
    /// Dropping it stops the server.
    stop: Sender<()>,
    thread: JoinHandle<Result<()>>,
    outcome: Option<Result<()>>,
}

impl PrivatePostgres {
    /// Hands the server to a thread that starts it again after it has died. Needs a tokio runtime.
    pub fn supervise(self) -> Supervised {
        let (stop, stopped) = mpsc::channel();
        let thread = tokio::task::spawn_blocking(move || run(self, &stopped));
        Supervised { stop, thread, outcome: None }
    }
}

impl Supervised {
    /// Ends when the supervisor has given up on restarting the server, and never otherwise.
    pub async fn given_up(&mut self) {
        if self.outcome.is_none() {
            let joined = (&mut self.thread).await;
            self.outcome = Some(joined.context("the supervisor of the private PostgreSQL panicked").flatten());
        }
    }

    /// Stops the server and waits for its end.
    ///
    /// # Errors
    /// If the server could not be restarted before, or does not stop.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.stop);
        match self.outcome.take() {
            Some(outcome) => outcome,
            None => self.thread.await.context("the supervisor of the private PostgreSQL panicked")?,
        }
    }
}

/// Watches the server until it is told to stop.
fn run(mut postgres: PrivatePostgres, stopped: &Receiver<()>) -> Result<()> {
    let mut restarts = 0;
    let mut started = Instant::now();
    while !is_stopped_within(CHECK_INTERVAL, stopped) {
        if postgres.is_running() {
            continue;
        }
        let log = postgres.log_path().display().to_string();
        log::error!("the private PostgreSQL has died; its log is {log}");
        if started.elapsed() >= HEALTHY_AFTER {
            restarts = 0;
        }
        loop {
            if restarts == MAX_RESTARTS {
                bail!("gave up on the private PostgreSQL after {MAX_RESTARTS} restarts; its log is {log}");
            }
            if is_stopped_within(FIRST_PAUSE * 2_u32.pow(restarts), stopped) {
                return postgres.stop();
            }
            restarts += 1;
            match postgres.restart() {
                Ok(()) => break,
                Err(error) => log::error!("cannot restart the private PostgreSQL: {error:#}"),
            }
        }
        started = Instant::now();
        log::warn!("restarted the private PostgreSQL");
    }
    postgres.stop()
}

fn is_stopped_within(pause: Duration, stopped: &Receiver<()>) -> bool {
    stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout)
}
