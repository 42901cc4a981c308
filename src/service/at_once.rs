//! The short way: what most events come to, in one statement each; and under load the statements of several events in
//! one transaction, since a commit costs as much as all the rest.
//!
//! Each statement is whole by itself, the idempotency row and the change. That several share a commit changes nothing
//! but when they are on disk, and nobody is answered before. If any of them fails, all are rolled back, and each goes
//! again alone: what befalls one event is not another's.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use diesel::QueryResult;
use diesel_async::SimpleAsyncConnection;
use futures_util::future::{FutureExt, join, join_all};

use super::deliver::{Recorded, is_duplicate};
use super::queue::{self, QueueError};
use super::transaction::{AttemptError, judge};
use super::watched::Watched;
use super::{ATTEMPT_LIMIT, Service};
use crate::db::Conn;
use crate::db::record::{self, AtOnce};
use crate::handlers::{Outcome, Shortcut};
use crate::stripe::Event;

/// Begins a transaction whose statements hardly wait for a lock, since all the others would wait with them.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '50ms'";

/// An event, and all there is to do for it.
#[derive(Debug)]
pub(super) struct Short {
    event: Arc<Event>,
    shortcut: Shortcut,
}

/// What came of it; `None` where the guard did not hold and nothing changed.
type Came = Option<Recorded>;

/// The events that go the short way, or wait for it.
pub(super) type Queue = queue::Queue<Short, Result<Came, AttemptError>>;

type Lane = queue::Lane<Short, Result<Came, AttemptError>>;
type Waiting = queue::Waiting<Short, Result<Came, AttemptError>>;

impl Service {
    /// Delivers an event in the short way. What it says is committed, and counted; `None` where the guard did not hold
    /// and nothing changed.
    pub(super) async fn at_once(&self, event: &Arc<Event>, shortcut: Shortcut) -> Result<Came, AttemptError> {
        let short = Short { event: event.clone(), shortcut };
        let name = event.subscription_id.as_deref();
        match self.queue.join(name, short, self.parts.turn_timeout, |lane| self.start(lane)).await {
            Ok(came) => came,
            Err(QueueError::TooLong) => Err(AttemptError::Turn),
            Err(QueueError::Died) => Err(AttemptError::Died),
        }
    }

    /// On the runtime that owns the connections, as a task that nobody aborts: that one client has gone is not to be
    /// the others' loss.
    fn start(&self, mut lane: Lane) {
        let service = self.clone();
        self.parts.runtime.spawn(async move {
            while let Some(first) = lane.next() {
                // The names of what is done are free for others, too.
                service.queue.go_on(|lane| service.start(lane));
                service.go(&mut lane, first).await;
            }
        });
    }

    /// Takes the shortcut of the first; alone, or together with those that wait by now.
    async fn go(&self, lane: &mut Lane, mut first: Waiting) {
        // Alone, nothing is done for a client that has gone. Dropped, an attempt takes its connection with it.
        let conn = tokio::select! {
            conn = self.connection() => conn,
            () = first.caller.gone() => return,
        };
        let mut conn = match conn {
            Ok(conn) => conn,
            Err(error) => return first.caller.tell(Err(error)),
        };
        match <[Waiting; 1]>::try_from(lane.take_along(first)) {
            Ok([one]) => self.go_alone(&mut conn, one).await,
            Err(taken) => self.go_together(&mut conn, lane, taken).await,
        }
    }

    async fn go_alone(&self, conn: &mut Conn, mut one: Waiting) {
        tokio::select! {
            came = tokio::time::timeout(ATTEMPT_LIMIT, alone(conn, &one.item)) => {
                self.answer(one, came.unwrap_or(Err(AttemptError::TimedOut)));
            }
            () = one.caller.gone() => {}
        }
    }

