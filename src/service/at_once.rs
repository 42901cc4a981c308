//! The short way: what most events come to, in one statement each; and under load the statements of several events in
//! one transaction, since a commit costs as much as all the rest.
//!
//! Each statement is whole by itself, the idempotency row and the change. That several share a commit changes nothing
//! but when they are on disk, and nobody is answered before. If any of them fails, all are rolled back, and each goes
//! again alone: what befalls one event is not another's.

use std::iter;
use std::sync::Arc;

use diesel::QueryResult;
use diesel_async::SimpleAsyncConnection;
use futures_util::future::{join, join_all};

use super::deliver::{Recorded, is_duplicate};
use super::queue::{Follower, Place, TooLong, Word};
use super::transaction::{AttemptError, judge};
use super::watched::Watched;
use super::{ATTEMPT_LIMIT, Service};
use crate::db::Conn;
use crate::db::pool::Pooled;
use crate::db::record::{self, AtOnce};
use crate::handlers::{Outcome, Shortcut};
use crate::stripe::Event;

/// Begins a transaction whose statements hardly wait for a lock, since all the others would wait with them.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '50ms'";

/// An event, and all there is to do for it.
#[derive(Clone, Debug)]
pub(super) struct Short {
    pub(super) event: Arc<Event>,
    pub(super) shortcut: Arc<Shortcut>,
}

/// What came of it; `None` where the guard did not hold and nothing changed.
pub(super) type Came = Option<Recorded>;

/// The place of a delivery that is on its way.
pub(super) type OwnPlace = Place<Short, Came>;

/// What a delivery has come to when its turn comes.
pub(super) enum Turn {
    /// It is to go now.
    Go(OwnPlace, Short),
    /// Another took it along, and it is committed.
    Taken(Recorded),
    /// Another took it along, and its guard did not hold.
    Missed,
}

impl Service {
    /// Waits for the turn of a delivery, or until another took it along.
    pub(super) async fn turn(&self, short: Short) -> Result<Turn, AttemptError> {
        let name = short.event.subscription_id.as_deref();
        match self.queue.join(name, short.clone(), self.parts.turn_timeout).await {
            Ok(Word::Go(place)) => Ok(Turn::Go(place, short)),
            Ok(Word::Done(Some(recorded))) => Ok(Turn::Taken(recorded)),
            Ok(Word::Done(None)) => Ok(Turn::Missed),
            Err(TooLong) => Err(AttemptError::Turn),
        }
    }

    /// Takes the shortcut: alone, or together with those that wait by now. Whatever it says is committed.
    pub(super) async fn at_once(&self, place: OwnPlace, short: Short) -> Result<Came, AttemptError> {
        tokio::time::timeout(ATTEMPT_LIMIT, self.go(place, short)).await.unwrap_or(Err(AttemptError::TimedOut))
    }

    async fn go(&self, mut place: OwnPlace, short: Short) -> Result<Came, AttemptError> {
        // Taken within the future that may be dropped: a connection that outlived its transaction's future would
        // take part in the dead transaction.
        let mut conn = self.connection().await?;
        let followers = place.take_along();
        if followers.is_empty() {
            return alone(&mut conn, &short).await;
        }
        // A task that nobody aborts: that the leader's client has gone is not to be the followers' loss.
        let task = tokio::spawn(self.clone().lead(place, conn, short.clone(), followers));
        let place = match task.await {
            Ok(Ok(came)) => return Ok(came),
            Ok(Err(place)) => place,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return Err(AttemptError::TimedOut),
            },
        };
        let mut conn = self.connection().await?;
        let came = alone(&mut conn, &short).await;
        drop(place);
        came
    }

    /// Takes the shortcuts of the leader and its followers. Gives the place back, for the leader alone, where that
    /// failed.
    async fn lead(
        self,
        mut place: OwnPlace,
        mut conn: Pooled,
        short: Short,
        followers: Vec<Follower<Short, Came>>,
    ) -> Result<Came, OwnPlace> {
        let mut shorts: Vec<_> =
            iter::once(&short).chain(followers.iter().map(|follower| &follower.item)).enumerate().collect();
        // In the same order in all replicas, which may want the same rows; and within a subscription the older first, so
        // that none is stale for want of patience.
        shorts.sort_by_key(|(_, short)| (&short.event.subscription_id, short.event.created));
        let done = tokio::time::timeout(ATTEMPT_LIMIT, together(&mut conn, &shorts)).await;
        match done.unwrap_or(Err(AttemptError::TimedOut)) {
            Ok(came) => {
                let mut came: Vec<_> = shorts.iter().map(|(position, _)| *position).zip(came).collect();
                came.sort_unstable_by_key(|(position, _)| *position);
                let mut came = came.into_iter().map(|(_, came)| came);
                drop(place);
                let own = came.next().flatten();
                self.tell_all(followers, came);
                Ok(own)
            }
            Err(error) => {
                log::debug!("{} events go each alone: {error}", shorts.len());
                place.part(followers);
                Err(place)
            }
        }
    }

    /// Counts the followers, whether or not anybody waits for them still, and tells them what came of them.
    fn tell_all(&self, followers: Vec<Follower<Short, Came>>, came: impl Iterator<Item = Came>) {
        for (follower, came) in followers.into_iter().zip(came) {
            if let Some(recorded) = came {
                self.count(&follower.item.event, recorded);
            }
            follower.tell(came);
        }
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
async fn together(conn: &mut Conn, shorts: &[(usize, &Short)]) -> Result<Vec<Came>, AttemptError> {
    let mut watched = Watched::of(conn);
    let came = in_one_transaction(watched.conn(), shorts).await;
    watched.release();
    match came {
        Ok(came) => Ok(came),
        Err(error) => Err(judge(error.into(), conn).await),
    }
}

async fn in_one_transaction(conn: &Conn, shorts: &[(usize, &Short)]) -> QueryResult<Vec<Came>> {
    // Sent together, in this order: polled in turn, each sends before it waits, or waits for its statement to be
    // prepared, which is one after the other.
    let begin = async { (&mut &*conn).batch_execute(BEGIN).await };
    let all = join_all(shorts.iter().map(|(_, short)| take(conn, short)));
    let (begun, came) = join(begin, all).await;
    let came = begun.and_then(|()| came.into_iter().collect());
    // Not before all have been answered: one that still had to be prepared would come after it.
    let end = if came.is_ok() { "COMMIT" } else { "ROLLBACK" };
    (&mut &*conn).batch_execute(end).await?;
    came
}

/// Takes a shortcut. `None` where its guard did not hold.
async fn take(conn: &Conn, Short { event, shortcut }: &Short) -> QueryResult<Came> {
    let (outcome, came) = match &**shortcut {
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
