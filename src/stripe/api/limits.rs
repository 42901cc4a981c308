//! Limits the calls to Stripe's API: how many run at a time, how many start in a second, and how many wait. A call over
//! the limit is refused, so that a delivery is answered in time and Stripe delivers it again later.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::ApiError;

/// Calls that run at a time.
const MAX_CONCURRENT: usize = 16;

/// The longest that a call waits to start. A delivery has 15 s for all of its calls.
const MAX_WAIT: Duration = Duration::from_secs(5);

pub(super) type Permit = OwnedSemaphorePermit;

#[derive(Debug)]
pub(super) struct Limits {
    concurrent: Arc<Semaphore>,
    /// The time between two calls.
    interval: Duration,
    /// How far calls may run ahead of the interval after a quiet time.
    burst: Duration,
    /// When the next call may start.
    next: Mutex<Instant>,
    waiting: AtomicUsize,
    max_waiting: usize,
}

impl Limits {
    pub(super) fn per_second(rate: u32) -> Self {
        let rate = rate.max(1);
        let interval = Duration::from_secs(1) / rate;
        let max_waiting = usize::try_from(u64::from(rate) * MAX_WAIT.as_secs()).unwrap_or(usize::MAX);
        Self {
            concurrent: Arc::new(Semaphore::new(MAX_CONCURRENT)),
            interval,
            burst: interval * (rate / 5),
            next: Mutex::new(Instant::now()),
            waiting: AtomicUsize::new(0),
            max_waiting,
        }
    }

    /// Waits until a call may start. The permit is held until the call has ended.
    pub(super) async fn admit(&self) -> Result<Permit, ApiError> {
        let _waiting = Waiter::join(&self.waiting, self.max_waiting).ok_or(ApiError::Busy)?;
        let admitted = async {
            let permit = self.concurrent.clone().acquire_owned().await;
            tokio::time::sleep_until(self.slot()).await;
            permit
        };
        match tokio::time::timeout(MAX_WAIT, admitted).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(ApiError::Busy),
        }
    }

    /// Takes the next time at which a call may start.
    fn slot(&self) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let earliest = now.checked_sub(self.burst).unwrap_or(now);
        let slot = (*next).max(earliest);
        *next = slot + self.interval;
        slot
    }
}

/// One call that waits.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn join(waiting: &'a AtomicUsize, max: usize) -> Option<Self> {
        if waiting.fetch_add(1, Ordering::Relaxed) < max {
            return Some(Self(waiting));
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_start_at_the_rate_after_a_small_burst() {
        let limits = Limits::per_second(20);
        tokio::time::advance(Duration::from_secs(60)).await;
        let began = Instant::now();
        for _ in 0..44 {
            drop(limits.admit().await.unwrap());
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(1_900) && took <= Duration::from_millis(2_200), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_cannot_start_in_time_is_refused() {
        let limits = Limits::per_second(2);
        let began = Instant::now();
        let admitted = join_all((0..40).map(|_| limits.admit())).await;
        assert!(began.elapsed() <= MAX_WAIT, "{:?}", began.elapsed());
        let refused = admitted.iter().filter(|admitted| admitted.is_err()).count();
        assert!((29..=31).contains(&refused), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_so_many_run_at_a_time() {
        let limits = Limits::per_second(10_000);
        let running = join_all((0..MAX_CONCURRENT).map(|_| limits.admit())).await;
        assert!(running.iter().all(Result::is_ok));
        assert!(limits.admit().await.is_err());
        drop(running);
        assert!(limits.admit().await.is_ok());
    }
}
