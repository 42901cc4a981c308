//! The overview page: whether all is well, the events of the last days, and the events that need attention.

use actix_web::http::StatusCode;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use askama::Template;
use chrono::{DateTime, TimeDelta, Utc};

use super::changes;
use super::chart::{Chart, STATUSES};
use super::error::PageError;
use super::format::{EventRow, EventType, When, account_path, count, counted, event_path, lag};
use super::page::{Here, Page, Viewer, html};
use crate::db::overdue::Overdue;
use crate::db::overview::Failing;
use crate::http::{ApiError, State, WEBHOOK_PATH};
use crate::service::{COUNT_LIMIT, Check, DatabaseState, Finding, Findings, LAG_EVENTS, Overview};

/// The age at which a parked event needs attention. Younger ones are normal: a checkout links the customer moments after
/// the subscription is created.
const PARKED_LIMIT: TimeDelta = TimeDelta::hours(1);

/// The time without any event after which something may be wrong with the endpoint at Stripe.
const SILENCE_LIMIT: TimeDelta = TimeDelta::hours(24);

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage {
    page: Page,
    verdict: Verdict,
    database: &'static str,
    migrations: &'static str,
    /// `None` if the database cannot be read.
    figures: Option<Figures>,
    findings: Vec<FindingRow>,
    listen_command: String,
}

struct Figures {
    last_hour: String,
    last_day: String,
    failing: i64,
    failing_text: String,
    failing_since: Option<When>,
    parked: i64,
    parked_text: String,
    parked_since: Option<When>,
    median_lag: String,
    p95_lag: Option<String>,
    lag_events: String,
    last_event: Option<When>,
    charts: [Chart; 2],
    statuses: [&'static str; STATUSES.len()],
    failing_events: Vec<FailingRow>,
    parked_events: Vec<EventRow>,
    newest: Vec<EventRow>,
    is_first_run: bool,
}

/// A finding of `doctor`.
struct FindingRow {
    problem: String,
    since: Option<When>,
    advice: String,
    /// The first overdue subscriptions, if that is what the finding is about.
    overdue: Vec<OverdueRow>,
}

struct OverdueRow {
    subscription: String,
    /// Of its account's page.
    path: String,
    ended: When,
}

struct FailingRow {
    id: String,
    path: String,
    type_: EventType,
    attempts: String,
    failed: When,
    error: String,
}

/// The answer to "is all well?".
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// The CSS class.
    tone: &'static str,
    heading: String,
    /// The reasons, or what to do.
    reasons: Vec<String>,
}

/// `GET /admin`. Also answers when the database does not.
pub async fn show(viewer: Viewer, request: HttpRequest, state: Data<State>) -> Result<HttpResponse, PageError> {
    let health = state.service.database_state().await;
    let (overview, findings) = match health {
        DatabaseState::Ok | DatabaseState::Unwritable => {
            let overview = state.service.overview(Utc::now()).await.map_err(ApiError::of_request)?;
            (Some(overview), state.service.findings().await)
        }
        DatabaseState::MigrationPending | DatabaseState::Away => (None, None),
    };
    let (database, migrations) = match health {
        DatabaseState::Ok => ("ok", "current"),
        DatabaseState::MigrationPending => ("ok", "pending"),
        DatabaseState::Unwritable => ("takes no writes", "current"),
        DatabaseState::Away => ("away", "unknown"),
    };
    let status = if overview.is_some() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut verdict = verdict(health, overview.as_ref(), findings.as_ref());
    if overview.is_some() {
        verdict.reasons.extend(changes::warning(&state).await);
    }
    let template = OverviewPage {
        page: viewer.page("Overview", Here::Overview),
        verdict,
        database,
        migrations,
        figures: overview.map(Figures::of),
        findings: findings.map(|found| finding_rows(found, Utc::now())).unwrap_or_default(),
        listen_command: format!("stripe listen --forward-to {}{WEBHOOK_PATH}", request.connection_info().host()),
    };
    Ok(html(status, &template))
}

