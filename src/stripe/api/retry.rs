//! Retries transient API errors with exponential backoff, for jobs. A delivery is answered 503 instead, and Stripe
//! delivers it again.
//!
//! Source: <https://docs.stripe.com/rate-limits#handling-limiting-gracefully>.

use std::time::Duration;

use rand::RngExt;
use reqwest::StatusCode;

use super::ApiError;

/// How often a call is made again.
const MAX_RETRIES: u32 = 6;

/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest that Stripe's own `Retry-After` is followed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Makes a call, and repeats it after 429, 5xx and failures of the transport: for half a minute in all, or longer if
/// Stripe asks for it.
pub(super) async fn with_retries<T, F>(call: impl Fn() -> F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let mut retries = 0;
    loop {
        match call().await {
            Err(error) if retries < MAX_RETRIES && is_transient(&error) => {
                let pause = pause(retries, &error, rand::rng().random_range(0.5..=1.0));
                retries += 1;
                log::debug!("repeating a call to Stripe's API in {pause:?}: {:#}", anyhow::Error::from(error));
                tokio::time::sleep(pause).await;
            }
            result => return result,
        }
    }
}

fn is_transient(error: &ApiError) -> bool {
    match error {
        ApiError::Transport(_) | ApiError::Busy => true,
        ApiError::Status { status, .. } => *status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error(),
        _ => false,
    }
}

/// `jitter` is a share of the pause: callers that were turned away together must not come back together.
fn pause(retries: u32, error: &ApiError, jitter: f64) -> Duration {
    let asked_for = match error {
        ApiError::Status { retry_after, .. } => retry_after.unwrap_or_default().min(LONGEST_PAUSE),
        _ => Duration::ZERO,
    };
    (FIRST_PAUSE * 2_u32.pow(retries)).mul_f64(jitter).max(asked_for)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<u64>) -> ApiError {
        ApiError::Status {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn only_transient_errors_are_retried() {
        for transient in [429, 500, 502, 503] {
            assert!(is_transient(&status(transient, None)), "{transient}");
        }
        for lasting in [400, 401, 403, 404] {
            assert!(!is_transient(&status(lasting, None)), "{lasting}");
        }
    }

    #[test]
    fn pauses_double_and_retry_after_is_followed_within_bounds() {
        let pauses: Vec<_> = (0..3).map(|retries| pause(retries, &status(500, None), 1.0).as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000]);
        assert_eq!(pause(1, &status(500, None), 0.5).as_millis(), 500);
        assert_eq!(pause(0, &status(429, Some(7)), 1.0).as_secs(), 7);
        assert_eq!(pause(0, &status(429, Some(86_400)), 1.0), LONGEST_PAUSE);
    }
}
