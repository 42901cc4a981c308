//! How the service fails: either the event's own fault, or that of something out of reach.

use thiserror::Error;
use tokio::task::JoinError;

use super::transaction::AttemptError;

/// Nothing was committed, or nothing is known of it: an answer may be lost, or come too late. Both are worth a retry,
/// which is a duplicate then.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The database or Stripe's API is out of reach, or too busy.
    #[error("unavailable")]
    Unavailable(#[source] anyhow::Error),
    /// A handler or the commit failed.
    #[error("failed")]
    Failed(#[source] anyhow::Error),
}

impl ServiceError {
    /// The whole chain of causes, for the log and the admin.
    pub fn chain(&self) -> String {
        match self {
            Self::Unavailable(error) | Self::Failed(error) => format!("{error:#}"),
        }
    }

    /// Whether the work did not fail but die: it panicked.
    pub(super) fn is_of_the_task(&self) -> bool {
        let (Self::Unavailable(error) | Self::Failed(error)) = self;
        error.is::<JoinError>()
    }
}

impl From<AttemptError> for ServiceError {
    fn from(error: AttemptError) -> Self {
        if error.is_unavailability() {
            Self::Unavailable(anyhow::Error::from(error))
        } else {
            Self::Failed(anyhow::Error::from(error))
        }
    }
}

impl From<diesel::result::Error> for ServiceError {
    fn from(error: diesel::result::Error) -> Self {
        AttemptError::from(error).into()
    }
}
