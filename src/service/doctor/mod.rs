//! What is wrong between Stripe, this deployment and the database: what is wrong, since when, and what to do.

mod database;
mod stripe;

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

use super::Service;

/// How often the server looks at its endpoints at Stripe by itself.
const STRIPE_INTERVAL: Duration = Duration::from_secs(300);

/// When it looks for the first time.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The key's and the events' mode against `STRIPE_MODE`.
    Mode,
    /// The webhook endpoints at Stripe.
    Endpoints,
    /// Events that Stripe could not deliver.
    Undelivered,
    /// This machine's clock.
    Clock,
    /// The database.
    Database,
    /// Events that wait for their account.
    Parked,
    /// Events that have only ever failed.
    Failing,
    /// Subscriptions that should have changed.
    Overdue,
    /// Changes that are to be pushed.
    Changes,
    /// Reconciling by itself.
    Reconcile,
}

impl Check {
    /// The check's name in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Endpoints => "endpoints",
            Self::Undelivered => "undelivered",
            Self::Clock => "clock",
            Self::Database => "database",
            Self::Parked => "parked",
            Self::Failing => "failing",
            Self::Overdue => "overdue",
            Self::Changes => "changes",
            Self::Reconcile => "reconcile",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What the check was about.
    pub check: Check,
    /// What is wrong.
    pub problem: String,
    /// Since when, where that is known.
    pub since: Option<DateTime<Utc>>,
    /// What to do.
    pub advice: String,
}

impl Finding {
    fn new(check: Check, problem: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, problem: problem.into(), since: None, advice: advice.into() }
    }

    fn since(mut self, since: Option<DateTime<Utc>>) -> Self {
        self.since = since;
        self
    }
}

/// One line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check.as_str(), self.problem)?;
        if let Some(since) = self.since {
            write!(f, ", since {}", since.to_rfc3339_opts(SecondsFormat::Secs, true))?;
        }
        write!(f, ": {}", self.advice)
    }
}

impl Service {
    /// Runs every check now; `webhook_path` is the path of this server's webhook. What is asked of Stripe is asked only
    /// with a key.
    pub async fn diagnose(&self, webhook_path: &str) -> Vec<Finding> {
        let (mut findings, last_event) = self.database_findings().await;
        findings.extend(self.stripe_findings(webhook_path, last_event).await);
        findings
    }

    /// The findings for a page: the database's now, and those about Stripe as they were when the server last looked.
    pub async fn findings(&self) -> Vec<Finding> {
        let (mut findings, _) = self.database_findings().await;
        if let Ok(known) = self.inner.stripe_findings.lock() {
            findings.extend(known.iter().cloned());
        }
        findings
    }

    /// Looks at Stripe every few minutes for [`Service::findings`], until it is dropped.
    pub async fn watch_stripe(&self, webhook_path: &str) {
        tokio::time::sleep(FIRST_LOOK).await;
        loop {
            let (_, last_event) = self.database_findings().await;
            let found = self.stripe_findings(webhook_path, last_event).await;
            if let Ok(mut known) = self.inner.stripe_findings.lock() {
                found.iter().filter(|finding| !known.contains(finding)).for_each(|finding| log::warn!("{finding}"));
                *known = found;
            }
            tokio::time::sleep(STRIPE_INTERVAL).await;
        }
    }
}
