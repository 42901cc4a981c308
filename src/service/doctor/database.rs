//! The checks that ask the database alone.

use chrono::{DateTime, TimeDelta, Utc};

use super::{Check, DatabaseFindings, Finding};
use crate::db::overdue::{Overdue, OverdueCount};
use crate::db::overview::{self, Waiting};
use crate::db::reconcile_state::ReconcileState;
use crate::db::{Conn, doctor, installation, overdue, reconcile_state};
use crate::service::overview::COUNT_LIMIT;
use crate::service::{DatabaseState, READ_LIMIT, Service, ServiceError};
use crate::stripe::trust::Mode;

/// How long an event may wait for its account.
const PARKED_LIMIT_SECS: i64 = 86_400;

/// How long a transaction may stay open, and how long a change may wait to be pushed.
const OPEN_LIMIT_SECS: i64 = 300;

/// How many subscriptions a line names.
const NAMED: i64 = 3;

impl Service {
    /// That every command would refuse the database or the schema.
    pub(super) async fn refusal(&self) -> Option<Finding> {
        let pool = self.parts().pool.clone();
        let refusal = self.read(READ_LIMIT, async move { Ok(installation::refusal(pool.target()).await) }).await;
        // A database that does not answer is a finding of its own.
        Some(Finding::new(Check::Database, refusal.ok()??, ""))
    }

    /// What the database shows to be wrong.
    pub(super) async fn database_findings(&self) -> DatabaseFindings {
        let advice = "see DATABASE_URL and the database's own log";
        let problem = match self.database_state().await {
            DatabaseState::Ok => None,
            DatabaseState::Away => {
                return Finding::new(Check::Database, "the database does not answer", advice).into();
            }
            DatabaseState::MigrationPending => {
                return Finding::new(Check::Database, "a migration is pending", "run `subledger migrate`").into();
            }
            DatabaseState::Unwritable => Some(Finding::new(
                Check::Database,
                "the database takes no writes",
                "see whether its disk is full, or whether DATABASE_URL names a standby (target_session_attrs=read-write)",
            )),
        };
        let mut found = self.read_findings().await.unwrap_or_else(|error| {
            Finding::new(Check::Database, format!("cannot read the tables: {}", error.chain()), advice).into()
        });
        found.findings.splice(0..0, problem);
        found
    }

    async fn read_findings(&self) -> Result<DatabaseFindings, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            let conn = &mut conn;
            let mut findings = maintenance_findings(conn).await?;
            findings.extend(service.mode_finding(conn).await?);
            findings.extend(waiting_findings(conn).await?);
            let overdue = service.overdue(conn).await?;
            findings.extend(service.overdue_finding(&overdue));
            findings.extend(service.reconcile_finding(conn).await?);
            let last_event = doctor::last_event_at(conn).await?;
            Ok(DatabaseFindings { findings, overdue: overdue.1, last_event })
        })
        .await
    }

    /// A webhook secret does not show its mode; the events that it signed do.
    async fn mode_finding(&self, conn: &mut Conn) -> diesel::QueryResult<Option<Finding>> {
        let mode = self.parts().policy.mode;
        let wrong = match mode {
            Mode::Live => false,
            Mode::Test => true,
            Mode::Any => return Ok(None),
        };
        let events = doctor::events_of_mode(conn, wrong).await?;
        let wrong = if wrong { Mode::Live } else { Mode::Test };
        Ok(some(events).map(|events| {
            let problem =
                format!("{} events of {wrong} mode came in the last day, STRIPE_MODE is {mode}", events.events);
            let advice =
                format!("remove the secret of the {wrong} endpoint from STRIPE_WEBHOOK_SECRET, or change STRIPE_MODE");
            Finding::new(Check::Mode, problem, advice).since(events.oldest)
        }))
    }

    /// How many subscriptions are overdue, and the first few of them.
    async fn overdue(&self, conn: &mut Conn) -> diesel::QueryResult<(OverdueCount, Vec<Overdue>)> {
        let after = self.parts().policy.entitlement.overdue_after;
        let count = overdue::count(conn, after).await?;
        let first = if count.subscriptions == 0 { Vec::new() } else { overdue::first(conn, after, NAMED).await? };
        Ok((count, first))
    }

    fn overdue_finding(&self, (count, first): &(OverdueCount, Vec<Overdue>)) -> Option<Finding> {
        if count.subscriptions == 0 {
            return None;
        }
        let mut names: Vec<_> = first.iter().map(|overdue| overdue.stripe_subscription_id.as_str()).collect();
        if count.subscriptions > NAMED {
            names.push("…");
        }
        let problem = format!(
            "{} subscriptions are overdue: their period ended and no event followed ({})",
            count.subscriptions,
            names.join(", ")
        );
        let advice = if self.parts().stripe.is_some() {
            "`serve` reads them from Stripe by itself; where that does not help, see the subscription in Stripe's dashboard"
        } else {
            "set STRIPE_SECRET_KEY, so that `serve` reads them from Stripe, and see that the webhook endpoint is enabled"
        };
        Some(Finding::new(Check::Overdue, problem, advice).since(count.oldest))
    }

    async fn reconcile_finding(&self, conn: &mut Conn) -> diesel::QueryResult<Option<Finding>> {
        let (Some(every), Some(_)) = (self.parts().reconcile_every, &self.parts().stripe) else { return Ok(None) };
        let every = TimeDelta::from_std(every).unwrap_or(TimeDelta::MAX);
        Ok(reconcile_state::find(conn).await?.and_then(|state| stale_reconcile(&state, every, Utc::now())))
    }
}

