//! What is counted and timed, and how Prometheus reads it. It decides nothing and knows neither SQL nor HTTP.
//!
//! Label values come from fixed sets, so that nobody outside can make new time series.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::stripe::NAMED_TYPES;
use crate::stripe::api::RequestOutcome;
use crate::stripe::signature::SignatureError;

/// The label of a type that is not counted under its own name: one that the contract does not name.
const OTHER_TYPE: &str = "other";

const OUTCOMES: [&str; 5] = ["applied", "stale", "ignored", "parked", "duplicate"];

/// Upper bounds in seconds. A delivery takes milliseconds; the longest that it can take is one attempt's limit.
const HANDLING_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Upper bounds in seconds, up to the three days for which Stripe retries.
const LAG_BUCKETS: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 21_600.0, 86_400.0, 259_200.0];

/// Why an event failed, as far as it tells an admin where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// The event itself: a handler, a constraint or the commit refused it.
    Handler,
    /// The database was out of reach, read-only, or too busy.
    Database,
    /// Stripe's API was out of reach, or refused.
    Stripe,
    /// The database took too long.
    Timeout,
    /// The client closed the connection before there was an answer.
    ClientGone,
}

impl FailureReason {
    const ALL: [Self; 5] = [Self::Handler, Self::Database, Self::Stripe, Self::Timeout, Self::ClientGone];

    fn as_str(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::Database => "database",
            Self::Stripe => "stripe",
            Self::Timeout => "timeout",
            Self::ClientGone => "client_gone",
        }
    }
}

/// Why an event was not trusted to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedReason {
    /// It is of the other mode than `STRIPE_MODE`.
    Mode,
    /// It is of a connected account, and names an account of ours (`TRUST_CONNECT_METADATA`).
    Connect,
}

impl RefusedReason {
    const ALL: [Self; 2] = [Self::Mode, Self::Connect];

    fn as_str(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Connect => "connect",
        }
    }
}

/// The pool's connections at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolFigures {
    /// Handed out.
    pub in_use: u32,
    /// Open and free.
    pub idle: u32,
}

#[derive(Clone, Debug, EncodeLabelSet, Hash, PartialEq, Eq)]
struct EventLabels {
    r#type: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Hash, PartialEq, Eq)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Hash, PartialEq, Eq)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Hash, PartialEq, Eq)]
struct StateLabel {
    state: &'static str,
}

/// Every metric of one service. All that are known beforehand are there from the start, with 0.
pub struct Metrics {
    registry: Registry,
    events: Family<EventLabels, Counter>,
    failures: Family<ReasonLabel, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    refused_events: Family<ReasonLabel, Counter>,
    handling: Histogram,
    lag: Histogram,
    pool: Family<StateLabel, Gauge>,
    undecided_ties: Counter,
    stripe_requests: Family<OutcomeLabel, Counter>,
    last_event: Gauge,
    changes_pending: Gauge,
    reconcile_last_success: Gauge,
    reconcile_missing: Counter,
    overdue_subscriptions: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(…)")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("subledger"),
            events: Family::default(),
            failures: Family::default(),
            refusals: Family::default(),
            refused_events: Family::default(),
            handling: Histogram::new(HANDLING_BUCKETS),
            lag: Histogram::new(LAG_BUCKETS),
            pool: Family::default(),
            undecided_ties: Counter::default(),
            stripe_requests: Family::default(),
            last_event: Gauge::default(),
            changes_pending: Gauge::default(),
            reconcile_last_success: Gauge::default(),
            reconcile_missing: Counter::default(),
            overdue_subscriptions: Gauge::default(),
        };
        metrics.register();
        metrics.start_at_zero();
        metrics
    }
}

