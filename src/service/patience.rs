//! Retries work of jobs that failed because something was out of reach, with exponential backoff.

use std::time::Duration;

use super::ServiceError;

/// How often a piece of work is tried again.
const MAX_RETRIES: u32 = 6;

/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// How often some work has been tried again.
#[derive(Debug, Default)]
pub struct Patience {
    retries: u32,
}

impl Patience {
    /// Waits before the next attempt.
    ///
    /// # Errors
    /// `error` itself, where another attempt would not help or enough were made.
    pub async fn wait_after(&mut self, error: ServiceError) -> Result<(), ServiceError> {
        match error {
            ServiceError::Unavailable(error) if self.retries < MAX_RETRIES => {
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
pub async fn patiently<T, F>(mut work: impl FnMut() -> F) -> Result<T, ServiceError>
where
    F: Future<Output = Result<T, ServiceError>>,
{
    let mut patience = Patience::default();
    loop {
        match Box::pin(work()).await {
            Ok(done) => return Ok(done),
            Err(error) => patience.wait_after(error).await?,
        }
    }
}

/// The failure of one event in words, or the end of the job: what is out of reach for one is so for all.
///
/// # Errors
/// Where the service is unavailable.
pub fn failure_of_its_own(error: ServiceError) -> anyhow::Result<String> {
    match error {
        ServiceError::Failed(error) => Ok(format!("{error:#}")),
        ServiceError::Unavailable(error) => Err(error.context("stopped; what is done is kept, run it again")),
    }
}
