//! The overview: counts of the last days, delivery lag, and the events that need attention.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use diesel::QueryResult;

use super::{READ_LIMIT, Service, ServiceError};
use crate::db::listing::{Filter, Listed};
use crate::db::overview::{Failing, HourCount, Lag, Waiting};
use crate::db::{Conn, listing, overview};

/// The number of clock hours in the chart of the day; the last one is the current hour.
pub const CHART_HOURS: i64 = 24;

/// The number of days (UTC) in the chart of the week; the last one is today.
pub const CHART_DAYS: i64 = 7;

/// Failing and parked events are counted up to this number.
pub const COUNT_LIMIT: i64 = 1_000;

/// The number of newest events of which the delivery lag is computed.
pub const LAG_EVENTS: i64 = 1_000;

/// How many events of each list the overview shows.
const SHOWN: i64 = 8;

/// How long the counts of finished hours are used before they are read again.
const COUNTS_AGE: Duration = Duration::from_secs(60);

/// The overview.
#[derive(Clone, Debug)]
pub struct Overview {
    /// The time of the request.
    pub now: DateTime<Utc>,
    /// The start of the first hour in the chart of the day.
    pub day_start: DateTime<Utc>,
    /// The start of the first day in the chart of the week.
    pub week_start: DateTime<Utc>,
    /// The counts of both charts by hour; an hour without events is absent.
    pub hours: Vec<HourCount>,
    /// The number of events recorded in the last hour.
    pub last_hour: i64,
    /// The number of events recorded in the last 24 hours.
    pub last_day: i64,
    /// The delivery lag of the newest [`LAG_EVENTS`] events of the last 24 hours.
    pub lag: Lag,
    /// The parked events, of any age; counted up to [`COUNT_LIMIT`].
    pub parked: Waiting,
    /// The events of which every attempt so far failed, of any age; counted up to [`COUNT_LIMIT`].
    pub failing: Waiting,
    /// Some of the parked events, the longest wait first.
    pub parked_events: Vec<Listed>,
    /// Some of the failing events, the last to arrive first.
    pub failing_events: Vec<Failing>,
    /// The newest events.
    pub newest: Vec<Listed>,
}

/// The counts of the hours that have ended. They only change when an old event is applied at last, so that they need
/// not be counted anew for every request.
#[derive(Debug, Default)]
pub(super) struct FinishedHours(Mutex<Option<Counted>>);

#[derive(Clone, Debug)]
struct Counted {
    at: Instant,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    hours: Vec<HourCount>,
}

/// Lets those who ask at the same time share one reading.
#[derive(Debug, Default)]
pub(super) struct SharedOverview(tokio::sync::Mutex<Option<(Instant, Overview)>>);

impl FinishedHours {
    /// The counts from `from` until before `to`, at most [`COUNTS_AGE`] old.
    async fn get(&self, conn: &mut Conn, from: DateTime<Utc>, to: DateTime<Utc>) -> QueryResult<Vec<HourCount>> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(counted) = last
            && (counted.from, counted.to) == (from, to)
            && counted.at.elapsed() < COUNTS_AGE
        {
            return Ok(counted.hours);
        }
        let hours = overview::by_hour(conn, from, Some(to)).await?;
        let counted = Counted { at: Instant::now(), from, to, hours: hours.clone() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(counted);
        Ok(hours)
    }
}

impl Service {
    /// The overview at `now`, or at a moment since, where others asked as well: it counts all events of a day, which must not
    /// happen many times at once beside the deliveries.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer.
    pub async fn overview(&self, now: DateTime<Utc>) -> Result<Overview, ServiceError> {
        let service = self.clone();
        let asked_at = Instant::now();
        self.read(READ_LIMIT, async move {
            let mut last = service.inner.shared_overview.0.lock().await;
            if let Some((read_at, overview)) = &*last
                && *read_at >= asked_at
            {
                return Ok(overview.clone());
            }
            let read_at = Instant::now();
            let overview = service.read_overview(now).await?;
            *last = Some((read_at, overview.clone()));
            Ok(overview)
        })
        .await
    }

    async fn read_overview(&self, now: DateTime<Utc>) -> Result<Overview, ServiceError> {
        let this_hour = now.duration_trunc(TimeDelta::hours(1)).unwrap_or(now);
        let today = now.duration_trunc(TimeDelta::days(1)).unwrap_or(now);
        let week_start = today - TimeDelta::days(CHART_DAYS - 1);
        let day_ago = now - TimeDelta::hours(CHART_HOURS);
        let mut conn = self.connection().await?;
        let conn = &mut conn;
        let mut hours = self.inner.finished_hours.get(conn, week_start, this_hour).await?;
        hours.extend(overview::by_hour(conn, this_hour, None).await?);
        let parked_events = listing::longest_parked(conn, SHOWN).await?;
        Ok(Overview {
            now,
            day_start: this_hour - TimeDelta::hours(CHART_HOURS - 1),
            week_start,
            last_hour: overview::recorded(conn, now - TimeDelta::hours(1)).await?,
            last_day: overview::recorded(conn, day_ago).await?,
            hours,
            lag: overview::lag(conn, day_ago, LAG_EVENTS).await?,
            parked: Waiting {
                events: overview::parked(conn, COUNT_LIMIT).await?,
                oldest: parked_events.first().map(|event| event.received_at),
            },
            failing: overview::failing(conn, COUNT_LIMIT).await?,
            parked_events,
            failing_events: overview::list_failing(conn, SHOWN).await?,
            newest: listing::page(conn, &Filter::default(), None, SHOWN).await?,
        })
    }
}
