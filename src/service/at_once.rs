//! The short way: what most events come to, in one statement each; and under load the statements of several events in
//! one transaction, since a commit costs as much as all the rest.
//!
//! Each statement is whole by itself, the idempotency row and the change. That several share a commit changes nothing
//! but when they are on disk, and nobody is answered before. If any of them fails, all are rolled back, and each goes
//! again alone: what befalls one event is not another's.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use diesel::QueryResult;
use futures_util::future::FutureExt;

use super::batch::in_one_transaction;
use super::deliver::{Recorded, is_duplicate};
use super::queue::{self, QueueError};
use super::transaction::{AttemptError, judge};
use super::watched::Watched;
use super::{ATTEMPT_LIMIT, Service};
use crate::db::Conn;
use crate::db::record::{self, AtOnce, Newer};
use crate::db::subscriptions::LatestInvoice;
use crate::handlers::ordering::Version;
use crate::handlers::{Outcome, Shortcut};
use crate::stripe::Event;

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
        for number in 0.. {
            let shorts: Vec<_> = taken.iter().map(|waiting| &waiting.item).collect();
            let attempt = tokio::time::timeout(ATTEMPT_LIMIT, together(conn, &shorts, number));
            // A panic, too, is one event's and not the others'.
            let came = AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or(Ok(Err(AttemptError::Died)));
            match came.unwrap_or(Err(AttemptError::TimedOut)) {
                Ok(came) => taken = self.answer_all(taken, came, number),
                Err(error) => {
                    log::debug!("{} events go each alone: {error}", taken.len());
                    return lane.again_alone(taken, |lane| self.start(lane));
                }
            }
            if taken.is_empty() {
                return;
            }
        }
    }

    /// Answers all but those for which there is a step after this one, which it returns.
    fn answer_all(&self, taken: Vec<Waiting>, came: Vec<Came>, number: usize) -> Vec<Waiting> {
        let mut missed = Vec::new();
        for (waiting, came) in taken.into_iter().zip(came) {
            if came.is_none() && waiting.item.step(number + 1).is_some() {
                missed.push(waiting);
            } else {
                self.answer(waiting, Ok(came));
            }
        }
        missed
    }

    /// Counts what is now committed, whether or not anybody waits for it still, and tells who does.
    fn answer(&self, waiting: Waiting, came: Result<Came, AttemptError>) {
        if let Ok(Some(recorded)) = came {
            self.count(&waiting.item.event, recorded);
        }
        waiting.caller.tell(came);
    }
}

/// One statement of a shortcut.
#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    /// Writes a newer state.
    State(&'a Newer),
    /// Records a state as too old. One that was not newer is, as a rule; or it had to wait for the row, and was judged
    /// by what had been there before.
    Stale(Version),
    /// Writes a newer invoice.
    Invoice(&'a LatestInvoice),
    /// Records an event that changes nothing.
    Nothing,
}

impl Short {
    /// Before or after which others it goes.
    fn order(&self) -> impl Ord {
        (self.event.subscription_id.as_deref(), self.event.created)
    }

    /// The steps, from 0 on. Each is for where the guard of the one before it did not hold.
    fn step(&self, number: usize) -> Option<Step<'_>> {
        match (&self.shortcut, number) {
            (Shortcut::NewerState(newer), 0) => Some(Step::State(newer)),
            (Shortcut::NewerState(newer), 1) => Some(Step::Stale(newer.version)),
            (Shortcut::NewerInvoice(invoice), 0) => Some(Step::Invoice(invoice)),
            (Shortcut::Nothing, 0) => Some(Step::Nothing),
            _ => None,
        }
    }

    /// Takes a step. `None` where its guard did not hold, or there is none.
    async fn take(&self, conn: &Conn, number: usize) -> QueryResult<Came> {
        let Some(step) = self.step(number) else {
            return Ok(None);
        };
        let outcome = match step {
            Step::State(_) | Step::Invoice(_) => Outcome::Applied,
            Step::Stale(_) => Outcome::Stale,
            Step::Nothing => Outcome::Ignored,
        };
        let (event, word) = (&self.event, outcome.as_str());
        let came = match step {
            Step::State(newer) => record::with_newer_state(conn, event, word, newer).await?,
            Step::Stale(version) => record::as_stale(conn, event, word, version).await?,
            Step::Invoice(invoice) => record::with_newer_invoice(conn, event, word, invoice).await?,
            Step::Nothing => record::unchanged(conn, event, word).await?,
        };
        Ok(match came {
            AtOnce::Recorded => Some(Recorded::First(outcome)),
            AtOnce::Duplicate => Some(Recorded::Duplicate),
            AtOnce::Missed => None,
        })
    }
}

/// Takes a shortcut, in statements that stand alone.
async fn alone(conn: &mut Conn, short: &Short) -> Result<Came, AttemptError> {
    let mut watched = Watched::of(conn);
    let (mut came, mut number) = (Ok(None), 0);
    while matches!(came, Ok(None)) && short.step(number).is_some() {
        came = short.take(watched.conn(), number).await;
        number += 1;
    }
    watched.release();
    match came {
        Ok(came) => Ok(came),
        Err(error) if is_duplicate(&error) => Ok(Some(Recorded::Duplicate)),
        Err(error) => Err(judge(error.into(), conn).await),
    }
}

/// Takes the same step of several in one transaction: what came of each, or nothing of any.
async fn together(conn: &mut Conn, shorts: &[&Short], number: usize) -> Result<Vec<Came>, AttemptError> {
    let mut watched = Watched::of(conn);
    let came = {
        let conn: &Conn = watched.conn();
        in_one_transaction(conn, shorts.iter().map(|short| short.take(conn, number)).collect()).await
    };
    watched.release();
    match came {
        Ok(came) => Ok(came),
        Err(error) => Err(judge(error.into(), conn).await),
    }
}
