//! How an attempt fails, and what follows from it: the one place where failures are classified.

use std::cell::RefCell;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use thiserror::Error;
use tokio::task::JoinError;

use super::thin::ThinError;
use crate::db::pool::PoolError;
use crate::db::sqlstate::{FirstError, ServerError};
use crate::handlers::work::is_violation_of;
use crate::handlers::{HandlerError, Subject};
use crate::metrics::FailureReason;
use crate::stripe::api::ApiError;

/// The constraints that two transactions violate if they make one subscription's row, or link one customer, at the same
/// time. Run again, the second one sees what the first one did.
const RACES: [&str; 4] = [
    "subscriptions_stripe_subscription_id_key",
    "customer_links_pkey",
    "accounts_stripe_customer_id_key",
    "account_customers_pkey",
];

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

    /// Whether only this event is concerned: Stripe did not answer, or the database did not in time, or another transaction
    /// was in the way. Otherwise the database is out of reach or too busy, which concerns all events.
    pub(super) fn is_of_one_event(&self) -> bool {
        let (Self::Unavailable(error) | Self::Failed(error)) = self;
        error.downcast_ref::<AttemptError>().is_some_and(|error| {
            error.reason() == FailureReason::Stripe || matches!(error, AttemptError::TimedOut) || error.was_blocked()
        })
    }

    /// The level at which to log it: `usual`, but `Debug` for what an outage of the database causes. The outage itself is
    /// logged when it begins and when it ends.
    pub fn log_level(&self, usual: log::Level) -> log::Level {
        let (Self::Unavailable(error) | Self::Failed(error)) = self;
        let is_outage =
            |cause: &(dyn std::error::Error + 'static)| matches!(cause.downcast_ref(), Some(PoolError::Outage(_)));
        if error.chain().any(is_outage) { log::Level::Debug } else { usual }
    }
}

impl From<AttemptError> for ServiceError {
    fn from(error: AttemptError) -> Self {
        match error.class() {
            Class::Event => Self::Failed(anyhow::Error::from(error)),
            _ => Self::Unavailable(anyhow::Error::from(error)),
        }
    }
}

impl From<DieselError> for ServiceError {
    fn from(error: DieselError) -> Self {
        AttemptError::from(error).into()
    }
}

impl From<JoinError> for ServiceError {
    fn from(error: JoinError) -> Self {
        Self::Failed(anyhow::Error::new(error).context("the task panicked"))
    }
}

