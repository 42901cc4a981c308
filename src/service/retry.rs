//! Retries work of jobs that failed because something was out of reach, with exponential backoff, and tells failures of one
//! event from those that end a job.

use std::error::Error;
use std::time::Duration;

use reqwest::StatusCode;

use super::ServiceError;
use super::error::AttemptError;
use crate::stripe::api::{ApiError, EndpointError};

/// How often a piece of work is tried again.
const MAX_RETRIES: u32 = 6;

/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// How often some work has been tried again.
#[derive(Debug, Default)]
pub struct Retries {
    retries: u32,
}

impl Retries {
    /// Waits before the next attempt.
    ///
    /// # Errors
    /// `error` itself, where another attempt would not help or enough were made.
    pub async fn wait_after(&mut self, error: ServiceError) -> Result<(), ServiceError> {
        match error {
            ServiceError::Unavailable(error) if self.retries < MAX_RETRIES && !is_refused(&error) => {
                log::warn!("trying again: {error:#}");
                tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(self.retries)).await;
                self.retries += 1;
                Ok(())
            }
            error => Err(error),
        }
    }
}

/// Does `work`, again after a pause where something was out of reach. Each time is a delivery of its own.
///
/// # Errors
/// The last error.
pub async fn with_retries<T, F>(mut work: impl FnMut() -> F) -> Result<T, ServiceError>
where
    F: Future<Output = Result<T, ServiceError>>,
{
    let mut retries = Retries::default();
    loop {
        match Box::pin(work()).await {
            Ok(done) => return Ok(done),
            Err(error) => retries.wait_after(error).await?,
        }
    }
}

/// Whether Stripe refused one object for good, for example because its connected account has left (403). Another attempt
/// would not help, and other objects may be readable. A refused key (401) is not meant: it reads nothing at all.
pub fn is_refused(error: &anyhow::Error) -> bool {
    error.chain().filter_map(status_of).any(|status| {
        let is_transient_or_of_the_key = [
            StatusCode::UNAUTHORIZED,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::CONFLICT,
            StatusCode::TOO_MANY_REQUESTS,
        ]
        .contains(&status);
        status.is_client_error() && !is_transient_or_of_the_key
    })
}

/// The status of Stripe's answer, if this is one.
fn status_of(cause: &(dyn Error + 'static)) -> Option<StatusCode> {
    match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(ApiError::Status { status, .. }), _) | (_, Some(EndpointError::Refused { status, .. })) => Some(*status),
        _ => None,
    }
}

/// The failure of one event in words, or the end of the job: what is out of reach for one is so for all. Stripe may refuse
/// one object alone, and another transaction may hold the lock of one row alone.
///
/// # Errors
/// Where the service is unavailable.
pub fn failure_of_its_own(error: ServiceError) -> anyhow::Result<String> {
    let was_blocked = |error: &anyhow::Error| error.downcast_ref().is_some_and(AttemptError::was_blocked);
    match error {
        ServiceError::Failed(error) => Ok(format!("{error:#}")),
        ServiceError::Unavailable(error) if is_refused(&error) || was_blocked(&error) => Ok(format!("{error:#}")),
        ServiceError::Unavailable(error) => Err(error.context("stopped; what is done is kept, run it again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> ServiceError {
        let status = StatusCode::from_u16(status).unwrap();
        let error = anyhow::Error::new(ApiError::Status { status, retry_after: None });
        ServiceError::Unavailable(error.context("cannot ask Stripe"))
    }

    #[test]
    fn only_what_stripe_refuses_for_good_fails_alone() {
        for status in [400, 403, 410] {
            assert!(failure_of_its_own(answered(status)).unwrap().contains(&status.to_string()));
        }
        for status in [401, 408, 409, 429, 500, 503] {
            assert!(failure_of_its_own(answered(status)).is_err(), "{status}");
        }
        let refused = EndpointError::Refused { status: StatusCode::FORBIDDEN, message: String::new() };
        assert!(is_refused(&anyhow::Error::new(refused)));
    }

    #[tokio::test]
    async fn what_is_refused_is_not_tried_again() {
        assert!(Retries::default().wait_after(answered(403)).await.is_err());
    }
}