impl Figures {
    fn of(overview: Overview) -> Self {
        let now = overview.now;
        let when = |at| When::new(at, now);
        Self {
            last_hour: count(overview.last_hour),
            last_day: count(overview.last_day),
            failing: overview.failing.events,
            failing_text: up_to_limit(overview.failing.events),
            failing_since: overview.failing.oldest.map(when),
            parked: overview.parked.events,
            parked_text: up_to_limit(overview.parked.events),
            parked_since: overview.parked.oldest.map(when),
            median_lag: lag(overview.lag.median_secs),
            p95_lag: overview.lag.p95_secs.map(|secs| lag(Some(secs))),
            lag_events: count(LAG_EVENTS),
            last_event: overview.newest.first().map(|event| when(event.received_at)),
            charts: [Chart::of_day(&overview), Chart::of_week(&overview)],
            statuses: STATUSES,
            failing_events: overview.failing_events.into_iter().map(|event| failing_row(event, now)).collect(),
            parked_events: EventRow::all(&overview.parked_events, now),
            is_first_run: overview.newest.is_empty(),
            newest: EventRow::all(&overview.newest, now),
        }
    }
}

/// A number that is counted up to [`COUNT_LIMIT`].
fn up_to_limit(events: i64) -> String {
    if events < COUNT_LIMIT { count(events) } else { format!("{} or more", count(COUNT_LIMIT)) }
}

fn counted_up_to_limit(events: i64) -> String {
    if events < COUNT_LIMIT { counted(events, "event") } else { format!("{} events", up_to_limit(events)) }
}

fn finding_rows(found: Findings, now: DateTime<Utc>) -> Vec<FindingRow> {
    let mut overdue: Vec<_> = found.overdue.into_iter().map(|overdue| overdue_row(overdue, now)).collect();
    let row = |finding: Finding| FindingRow {
        overdue: if finding.check == Check::Overdue { std::mem::take(&mut overdue) } else { Vec::new() },
        problem: finding.problem,
        since: finding.since.map(|since| When::new(since, now)),
        advice: finding.advice,
    };
    found.findings.into_iter().map(row).collect()
}

fn overdue_row(overdue: Overdue, now: DateTime<Utc>) -> OverdueRow {
    OverdueRow {
        path: account_path(overdue.account_id),
        subscription: overdue.stripe_subscription_id,
        ended: When::new(overdue.ended, now),
    }
}

fn failing_row(event: Failing, now: DateTime<Utc>) -> FailingRow {
    FailingRow {
        path: event_path(&event.id),
        id: event.id,
        type_: EventType::new(event.type_),
        attempts: counted(event.attempts, "attempt"),
        failed: When::new(event.failed_at, now),
        error: event.error,
    }
}

fn verdict(health: DatabaseState, overview: Option<&Overview>, findings: Option<&Findings>) -> Verdict {
    let bad = |heading: &str, reason: &str| Verdict {
        tone: "failed",
        heading: heading.to_owned(),
        reasons: vec![reason.to_owned()],
    };
    match (health, overview) {
        (DatabaseState::Ok, Some(overview)) => verdict_of(overview, findings.map(|found| &*found.findings)),
        (DatabaseState::MigrationPending, _) => bad(
            "A migration is pending",
            "This program is newer than its tables. Run `subledger migrate`; events wait at Stripe until then.",
        ),
        (DatabaseState::Unwritable, _) => bad(
            "The database takes no writes",
            "It is read-only, or its disk is full. Deliveries get an error, so nothing is lost: Stripe delivers again \
             for up to three days. See to PostgreSQL; nothing has to be restarted here.",
        ),
        _ => bad(
            "The database does not answer",
            "Deliveries get an error, so nothing is lost: Stripe delivers again for up to three days. See that \
             PostgreSQL runs and DATABASE_URL leads to it.",
        ),
    }
}

