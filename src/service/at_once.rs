//! What most events come to, in one statement each; and under load several events in one transaction, since a commit
//! costs as much as the rest.
//!
//! Together they are in one transaction or not at all: what fails together is rolled back, and each goes again alone.

use std::sync::Arc;

use diesel::QueryResult;
use diesel_async::SimpleAsyncConnection;
use futures_util::future::{join, join_all};

use super::Service;
use super::deliver::{Recorded, is_duplicate};
use super::queue::{Along, Word};
use super::transaction::{AttemptError, judge};
use super::watched::Watched;
use crate::db::Conn;
use crate::db::record::{self, AtOnce};
use crate::handlers::{Outcome, Shortcut};
use crate::stripe::Event;

/// How long a statement waits for a lock where others go with it, which then have to wait as well.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '50ms'";

/// An event, and all there is to do for it.
#[derive(Clone, Debug)]
pub(super) struct Short {
    pub(super) event: Arc<Event>,
    pub(super) shortcut: Arc<Shortcut>,
}

/// What came of it; `None` where the guard did not hold and nothing changed.
pub(super) type Came = Option<Recorded>;

impl Service {
    /// Takes the shortcut: alone, or together with others. Whatever it says is committed.
    pub(super) async fn at_once(&self, short: Short) -> Result<Came, AttemptError> {
        let mut place = match self.turn(&short).await? {
            Word::Go(place) => place,
            Word::Done(came) => return Ok(came),
        };
        // Taken within the future that may be dropped: a connection that outlived its transaction's future would
        // take part in the dead transaction.
        let mut conn = self.connection().await?;
        let along = place.take_along();
        if along.is_empty() {
            return alone(&mut conn, &short).await;
        }
        match together(&mut conn, along.iter().map(|along| &along.item).chain([&short])).await {
            Ok(mut came) => {
                let own = came.pop().flatten();
                drop(place);
                self.tell_all(along, came);
                Ok(own)
            }
            Err(error) => {
                log::debug!("{} events go each alone: {error}", along.len() + 1);
                place.part(along);
                // It may be closed.
                drop(conn);
                let mut conn = self.connection().await?;
                alone(&mut conn, &short).await
            }
        }
    }

    async fn turn(&self, short: &Short) -> Result<Word<Short, Came>, AttemptError> {
        let _waiting = self.parts.metrics.waiting();
        let name = short.event.subscription_id.as_deref();
        self.queue.join(name, short.clone(), self.parts.turn_timeout).await.map_err(|_| AttemptError::Turn)
    }

    fn tell_all(&self, along: Vec<Along<Short, Came>>, came: Vec<Came>) {
        for (along, came) in along.into_iter().zip(came) {
            let event = along.item.event.clone();
            if !along.tell(came)
                && let Some(recorded) = came
            {
                self.count(&event, recorded);
            }
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
async fn together(conn: &mut Conn, shorts: impl Iterator<Item = &Short>) -> Result<Vec<Came>, AttemptError> {
    let mut watched = Watched::of(conn);
    let came = in_one_transaction(watched.conn(), shorts).await;
    watched.release();
    match came {
        Ok(came) => Ok(came),
        Err(error) => Err(judge(error.into(), conn).await),
    }
}

async fn in_one_transaction(conn: &Conn, shorts: impl Iterator<Item = &Short>) -> QueryResult<Vec<Came>> {
    // Sent together: polled in turn, each sends before it waits.
    let begin = async { (&mut &*conn).batch_execute(BEGIN).await };
    let all = join_all(shorts.map(|short| take(conn, short)));
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
