//! Reconciles by itself while the server runs, one replica at a time: a cursor, a lease and the last result stand in
//! the database. Also keeps the metrics that show other replicas' passes.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use diesel::QueryResult;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::reconcile::{Compared, Scope, Window};
use super::retry::{failure_of_its_own, is_refused, with_retries};
use super::{Comparison, READ_LIMIT, Recorded, Service, ServiceError};
use crate::db::Conn;
use crate::db::overdue::{self, Overdue};
use crate::db::reconcile_accounts::{self, ReconcileAccount};
use crate::db::reconcile_state::{self, PassFigures};
use crate::stripe::Event;
use crate::stripe::api::Client;

/// When the first pass begins, at the latest.
const FIRST_PASS: Duration = Duration::from_secs(60);

/// How often the metrics are brought up to date, and how often it is seen whether a pass is due, at the most.
const LONGEST_TICK: Duration = Duration::from_secs(30);

/// How often the lease is prolonged; a quarter of it.
const RENEWAL: Duration = Duration::from_secs(30);

/// How far the first pass of all looks back: as far as Stripe retries.
const FIRST_WINDOW: TimeDelta = TimeDelta::hours(72);

/// Stripe lists its events for so long.
const STRIPES_MEMORY: TimeDelta = TimeDelta::days(30);

/// Read again before the cursor: Stripe's list may show an event late, and clocks may be wrong.
const OVERLAP: TimeDelta = TimeDelta::hours(1);

/// Events younger than this may just be on their way.
const YOUNGEST: TimeDelta = TimeDelta::minutes(1);

/// The list is read in windows of this length, oldest first. The cursor moves after each.
const SLICE: TimeDelta = TimeDelta::hours(24);

/// Events read in one pass, after which the rest is left to the next pass. The connected accounts together may have as
/// many as the key's own account.
const MOST_READ: usize = 50_000;

/// Subscriptions compared with Stripe's in one pass, of the key's own account and again of the connected ones; each is a
/// call.
const MOST_COMPARED: usize = 500;

/// Connected accounts whose events are read in one pass; each is a call at least.
const MOST_CONNECTED: i64 = 100;

/// Overdue subscriptions read in one pass; each is a call.
const MOST_OVERDUE: i64 = 200;

/// What may still be read in a pass.
struct Budget {
    to_read: usize,
    to_compare: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { to_read: MOST_READ, to_compare: MOST_COMPARED }
    }
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.to_read == 0
    }
}

/// Reconciles until it is told to stop.
#[derive(Debug)]
pub struct Reconciler {
    service: Service,
    /// Absent without a key, or where it is switched off: then only the metrics are kept.
    job: Option<(Client, Duration)>,
    holder: Uuid,
}

impl Reconciler {
    /// The reconciler of a server.
    pub fn new(service: Service) -> Self {
        let job = service.parts().stripe.clone().zip(service.parts().reconcile_every);
        Self { service, job, holder: Uuid::new_v4() }
    }