/// The verdict on a database that answers; `findings` is `None` if they are not known yet.
fn verdict_of(overview: &Overview, findings: Option<&[Finding]>) -> Verdict {
    let last = overview.newest.first();
    if last.is_none() && findings.is_some_and(<[_]>::is_empty) {
        return Verdict {
            tone: "ignored",
            heading: "No event has come yet".to_owned(),
            reasons: vec!["Everything is ready for the first one.".to_owned()],
        };
    }
    let since = |at| When::new(at, overview.now).hint();
    let (mut tone, mut reasons) = ("applied", Vec::new());
    if let Some(oldest) = overview.parked.oldest.filter(|oldest| overview.now - *oldest > PARKED_LIMIT) {
        tone = "parked";
        let events = counted_up_to_limit(overview.parked.events);
        reasons.push(format!("{events} parked, the first {}: link each customer to its account.", since(oldest)));
    }
    if let Some(last) = last.filter(|last| overview.now - last.received_at > SILENCE_LIMIT) {
        tone = "parked";
        let last = since(last.received_at);
        reasons.push(format!("The last event came {last}: see that the endpoint is enabled at Stripe."));
    }
    match findings {
        None => {
            tone = "parked";
            reasons.push("The checks of `subledger doctor` have not been completed yet. Reload the page.".to_owned());
        }
        Some([]) => {}
        Some(findings) => {
            tone = "parked";
            let problems = counted(findings.len().try_into().unwrap_or(i64::MAX), "problem");
            reasons.push(format!("`subledger doctor` finds {problems}, listed below."));
        }
    }
    if let Some(oldest) = overview.failing.oldest {
        tone = "failed";
        let events = counted_up_to_limit(overview.failing.events);
        reasons.insert(0, format!("{events} failed every attempt so far, the first {}.", since(oldest)));
    }
    let heading = match tone {
        "failed" => format!("{} failing", counted_up_to_limit(overview.failing.events)),
        "parked" => "Something needs a look".to_owned(),
        _ => "All is well".to_owned(),
    };
    if reasons.is_empty() {
        let parked = match overview.parked.events {
            0 => "none is parked".to_owned(),
            events => format!("{} parked only just now", count(events)),
        };
        reasons.push(format!("The database answers, no event is failing, {parked}."));
    }
    Verdict { tone, heading, reasons }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::listing::Listed;
    use crate::db::overview::{Lag, Waiting};

    fn at(hour: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(hour)
    }

    fn listed(received_at: DateTime<Utc>) -> Listed {
        Listed {
            id: "evt_1".to_owned(),
            type_: "invoice.paid".to_owned(),
            status: "applied".to_owned(),
            created: None,
            received_at,
            api_version: None,
            livemode: false,
            connect_account: None,
            customer_id: None,
            subscription_id: None,
            account_id: None,
        }
    }

    fn overview() -> Overview {
        Overview {
            now: at(100),
            day_start: at(77),
            week_start: at(-72),
            hours: Vec::new(),
            last_hour: 0,
            last_day: 0,
            lag: Lag::default(),
            parked: Waiting::default(),
            failing: Waiting::default(),
            parked_events: Vec::new(),
            failing_events: Vec::new(),
            newest: vec![listed(at(99))],
        }
    }

    #[test]
    fn a_count_that_reached_its_limit_says_so() {
        assert_eq!(counted_up_to_limit(1), "1 event");
        assert_eq!(counted_up_to_limit(COUNT_LIMIT), "1,000 or more events");
    }

    #[test]
    fn the_worst_decides() {
        let waiting = |hour| Waiting { events: 1, oldest: Some(at(hour)) };
        let verdict_of = |overview: &Overview| super::verdict_of(overview, Some(&[]));
        assert_eq!(verdict_of(&overview()).heading, "All is well");
        assert_eq!(verdict_of(&Overview { parked: waiting(100), ..overview() }).tone, "applied");
        assert_eq!(verdict_of(&Overview { parked: waiting(90), ..overview() }).tone, "parked");
        assert_eq!(verdict_of(&Overview { newest: vec![listed(at(70))], ..overview() }).tone, "parked");
        assert_eq!(verdict_of(&Overview { newest: Vec::new(), ..overview() }).tone, "ignored");
        let both = verdict_of(&Overview { parked: waiting(90), failing: waiting(99), ..overview() });
        assert_eq!((both.tone, both.heading.as_str(), both.reasons.len()), ("failed", "1 event failing", 2));
        assert_eq!(verdict(DatabaseState::Away, None, None).tone, "failed");
    }

    #[test]
    fn a_finding_or_a_check_that_is_not_completed_needs_a_look_also_before_the_first_event() {
        let finding = Finding { check: Check::Endpoints, problem: String::new(), since: None, advice: String::new() };
        for overview in [overview(), Overview { newest: Vec::new(), ..overview() }] {
            for findings in [None, Some(std::slice::from_ref(&finding))] {
                let verdict = super::verdict_of(&overview, findings);
                assert_eq!((verdict.tone, &*verdict.heading), ("parked", "Something needs a look"));
                assert_eq!(verdict.reasons.len(), 1);
            }
        }
    }
}