impl Metrics {
    /// Help texts end without a full stop: the registry adds it, as it adds `_total` to a counter's name.
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("events", "Events that were recorded, or recorded before (duplicate)", self.events.clone());
        registry.register("event_failures", "Attempts at an event that failed", self.failures.clone());
        registry.register(
            "signature_refusals",
            "Deliveries whose signature was refused; nothing of them was read",
            self.refusals.clone(),
        );
        registry.register(
            "refused_events",
            "Events that were not trusted to act, or to name an account",
            self.refused_events.clone(),
        );
        registry.register(
            "event_seconds",
            "Seconds from the arrival of a signed delivery to its answer",
            self.handling.clone(),
        );
        registry.register(
            "delivery_lag_seconds",
            "Seconds from Stripe's time of an event to the arrival of the delivery that recorded it",
            self.lag.clone(),
        );
        registry.register(
            "pool_connections",
            "Connections to the database in use and idle, and requests that wait for one",
            self.pool.clone(),
        );
        registry.register(
            "undecided_ties",
            "States of one second that could not be told apart; the one that came last was taken",
            self.undecided_ties.clone(),
        );
        registry.register("stripe_requests", "Calls to Stripe's API, by what came back", self.stripe_requests.clone());
        registry.register(
            "last_event_timestamp_seconds",
            "Unix time at which the last signed event was recorded or found recorded; 0 before the first",
            self.last_event.clone(),
        );
        registry.register(
            "changes_pending",
            "Changes that are yet to be pushed to CHANGES_URL; 0 without one",
            self.changes_pending.clone(),
        );
        registry.register(
            "reconcile_last_success_timestamp_seconds",
            "Unix time at which any replica last reconciled with Stripe; 0 before the first time",
            self.reconcile_last_success.clone(),
        );
        registry.register(
            "reconcile_missing",
            "Events that never arrived and that this replica found by reconciling",
            self.reconcile_missing.clone(),
        );
        registry.register(
            "overdue_subscriptions",
            "Subscriptions whose period ended more than OVERDUE_AFTER ago, and that no event has changed since",
            self.overdue_subscriptions.clone(),
        );
    }

    /// Makes every time series, with 0.
    ///
    /// A counter that appears with its first event is one whose first event `rate()` does not see.
    fn start_at_zero(&self) {
        for r#type in NAMED_TYPES.into_iter().chain([OTHER_TYPE]) {
            for outcome in OUTCOMES {
                self.events.get_or_create(&EventLabels { r#type, outcome }).inc_by(0);
            }
        }
        for reason in FailureReason::ALL {
            self.failures.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc_by(0);
        }
        for reason in
            [SignatureError::Absent, SignatureError::Malformed, SignatureError::Mismatch, SignatureError::Expired]
        {
            self.refusals.get_or_create(&refusal(reason)).inc_by(0);
        }
        for reason in RefusedReason::ALL {
            self.refused_events.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc_by(0);
        }
        for outcome in RequestOutcome::ALL {
            self.stripe_requests.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc_by(0);
        }
        for state in ["in_use", "idle", "waiting"] {
            self.pool.get_or_create(&StateLabel { state }).set(0);
        }
    }

    /// An event was recorded with this outcome, or was a `duplicate`.
    pub fn event(&self, event_type: &str, outcome: &'static str) {
        self.events.get_or_create(&EventLabels { r#type: known(event_type), outcome }).inc();
    }

    /// An attempt at an event failed.
    pub fn failure(&self, reason: FailureReason) {
        self.failures.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc();
    }

    /// A delivery's signature was refused.
    pub fn refusal(&self, reason: SignatureError) {
        self.refusals.get_or_create(&refusal(reason)).inc();
    }

    /// An event was not trusted to act.
    pub fn refused_event(&self, reason: RefusedReason) {
        self.refused_events.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc();
    }

    /// A signed delivery was answered after this time.
    pub fn handled(&self, took: Duration) {
        self.handling.observe(took.as_secs_f64());
    }

    /// A delivery that was the first to be recorded arrived so long after Stripe's time of its event. One that comes
    /// from the future, by Stripe's clock or ours, counts as 0.
    pub fn lag(&self, created: DateTime<Utc>, arrived: DateTime<Utc>) {
        let lag = (arrived - created).to_std().unwrap_or(Duration::ZERO);
        self.lag.observe(lag.as_secs_f64());
    }

    /// A state was taken though it could be older than the one it replaced.
    pub fn undecided_tie(&self) {
        self.undecided_ties.inc();
    }

    /// A call to Stripe's API ended.
    pub fn stripe_request(&self, outcome: RequestOutcome) {
        self.stripe_requests.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
    }

    /// The last event came at this time.
    pub fn last_event(&self, at: DateTime<Utc>) {
        self.last_event.set(at.timestamp());
    }

    /// So many changes are yet to be pushed.
    pub fn changes_pending(&self, changes: i64) {
        self.changes_pending.set(changes);
    }

    /// Reconciling last went through at this time, and so many subscriptions are overdue.
    pub fn reconciled(&self, last_success: Option<DateTime<Utc>>, overdue: i64) {
        self.reconcile_last_success.set(last_success.map_or(0, |at| at.timestamp()));
        self.overdue_subscriptions.set(overdue);
    }

    /// Reconciling found an event that never arrived.
    pub fn missing_event(&self) {
        self.reconcile_missing.inc();
    }

    /// Somebody waits for a connection, until the value that is returned is dropped.
    ///
    /// The pool's own statistics would count one that gives up waiting as waiting for ever.
    pub fn waiting(&self) -> Waiting {
        let gauge = self.pool.get_or_create_owned(&StateLabel { state: "waiting" });
        gauge.inc();
        Waiting(gauge)
    }

    /// Everything in Prometheus's text format, version 0.0.4.
    ///
    /// # Errors
    /// Where a metric cannot be written as text.
    pub fn text(&self, pool: PoolFigures) -> Result<String, fmt::Error> {
        for (state, connections) in [("in_use", pool.in_use), ("idle", pool.idle)] {
            self.pool.get_or_create(&StateLabel { state }).set(connections.into());
        }
        let mut out = String::new();
        text::encode_registry(&mut out, &self.registry)?;
        Ok(with_whole_counter_names(&out))
    }
}

/// Counts one that waits for a connection while it lives.
#[derive(Debug)]
pub struct Waiting(Gauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn known(event_type: &str) -> &'static str {
    NAMED_TYPES.into_iter().find(|known| *known == event_type).unwrap_or(OTHER_TYPE)
}

fn refusal(reason: SignatureError) -> ReasonLabel {
    let reason = match reason {
        SignatureError::Absent => "absent",
        SignatureError::Malformed => "malformed",
        SignatureError::Mismatch => "mismatch",
        SignatureError::Expired => "expired",
    };
    ReasonLabel { reason }
}

/// OpenMetrics declares a counter under its name without `_total`, Prometheus's own format under the name of its
/// samples; read as the latter, the former would be a declaration of nothing.
fn with_whole_counter_names(openmetrics: &str) -> String {
    let counters: Vec<_> =
        openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(keyword), Some(name), Some(rest)) if counters.contains(&name) => {
                out.extend(["# ", keyword, " ", name, "_total ", rest]);
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: PoolFigures = PoolFigures { in_use: 3, idle: 5 };

    #[test]
    fn the_names_and_types_are_those_of_the_contract() {
        let text = Metrics::default().text(POOL).unwrap();
        let mut declared: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        declared.sort_unstable();
        assert_eq!(
            declared,
            [
                "subledger_changes_pending gauge",
                "subledger_delivery_lag_seconds histogram",
                "subledger_event_failures_total counter",
                "subledger_event_seconds histogram",
                "subledger_events_total counter",
                "subledger_last_event_timestamp_seconds gauge",
                "subledger_overdue_subscriptions gauge",
                "subledger_pool_connections gauge",
                "subledger_reconcile_last_success_timestamp_seconds gauge",
                "subledger_reconcile_missing_total counter",
                "subledger_refused_events_total counter",
                "subledger_signature_refusals_total counter",
                "subledger_stripe_requests_total counter",
                "subledger_undecided_ties_total counter",
            ]
        );
        assert_eq!(text.matches("# HELP ").count(), declared.len());
        assert!(!text.contains("# EOF"), "that is OpenMetrics");
    }

    #[test]
    fn everything_that_is_known_beforehand_starts_at_zero() {
        let text = Metrics::default().text(POOL).unwrap();
        for sample in [
            r#"subledger_events_total{type="customer.subscription.updated",outcome="duplicate"} 0"#,
            r#"subledger_events_total{type="other",outcome="ignored"} 0"#,
            r#"subledger_event_failures_total{reason="client_gone"} 0"#,
            r#"subledger_signature_refusals_total{reason="absent"} 0"#,
            r#"subledger_pool_connections{state="in_use"} 3"#,
            r#"subledger_pool_connections{state="idle"} 5"#,
            r#"subledger_pool_connections{state="waiting"} 0"#,
            "subledger_undecided_ties_total 0",
            r#"subledger_stripe_requests_total{outcome="not_found"} 0"#,
            "subledger_last_event_timestamp_seconds 0",
            "subledger_reconcile_missing_total 0",
            "subledger_overdue_subscriptions 0",
            r#"subledger_event_seconds_bucket{le="+Inf"} 0"#,
            "subledger_delivery_lag_seconds_count 0",
        ] {
            assert!(text.lines().any(|line| line == sample), "{sample} is not in\n{text}");
        }
    }

    #[test]
    fn nobody_outside_can_make_a_time_series() {
        let metrics = Metrics::default();
        let before = metrics.text(POOL).unwrap().lines().count();
        for event_type in ["evil", "evil\"} 1\n", "customer.subscription.updated ", ""] {
            metrics.event(event_type, "ignored");
        }
        let after = metrics.text(POOL).unwrap();
        assert_eq!(after.lines().count(), before);
        assert!(after.contains(r#"subledger_events_total{type="other",outcome="ignored"} 4"#), "{after}");
    }

    #[test]
    fn one_that_waits_is_counted_until_it_gives_up() {
        let metrics = Metrics::default();
        let waiting = [metrics.waiting(), metrics.waiting()];
        assert!(metrics.text(POOL).unwrap().contains(r#"{state="waiting"} 2"#));
        drop(waiting);
        assert!(metrics.text(POOL).unwrap().contains(r#"{state="waiting"} 0"#));
    }

    #[test]
    fn an_event_from_the_future_has_no_lag() {
        let metrics = Metrics::default();
        let now = Utc::now();
        metrics.lag(now + chrono::TimeDelta::seconds(5), now);
        assert!(metrics.text(POOL).unwrap().contains("subledger_delivery_lag_seconds_sum 0.0"));
    }
}