    /// Runs until `stop` ends.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        tokio::select! {
            () = &mut stop => {}
            () = self.work() => {}
        }
        // Another replica need not wait for the lease's end. A lease that is not ours stays.
        let stopped = self.finish(PassFigures::default(), Some("the server was stopped during the pass"));
        if let Err(error) = stopped.await {
            log::debug!("cannot give up the reconciler's lease: {}", error.chain());
        }
    }

    async fn work(&self) {
        let every = self.job.as_ref().map_or(LONGEST_TICK, |(_, every)| *every);
        let tick = (every / 10).clamp(Duration::from_millis(100), LONGEST_TICK);
        // A server that starts soon after another's pass waits no longer than it has to.
        let mut due_after = every.min(FIRST_PASS);
        self.show().await;
        tokio::time::sleep(due_after).await;
        loop {
            if let Some((stripe, every)) = &self.job {
                match self.pass_if_due(stripe, due_after).await {
                    Ok(true) => due_after = *every,
                    Ok(false) => {}
                    Err(error) => log::warn!("cannot begin to reconcile: {}", error.chain()),
                }
            }
            self.show().await;
            tokio::time::sleep(tick).await;
        }
    }

    /// Whether a pass was due, and has ended.
    async fn pass_if_due(&self, stripe: &Client, every: Duration) -> Result<bool, ServiceError> {
        let holder = self.holder;
        let begun =
            self.with(move |conn| async move { reconcile_state::begin(conn, holder, every).await }.boxed()).await?;
        let Some(state) = begun else { return Ok(false) };
        let mut figures = PassFigures::default();
        let result = tokio::select! {
            result = self.pass(stripe, state.read_until, &mut figures) => result,
            () = self.keep_lease() => Err(anyhow::anyhow!("another replica has taken over")),
        };
        match &result {
            Ok(()) => log::info!(
                "reconciled with Stripe: read {} events, {} never arrived, {} failed, {} subscriptions differ",
                figures.read,
                figures.missing,
                figures.failed,
                figures.differing
            ),
            Err(error) => log::warn!("cannot reconcile with Stripe: {error:#}"),
        }
        let error = result.err().map(|error| format!("{error:#}"));
        self.finish(figures, error.as_deref()).await?;
        Ok(true)
    }

    async fn pass(&self, stripe: &Client, read_until: Option<DateTime<Utc>>, figures: &mut PassFigures) -> Result<()> {
        self.read_events(stripe, None, read_until, &mut Budget::default(), figures).await?;
        self.read_connected(stripe, figures).await?;
        self.read_overdue(stripe).await
    }

    /// Reads the event lists of connected accounts. An account that Stripe refuses to show, such as one that has left,
    /// does not keep the others from being read.
    async fn read_connected(&self, stripe: &Client, figures: &mut PassFigures) -> Result<()> {
        let next = || self.with(|conn| async move { reconcile_accounts::next(conn, MOST_CONNECTED).await }.boxed());
        let mut budget = Budget::default();
        for account in with_retries(next).await? {
            if budget.is_spent() {
                break;
            }
            let id = account.connect_account.as_str();
            match self.read_events(stripe, Some(id), account.read_until, &mut budget, figures).await {
                Err(error) if is_refused(&error) => self.note_refusal(&account, &error).await?,
                result => result?,
            }
        }
        Ok(())
    }

    async fn note_refusal(&self, account: &ReconcileAccount, error: &anyhow::Error) -> Result<()> {
        let (id, reason) = (&account.connect_account, format!("{error:#}"));
        // An account that has left is refused in each pass: log that once.
        if account.error.as_ref() != Some(&reason) {
            log::warn!("cannot reconcile connected account {id}: {reason}");
        }
        with_retries(|| {
            let (id, reason) = (id.clone(), reason.clone());
            self.with(move |conn| {
                async move { reconcile_accounts::record(conn, &id, None, Some(&reason)).await }.boxed()
            })
        })
        .await?;
        Ok(())
    }

    /// Reads the events of the key's own account or of a connected one, from an hour before `read_until` on.
    async fn read_events(
        &self,
        stripe: &Client,
        connect_account: Option<&str>,
        read_until: Option<DateTime<Utc>>,
        budget: &mut Budget,
        figures: &mut PassFigures,
    ) -> Result<()> {
        let end = Utc::now() - YOUNGEST;
        let from = read_until.map_or(end - FIRST_WINDOW, |cursor| (cursor - OVERLAP).max(end - STRIPES_MEMORY));
        for (since, until) in slices(from, end) {
            if budget.is_spent() {
                log::info!("reconciled with Stripe up to {since}; the next pass goes on from there");
                break;
            }
            let connect = connect_account.map(str::to_owned);
            let scope = Scope { since: Some(since), until: Some(until), connect_account: connect };
            let window = Window::read(&self.service, stripe, scope, |_| {}).await?;
            self.apply(&window, figures).await?;
            let compared = self.compare(stripe, &window, connect_account, budget.to_compare, figures).await?;
            budget.to_compare -= compared;
            budget.to_read = budget.to_read.saturating_sub(window.count);
            self.advance(connect_account, until).await?;
        }
        Ok(())
    }

    /// Records that all events before `until` have been read.
    async fn advance(&self, connect_account: Option<&str>, until: DateTime<Utc>) -> Result<()> {
        let holder = self.holder;
        with_retries(|| {
            let account = connect_account.map(str::to_owned);
            self.with(move |conn| {
                async move {
                    match account {
                        None => reconcile_state::advance(conn, holder, until).await,
                        Some(account) => reconcile_accounts::record(conn, &account, Some(until), None).await,
                    }
                }
                .boxed()
            })
        })
        .await?;
        Ok(())
    }

    async fn apply(&self, window: &Window, figures: &mut PassFigures) -> Result<()> {
        figures.read += i64::try_from(window.count).unwrap_or(i64::MAX);
        let (missing, failed) = (&mut figures.missing, &mut figures.failed);
        window
            .apply(&self.service, false, |event, applied| match applied {
                // It arrived in the meantime.
                Ok(Recorded::Duplicate) => {}
                Ok(recorded) => {
                    *missing += 1;
                    self.service.parts().metrics.missing_event();
                    log::warn!("event {} {} never arrived: {}", event.id, event.event_type, recorded.as_str());
                }
                Err(error) => {
                    *missing += 1;
                    *failed += 1;
                    self.service.parts().metrics.missing_event();
                    log::error!("event {} {} never arrived, and failed: {error}", event.id, event.event_type);
                }
            })
            .await?;
        Ok(())
    }

    /// Compares at most `most` of the window's subscriptions; returns how many.
    async fn compare(
        &self,
        stripe: &Client,
        window: &Window,
        connect_account: Option<&str>,
        most: usize,
        figures: &mut PassFigures,
    ) -> Result<usize> {
        let subscriptions = window.subscriptions.to_compare(most);
        let count = subscriptions.len();
        let differing = &mut figures.differing;
        let on_compared = |id: &str, compared: Compared| match compared {
            Ok(Some(Comparison::Differs(differences))) => {
                *differing += 1;
                for each in differences {
                    log::warn!("subscription {id} {}: ours {}, Stripe's {}", each.column, each.ours, each.stripes);
                }
            }
            Ok(Some(Comparison::Absent)) => {
                *differing += 1;
                log::warn!("subscription {id} has no row");
            }
            Ok(Some(Comparison::Same { .. } | Comparison::Parked) | None) => {}
            Err(error) => log::warn!("subscription {id} was not compared with Stripe's: {error}"),
        };
        self.service.compare_all(stripe, subscriptions, connect_account, on_compared).await?;
        Ok(count)
    }

    /// Reads overdue subscriptions from Stripe and applies what is news.
    async fn read_overdue(&self, stripe: &Client) -> Result<()> {
        let after = self.service.parts().policy.entitlement.overdue_after;
        let overdue = with_retries(|| {
            self.with(move |conn| async move { overdue::some(conn, after, MOST_OVERDUE).await }.boxed())
        })
        .await?;
        for subscription in overdue {
            self.read_one(stripe, &subscription).await?;
        }
        Ok(())
    }

    async fn read_one(&self, stripe: &Client, overdue: &Overdue) -> Result<()> {
        let id = &overdue.stripe_subscription_id;
        let account = overdue.connect_account.as_deref();
        let answer = stripe.dated_subscription(id, account).await;
        let answer = match answer.with_context(|| format!("cannot read subscription {id} from Stripe")) {
            Err(error) if is_refused(&error) => {
                log::warn!("subscription {id} is overdue since {}: {error:#}", overdue.ended);
                return Ok(());
            }
            answer => answer?,
        };
        let Some(answer) = answer else {
            log::warn!("subscription {id} is overdue since {}, and Stripe has none of this id", overdue.ended);
            return Ok(());
        };
        let object = answer.body.object().clone();
        match with_retries(|| self.service.compare(object.clone())).await {
            Ok(Comparison::Same { .. }) => {
                log::warn!("subscription {id} is overdue since {}, and so it is at Stripe", overdue.ended);
                return Ok(());
            }
            Ok(_) => {}
            Err(error) => {
                log::error!("subscription {id} is overdue, and was not compared: {}", failure_of_its_own(error)?);
                return Ok(());
            }
        }
        // By Stripe's clock, never by this machine's.
        let as_of = answer.date.context("Stripe's answer has no date")?;
        let event = Event::observed(&answer.body, account, as_of)?;
        match with_retries(|| self.service.apply(event.clone())).await {
            Ok(recorded) => log::warn!("subscription {id} was overdue: read from Stripe, {}", recorded.as_str()),
            Err(error) => log::error!("subscription {id} is overdue, and failed: {}", failure_of_its_own(error)?),
        }
        Ok(())
    }

    /// Prolongs the lease until it is lost.
    async fn keep_lease(&self) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            let holder = self.holder;
            match self.with(move |conn| async move { reconcile_state::renew(conn, holder).await }.boxed()).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => log::debug!("cannot prolong the reconciler's lease: {}", error.chain()),
            }
        }
    }

    async fn finish(&self, figures: PassFigures, error: Option<&str>) -> Result<(), ServiceError> {
        let (holder, error) = (self.holder, error.map(str::to_owned));
        self.with(move |conn| {
            async move { reconcile_state::finish(conn, holder, figures, error.as_deref()).await }.boxed()
        })
        .await?;
        Ok(())
    }

    /// Runs a few statements on the service's runtime.
    async fn with<T, F>(&self, work: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Conn) -> BoxFuture<'c, QueryResult<T>> + Send + 'static,
    {
        let service = self.service.clone();
        self.service
            .read(READ_LIMIT, async move {
                let mut conn = service.connection().await?;
                Ok(work(&mut conn).await?)
            })
            .await
    }

    /// Brings the metrics up to date with the database.
    async fn show(&self) {
        let after = self.service.parts().policy.entitlement.overdue_after;
        let read = self.with(move |conn| {
            async move { Ok((reconcile_state::find(conn).await?, overdue::count(conn, after).await?.subscriptions)) }
                .boxed()
        });
        match read.await {
            Ok((state, overdue)) => {
                let succeeded = state.and_then(|state| state.succeeded_at);
                self.service.parts().metrics.reconciled(succeeded, overdue);
            }
            Err(error) => log::debug!("cannot read the state of reconciling: {}", error.chain()),
        }
    }
}

/// The time from `from` to `end` in pieces, oldest first.
fn slices(from: DateTime<Utc>, end: DateTime<Utc>) -> impl Iterator<Item = (DateTime<Utc>, DateTime<Utc>)> {
    let starts = std::iter::successors(Some(from), move |start| Some(*start + SLICE).filter(|next| *next < end));
    starts.map(move |start| (start, (start + SLICE).min(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_cover_the_window_without_a_gap() {
        let end = Utc::now();
        for hours in [0, 1, 24, 25, 72] {
            let from = end - TimeDelta::hours(hours);
            let slices: Vec<_> = slices(from, end).collect();
            assert_eq!((slices[0].0, slices[slices.len() - 1].1), (from, end));
            assert!(slices.windows(2).all(|pair| pair[0].1 == pair[1].0));
            assert!(slices.iter().all(|(start, end)| *end - *start <= SLICE));
        }
    }
}