/// Whether reconciling has failed, or has not been done for so long that nobody does it.
fn stale_reconcile(state: &ReconcileState, every: TimeDelta, now: DateTime<Utc>) -> Option<Finding> {
    if let Some(error) = &state.error {
        let problem = format!("the last reconciliation with Stripe failed: {error}");
        let advice = "it is tried again by itself; see that STRIPE_SECRET_KEY may read events and subscriptions";
        return Some(Finding::new(Check::Reconcile, problem, advice).since(state.succeeded_at));
    }
    // A server that has only just started for the first time is no finding.
    let limit = every.checked_mul(3)?.max(TimeDelta::minutes(10));
    let last = state.succeeded_at?;
    (now - last > limit).then(|| {
        let advice = "see that a server runs with STRIPE_SECRET_KEY and RECONCILE_EVERY";
        Finding::new(Check::Reconcile, "no server reconciles with Stripe", advice).since(Some(last))
    })
}

async fn maintenance_findings(conn: &mut Conn) -> diesel::QueryResult<Vec<Finding>> {
    let mut findings = Vec::new();
    for relation in doctor::missing_privileges(conn).await? {
        let problem = format!("subledger's role lacks {} on {} {}", relation.detail, relation.kind, relation.name);
        let advice = "grant it (`subledger grants --server-role` prints how), or use the role that owns the tables";
        findings.push(Finding::new(Check::Database, problem, advice));
    }
    for relation in doctor::public_privileges(conn).await? {
        let problem = format!("everybody may {} on {} {}", relation.detail, relation.kind, relation.name);
        let advice = format!("run `REVOKE ALL ON {} FROM PUBLIC`", relation.name);
        findings.push(Finding::new(Check::Database, problem, advice));
    }
    if !doctor::autovacuum_is_on(conn).await? {
        let advice = "set autovacuum and track_counts to on: without it the tables grow and queries become slow";
        findings.push(Finding::new(Check::Database, "autovacuum is off", advice));
    }
    for table in doctor::tables_without_autovacuum(conn).await? {
        let problem = format!("autovacuum is off for table {}", table.name);
        let advice = format!("run `ALTER TABLE {} RESET (autovacuum_enabled)`", table.name);
        findings.push(Finding::new(Check::Database, problem, advice));
    }
    for table in doctor::bloated_tables(conn).await? {
        let problem = format!("autovacuum does not keep up with table {}: {}", table.name, table.detail);
        let advice = format!("run `VACUUM ANALYZE {}`, and lower its autovacuum_vacuum_scale_factor", table.name);
        findings.push(Finding::new(Check::Database, problem, advice));
    }
    if let Some(open) = doctor::long_transaction(conn, OPEN_LIMIT_SECS).await? {
        let problem = format!("a transaction that has written stays open ({})", open.holder);
        let advice = "end it: it holds up readers of committed_changes, the push of changes, and autovacuum";
        findings.push(Finding::new(Check::Database, problem, advice).since(Some(open.since)));
    }
    Ok(findings)
}

async fn waiting_findings(conn: &mut Conn) -> diesel::QueryResult<Vec<Finding>> {
    let parked = some(doctor::parked_longer_than(conn, PARKED_LIMIT_SECS).await?).map(|parked| {
        let problem = format!(
            "{} events have been parked for more than a day: their customers belong to no account",
            parked.events
        );
        let advice = "link the customers (PATCH /api/v1/accounts/{id}); GET /events?status=parked lists the events";
        Finding::new(Check::Parked, problem, advice).since(parked.oldest)
    });
    let failing = some(overview::failing(conn, COUNT_LIMIT).await?).map(|failing| {
        let problem = format!(
            "{}{} events have failed every attempt",
            failing.events,
            if failing.events < COUNT_LIMIT { "" } else { " or more" }
        );
        let advice = "GET /events?status=failed shows why; once that is mended run `subledger replay --failed`";
        Finding::new(Check::Failing, problem, advice).since(failing.oldest)
    });
    let changes = some(doctor::pending_changes(conn, OPEN_LIMIT_SECS).await?).map(|pending| {
        let problem = format!("changes of {} accounts wait to be pushed to CHANGES_URL", pending.events);
        let advice = "see that CHANGES_URL answers with a 2xx; the pushes are tried again by themselves";
        Finding::new(Check::Changes, problem, advice).since(pending.oldest)
    });
    Ok([parked, failing, changes].into_iter().flatten().collect())
}

fn some(waiting: Waiting) -> Option<Waiting> {
    (waiting.events > 0).then_some(waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconciling_that_fails_or_that_nobody_does_is_told() {
        let (now, hour) = (Utc::now(), TimeDelta::hours(1));
        let ago =
            |hours| ReconcileState { succeeded_at: Some(now - TimeDelta::hours(hours)), ..ReconcileState::default() };
        assert_eq!(stale_reconcile(&ReconcileState::default(), hour, now), None);
        assert_eq!(stale_reconcile(&ago(2), hour, now), None);
        assert!(stale_reconcile(&ago(4), hour, now).unwrap().problem.contains("no server reconciles"));
        let failed = ReconcileState { error: Some("401".to_owned()), ..ago(1) };
        assert!(stale_reconcile(&failed, hour, now).unwrap().problem.contains("401"));
    }
}