/// Why an attempt failed. Nothing of it was committed, unless the answer to the commit was lost or too late.
#[derive(Debug, Error)]
pub(super) enum AttemptError {
    #[error("no connection to the database")]
    Pool(#[source] PoolError),
    #[error("given up because the database went out of reach")]
    GivenUp(#[source] PoolError),
    #[error("timed out waiting for earlier events")]
    Queue,
    #[error("the database did not answer in time")]
    TimedOut,
    #[error("the task that applied the event panicked")]
    Panicked,
    #[error("a statement failed: {} (SQLSTATE {})", server.message, server.state.as_str())]
    Server {
        server: ServerError,
        /// Says the same with less.
        error: DieselError,
    },
    /// The database refused the idempotency row, but the event has none.
    #[error("the idempotency row was refused as a duplicate, but there is none")]
    FalseDuplicate,
    #[error("the connection to the database was lost")]
    ConnectionLost(#[source] DieselError),
    #[error("cannot ask Stripe for {subject}")]
    Stripe {
        subject: Subject,
        #[source]
        source: ApiError,
    },
    #[error(transparent)]
    Thin(#[from] ThinError),
    #[error("Stripe's answer was overtaken by further events each time it was asked")]
    TooManyQuestions,
    #[error(transparent)]
    Handler(HandlerError),
}

tokio::task_local! {
    /// Where the errors are noted of the session that this task uses.
    static SESSION: RefCell<Option<FirstError>>;
}

/// Runs a task whose database errors are classified by the SQLSTATE that the server reported.
pub(super) async fn classified<T>(task: impl Future<Output = T>) -> T {
    SESSION.scope(RefCell::default(), task).await
}

/// From now on this task uses the session whose errors are noted here.
pub(super) fn uses(errors: &FirstError) {
    errors.take();
    SESSION.try_with(|session| *session.borrow_mut() = Some(errors.clone())).ok();
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Another transaction was in the way: run again, this one may succeed.
    Conflict,
    /// The connection is closed, or its session can only read: run again over another one.
    Connection,
    /// The database has no space left.
    DiskFull,
    /// A time limit was reached.
    Timeout,
    /// The database or Stripe is out of reach, or too busy.
    Unavailable,
    /// The event's own failure.
    Event,
}

impl From<DieselError> for AttemptError {
    fn from(error: DieselError) -> Self {
        let server = SESSION.try_with(|session| session.borrow().as_ref().and_then(FirstError::take));
        Self::of(error, server.ok().flatten())
    }
}

impl AttemptError {
    /// A failed statement. `server` is what the server reported, if it reported anything.
    pub(super) fn of(error: DieselError, server: Option<ServerError>) -> Self {
        match (error, server) {
            (error, Some(server)) => Self::Server { server, error },
            (
                source @ DieselError::DatabaseError(
                    DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                    _,
                ),
                None,
            ) => Self::ConnectionLost(source),
            (source, None) => Self::Handler(HandlerError::Database(source)),
        }
    }

    /// What follows from it.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Server { error, .. } if RACES.iter().any(|constraint| is_violation_of(error, constraint)) => {
                Class::Conflict
            }
            Self::Server { server, .. } => class_of(server.state.as_str()),
            Self::ConnectionLost(_) | Self::GivenUp(_) => Class::Connection,
            Self::TimedOut | Self::Queue => Class::Timeout,
            Self::Thin(error) if error.is_unavailability() => Class::Unavailable,
            Self::Pool(_) | Self::Stripe { .. } | Self::TooManyQuestions => Class::Unavailable,
            // The server reported it, but its SQLSTATE was not kept: a look-up failed, not the event.
            Self::Handler(HandlerError::Database(DieselError::DatabaseError(..))) => Class::Unavailable,
            Self::Thin(_) | Self::Handler(_) | Self::Panicked | Self::FalseDuplicate => Class::Event,
        }
    }

    /// Where an admin has to look.
    pub(super) fn reason(&self) -> FailureReason {
        match (self, self.class()) {
            (Self::Stripe { .. } | Self::TooManyQuestions | Self::Handler(HandlerError::NeedsStripe(_)), _) => {
                FailureReason::Stripe
            }
            (Self::Thin(_), Class::Unavailable) => FailureReason::Stripe,
            (_, Class::Timeout) => FailureReason::Timeout,
            (_, Class::Event) => FailureReason::Handler,
            _ => FailureReason::Database,
        }
    }

    /// Whether the database answers, and another transaction was in the way: a lock or a statement timed out, or each
    /// attempt was in conflict with something else.
    pub(super) fn was_blocked(&self) -> bool {
        matches!(self, Self::Server { .. }) && matches!(self.class(), Class::Timeout | Class::Conflict)
    }

    /// Whether the answer to a COMMIT may have been lost.
    pub(super) fn may_have_committed(&self) -> bool {
        matches!(self, Self::TimedOut) || self.class() == Class::Connection
    }

    /// Whether the attempt ended before anything was tried.
    pub(super) fn is_before_begin(&self) -> bool {
        matches!(self, Self::Pool(_) | Self::Queue)
    }
}

/// What follows from an error with this SQLSTATE. No message is read: servers speak many languages.
/// Source: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn class_of(sqlstate: &str) -> Class {
    match (sqlstate, sqlstate.get(..2).unwrap_or_default()) {
        // serialization_failure, deadlock_detected
        ("40001" | "40P01", _) => Class::Conflict,
        // read_only_sql_transaction: a standby, or a session that began on one.
        ("25006", _) => Class::Connection,
        // admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped, idle_session_timeout,
        // idle_in_transaction_session_timeout
        ("57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03", _) | (_, "08") => Class::Connection,
        ("53100", _) => Class::DiskFull,
        // lock_not_available, query_canceled (a time limit of the session as a rule)
        ("55P03" | "57014", _) => Class::Timeout,
        (_, "40" | "53") => Class::Unavailable,
        _ => Class::Event,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_classified_by_its_sqlstate() {
        for (state, class) in [
            ("40001", Class::Conflict),
            ("40P01", Class::Conflict),
            ("40003", Class::Unavailable),
            ("08006", Class::Connection),
            ("25006", Class::Connection),
            ("57P01", Class::Connection),
            ("53100", Class::DiskFull),
            ("53300", Class::Unavailable),
            ("55P03", Class::Timeout),
            ("57014", Class::Timeout),
            ("23505", Class::Event),
            ("P0001", Class::Event),
            ("42P01", Class::Event),
        ] {
            assert_eq!(class_of(state), class, "{state}");
        }
    }
}
