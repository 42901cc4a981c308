//! Pauses after 429: the call that Stripe turned away waits before it is made again, and no other. A 429 is often about one
//! object that is locked, or about one connected account.
//!
//! Source: <https://docs.stripe.com/rate-limits>.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Scope;

/// The longest pause. A caller that repeats its call follows the whole `Retry-After` by itself; a delivery has 15 s for all
/// of its calls.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The pause after a 429 without `Retry-After`.
const DEFAULT_PAUSE: Duration = Duration::from_millis(500);

/// What is read, and on whose behalf.
pub(super) type Target = (Scope, Vec<String>);

/// The target of a call.
pub(super) fn target(scope: &Scope, path: &[&str]) -> Target {
    (scope.clone(), path.iter().map(|&segment| segment.to_owned()).collect())
}

/// When the pauses end.
#[derive(Debug, Default)]
pub(super) struct Pauses(Mutex<HashMap<Target, Instant>>);

impl Pauses {
    /// Lets no call of this target start before the pause that Stripe asked for has passed.
    pub(super) fn begin(&self, target: Target, retry_after: Option<Duration>) {
        let now = Instant::now();
        let end = now + retry_after.unwrap_or(DEFAULT_PAUSE).min(LONGEST_PAUSE);
        let mut pauses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.retain(|_, end| *end > now);
        pauses.entry(target).and_modify(|known| *known = end.max(*known)).or_insert(end);
    }

    /// Waits for the end of the target's pause, if there is one.
    pub(super) async fn wait(&self, target: &Target) {
        let end = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(target).copied();
        if let Some(end) = end {
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_429_holds_up_the_calls_of_its_target_within_bounds_and_no_others() {
        let concerned = target(&Scope::Own, &["v1", "subscriptions", "sub_1"]);
        let others = [
            target(&Scope::Own, &["v1", "subscriptions", "sub_2"]),
            target(&Scope::Account("acct_1".to_owned()), &["v1", "subscriptions", "sub_1"]),
        ];
        for (retry_after, pause) in [(Some(1), 1_000), (Some(3_600), 2_000), (None, 500)] {
            let pauses = Pauses::default();
            pauses.begin(concerned.clone(), retry_after.map(Duration::from_secs));
            let began = Instant::now();
            for other in &others {
                pauses.wait(other).await;
            }
            assert_eq!(began.elapsed().as_millis(), 0);
            pauses.wait(&concerned).await;
            assert_eq!(began.elapsed().as_millis(), pause);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_that_have_ended_are_forgotten() {
        let pauses = Pauses::default();
        for n in 0..100 {
            pauses.begin(target(&Scope::Own, &[&n.to_string()]), None);
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(pauses.0.lock().unwrap().len() <= 6);
    }
}
