//! What is wrong between Stripe, this deployment and the database: what is wrong, since when, and what to do.

mod database;
mod stripe;

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};

use super::Service;
use crate::db::overdue::Overdue;

/// How often the server looks at its endpoints at Stripe by itself.
const STRIPE_INTERVAL: Duration = Duration::from_secs(300);

/// When it looks for the first time.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// How long a page waits for the database's findings before it shows those of before.
const PAGE_LIMIT: Duration = Duration::from_secs(1);

/// The database's findings are used again for this many times as long as reading them took, so that pages keep the
/// database busy for a twentieth of the time at most, however large its tables are.
const REUSED_FOR: u32 = 20;

/// The longest that the database's findings are used again.
const MAX_AGE: Duration = Duration::from_secs(60);

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
    /// What to do; empty if the problem says it.
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
        if !self.advice.is_empty() {
            write!(f, ": {}", self.advice)?;
        }
        Ok(())
    }
}

/// The findings of the checks that ask the database alone.
#[derive(Clone, Debug, Default)]
pub(super) struct DatabaseFindings {
    findings: Vec<Finding>,
    /// The first few overdue subscriptions, the longest overdue first.
    overdue: Vec<Overdue>,
    /// When the last event was recorded.
    last_event: Option<DateTime<Utc>>,
}

impl From<Finding> for DatabaseFindings {
    fn from(finding: Finding) -> Self {
        Self { findings: vec![finding], ..Self::default() }
    }
}

/// The findings that a page shows.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Every finding.
    pub findings: Vec<Finding>,
    /// The first few overdue subscriptions, the longest overdue first.
    pub overdue: Vec<Overdue>,
}

/// The findings of the last checks.
#[derive(Debug, Default)]
pub(super) struct LastFindings {
    database: Mutex<Option<Read>>,
    /// Held while the database is read: others wait for its findings.
    reading: tokio::sync::Mutex<()>,
    /// What was wrong at Stripe when the server last looked.
    stripe: Mutex<Vec<Finding>>,
}

/// The database's findings, when they were read, and how long that took.
#[derive(Clone, Debug)]
struct Read {
    found: DatabaseFindings,
    at: Instant,
    took: Duration,
}

impl LastFindings {
    fn database(&self) -> Option<Read> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Service {
    /// Runs every check now; `webhook_path` is the path of this server's webhook. What is asked of Stripe is asked only
    /// with a key.
    pub async fn diagnose(&self, webhook_path: &str) -> Vec<Finding> {
        let mut found = match self.refusal().await {
            Some(refusal) => refusal.into(),
            None => self.database_findings().await,
        };
        found.findings.extend(self.stripe_findings(webhook_path, found.last_event).await);
        found.findings
    }

    /// The findings for a page: the database's as of at most a minute ago, and those about Stripe as they were when the
    /// server last looked. `None` if the database's checks have never been completed, and take longer than a page waits.
    pub async fn findings(&self) -> Option<Findings> {
        let service = self.clone();
        // Detached: checks that take longer than the page waits are for the next page.
        let reading = self.parts().runtime.spawn(async move { service.recent_database_findings().await });
        let found = match tokio::time::timeout(PAGE_LIMIT, reading).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => self.inner.findings.database()?.found,
        };
        let DatabaseFindings { mut findings, overdue, .. } = found;
        findings.extend(self.inner.findings.stripe.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        Some(Findings { findings, overdue })
    }

    async fn recent_database_findings(&self) -> DatabaseFindings {
        let last = &self.inner.findings;
        let _reading = last.reading.lock().await;
        if let Some(read) = last.database()
            && read.at.elapsed() < (read.took * REUSED_FOR).min(MAX_AGE)
        {
            return read.found;
        }
        let began = Instant::now();
        let found = self.database_findings().await;
        let read = Read { found: found.clone(), at: Instant::now(), took: began.elapsed() };
        *last.database.lock().unwrap_or_else(PoisonError::into_inner) = Some(read);
        found
    }

    /// Looks at Stripe every few minutes for [`Service::findings`], until it is dropped.
    pub async fn watch_stripe(&self, webhook_path: &str) {
        tokio::time::sleep(FIRST_LOOK).await;
        loop {
            let last_event = self.database_findings().await.last_event;
            let found = self.stripe_findings(webhook_path, last_event).await;
            {
                let mut known = self.inner.findings.stripe.lock().unwrap_or_else(PoisonError::into_inner);
                found.iter().filter(|finding| !known.contains(finding)).for_each(|finding| log::warn!("{finding}"));
                *known = found;
            }
            tokio::time::sleep(STRIPE_INTERVAL).await;
        }
    }
}
