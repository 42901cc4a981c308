//! How things stand as a whole: what came in the last day, what failed, what waits.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};

use super::{READ_LIMIT, Service, ServiceError};
use crate::db::listing::{Filter, Listed};
use crate::db::overview::{Arrivals, Failing, HourCount, Waiting};
use crate::db::{listing, overview};

/// How many clock hours the chart has; the last one is the one under way.
pub const CHART_HOURS: i64 = 24;

/// How many events of each list the overview shows.
const SHOWN: i64 = 8;

/// How things stand.
#[derive(Clone, Debug)]
pub struct Overview {
    /// When this was asked.
    pub now: DateTime<Utc>,
    /// The start of the chart's first hour.
    pub chart_start: DateTime<Utc>,
    /// The chart's hours; those in which nothing came are absent.
    pub hours: Vec<HourCount>,
    /// What was recorded in the last hour.
    pub last_hour: Arrivals,
    /// What was recorded in the last 24 hours.
    pub last_day: Arrivals,
    /// Parked events, whenever they came.
    pub parked: Waiting,
    /// Events that have only ever failed, whenever they came.
    pub failing: Waiting,
    /// Some of the parked ones, the longest wait first.
    pub parked_events: Vec<Listed>,
    /// Some of the failing ones, the last to fail first.
    pub failing_events: Vec<Failing>,
    /// The newest events.
    pub newest: Vec<Listed>,
}

impl Service {
    /// How things stand at `now`.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn overview(&self, now: DateTime<Utc>) -> Result<Overview, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let this_hour = now.duration_trunc(TimeDelta::hours(1)).unwrap_or(now);
            let chart_start = this_hour - TimeDelta::hours(CHART_HOURS - 1);
            let mut conn = service.connection().await?;
            let conn = &mut conn;
            Ok(Overview {
                now,
                chart_start,
                hours: overview::by_hour(conn, chart_start).await?,
                last_hour: overview::arrivals(conn, now - TimeDelta::hours(1)).await?,
                last_day: overview::arrivals(conn, now - TimeDelta::hours(24)).await?,
                parked: overview::parked(conn).await?,
                failing: overview::failing(conn).await?,
                parked_events: overview::list_parked(conn, SHOWN).await?,
                failing_events: overview::list_failing(conn, SHOWN).await?,
                newest: listing::page(conn, &Filter::default(), None, SHOWN).await?,
            })
        })
        .await
    }
}