    async fn go_together(&self, conn: &mut Conn, lane: &mut Lane, mut taken: Vec<Waiting>) {
        // In the same order in all replicas, which may want the same rows; and within a subscription the older first, so
        // that none is stale for want of patience.
        taken.sort_by(|one, other| one.item.order().cmp(&other.item.order()));
        let shorts: Vec<_> = taken.iter().map(|waiting| &waiting.item).collect();
        let attempt = tokio::time::timeout(ATTEMPT_LIMIT, together(conn, &shorts));
        // A panic, too, is one event's and not the others'.
        let came = AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or(Ok(Err(AttemptError::Died)));
        match came.unwrap_or(Err(AttemptError::TimedOut)) {
            Ok(came) => taken.into_iter().zip(came).for_each(|(waiting, came)| self.answer(waiting, Ok(came))),
            Err(error) => {
                log::debug!("{} events go each alone: {error}", taken.len());
                lane.again_alone(taken, |lane| self.start(lane));
            }
        }
    }

    /// Counts what is now committed, whether or not anybody waits for it still, and tells who does.
    fn answer(&self, waiting: Waiting, came: Result<Came, AttemptError>) {
        if let Ok(Some(recorded)) = came {
            self.count(&waiting.item.event, recorded);
        }
        waiting.caller.tell(came);
    }
}

impl Short {
    /// Before or after which others it goes.
    fn order(&self) -> impl Ord {
        (self.event.subscription_id.as_deref(), self.event.created)
    }
}

/// Takes a shortcut, as a statement that stands alone.
async fn alone(conn: &mut Conn, short: &Short) -> Result<Came, AttemptError> {
    let mut watched = Watched::of(conn);
    let came = take(watched.conn(), short).await;
    watched.release();
    match came {
        Ok(came) => Ok(came),
        Err(error) if is_duplicate(&error) => Ok(Some(Recorded::Duplicate)),
        Err(error) => Err(judge(error.into(), conn).await),
    }
}

/// Takes shortcuts in one transaction: what came of each, or nothing of any.
async fn together(conn: &mut Conn, shorts: &[&Short]) -> Result<Vec<Came>, AttemptError> {
    let mut watched = Watched::of(conn);
    let came = in_one_transaction(watched.conn(), shorts).await;
    watched.release();
    match came {
        Ok(came) => Ok(came),
        Err(error) => Err(judge(error.into(), conn).await),
    }
}

async fn in_one_transaction(conn: &Conn, shorts: &[&Short]) -> QueryResult<Vec<Came>> {
    // Sent together, in this order: polled in turn, each sends before it waits, or waits for its statement to be
    // prepared, which is one after the other.
    let begin = async { (&mut &*conn).batch_execute(BEGIN).await };
    let all = join_all(shorts.iter().map(|short| take(conn, short)));
    let (begun, came) = join(begin, all).await;
    let came = begun.and_then(|()| came.into_iter().collect());
    // Not before all have been answered: one that still had to be prepared would come after it.
    let end = if came.is_ok() { "COMMIT" } else { "ROLLBACK" };
    (&mut &*conn).batch_execute(end).await?;
    came
}

/// Takes a shortcut. `None` where its guard did not hold.
async fn take(conn: &Conn, Short { event, shortcut }: &Short) -> QueryResult<Came> {
    let (outcome, came) = match shortcut {
        Shortcut::NewerState(newer) => {
            match record::with_newer_state(conn, event, Outcome::Applied.as_str(), newer).await? {
                // It is old, as a rule; or had to wait for the row, and judged by what it had seen before.
                AtOnce::Missed => {
                    (Outcome::Stale, record::as_stale(conn, event, Outcome::Stale.as_str(), newer.version).await?)
                }
                came => (Outcome::Applied, came),
            }
        }
        Shortcut::NewerInvoice(invoice) => {
            (Outcome::Applied, record::with_newer_invoice(conn, event, Outcome::Applied.as_str(), invoice).await?)
        }
        Shortcut::Nothing => (Outcome::Ignored, record::unchanged(conn, event, Outcome::Ignored.as_str()).await?),
    };
    Ok(match came {
        AtOnce::Recorded => Some(Recorded::First(outcome)),
        AtOnce::Duplicate => Some(Recorded::Duplicate),
        AtOnce::Missed => None,
    })
}
