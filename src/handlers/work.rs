//! The work of one transaction, for one event or several: what was loaded, and what is to be written. Handlers decide on
//! rows in memory, so that a later event of the transaction sees what an earlier one decided.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use diesel::QueryResult;
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use futures_util::future::{FutureExt, join_all, try_join};
use uuid::Uuid;

use super::{Context, Handled, HandlerError, change};
use crate::db::facts::{self, Facts, Reference};
use crate::db::subscriptions::{self, Row};
use crate::db::{Conn, changes, events};
use crate::stripe::Event;

/// How an event is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recording {
    /// For the first time: its idempotency row is inserted.
    First,
    /// Again: the row is there, with this outcome (such as `parked`), which is replaced.
    Again(String),
}

/// An event that is to be applied.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The event.
    pub event: Arc<Event>,
    /// How it is recorded.
    pub recording: Recording,
}

/// A row as it was found and as it is to be written.
#[derive(Debug)]
struct Tracked {
    /// `None` if the row is to be inserted.
    found: Option<Arc<Row>>,
    /// What the next change shows as `before`: what was found, or the row that was merged into this one.
    before: Option<Arc<Row>>,
    row: Row,
    /// The last event that changed the row.
    event_id: Option<String>,
}

/// An event that was handled.
#[derive(Debug)]
struct Record {
    submission: Submission,
    outcome: &'static str,
    account_id: Option<Uuid>,
}

/// What was loaded and what is to be written.
#[derive(Debug, Default)]
pub struct Work {
    facts: HashMap<String, Facts>,
    /// By `stripe_subscription_id`.
    rows: BTreeMap<String, Tracked>,
    records: Vec<Record>,
}

/// Why nothing of a transaction was written.
#[derive(Debug)]
pub enum WriteError {
    /// One of the events is recorded already, says the database. Ask for its row before you believe it: a trigger of the
    /// application's can raise the same violation.
    AlreadyRecorded,
    /// A statement failed.
    Database(DieselError),
}

impl Work {
    /// Locks the subscriptions' rows and looks up what is known of the events, in one round trip. The look-up is sent behind
    /// the locking statement, so that it sees what the lock waited for.
    pub async fn load(conn: &Conn, ctx: Context<'_>, submissions: &[&Submission]) -> QueryResult<Self> {
        let mut ids: Vec<_> =
            submissions.iter().filter_map(|submission| super::locked_subscription(&submission.event)).collect();
        ids.sort_unstable();
        ids.dedup();
        let references: Vec<_> = submissions.iter().map(|submission| reference(ctx, &submission.event)).collect();
        let lock = async { if ids.is_empty() { Ok(Vec::new()) } else { subscriptions::lock(conn, &ids).await } };
        let (mut rows, facts) = try_join(lock, facts::load(conn, &references)).await?;
        // A subscription that takes over a local row gives it its id and deletes its own row. Whoever waited for the lock of
        // that row found none. The look-up came later, and has seen the other.
        let is_locked = |id: &str| rows.iter().any(|row| row.stripe_subscription_id.as_deref() == Some(id));
        let mut missed: Vec<_> = submissions
            .iter()
            .zip(&facts)
            .filter(|(_, facts)| facts.account_of_row.is_some())
            .filter_map(|(submission, _)| super::locked_subscription(&submission.event))
            .filter(|id| !is_locked(id))
            .collect();
        if !missed.is_empty() {
            missed.sort_unstable();
            missed.dedup();
            rows.extend(subscriptions::lock(conn, &missed).await?);
        }
        let rows = rows.into_iter().filter_map(|row| Some((row.stripe_subscription_id.clone()?, Tracked::found(row))));
        let event_ids = submissions.iter().map(|submission| submission.event.id.clone());
        Ok(Self { rows: rows.collect(), facts: event_ids.zip(facts).collect(), records: Vec::new() })
    }

    /// What is known of an event.
    ///
    /// # Errors
    /// If it was not loaded.
    pub fn facts(&self, event: &Event) -> Result<&Facts, HandlerError> {
        self.facts.get(&event.id).ok_or(HandlerError::Gone("what was loaded of the event"))
    }

    /// The row of a Stripe subscription, as the events so far leave it.
    pub fn row(&self, stripe_subscription_id: &str) -> Option<&Row> {
        self.rows.get(stripe_subscription_id).map(|tracked| &tracked.row)
    }

    /// Has a row written that was loaded or [`Work::adopt`]ed before, or inserted if it was not.
    pub fn put(&mut self, row: Row, event_id: Option<&str>) {
        let Some(id) = row.stripe_subscription_id.clone() else {
            return;
        };
        let tracked = self.rows.entry(id).or_insert_with(|| Tracked {
            found: None,
            before: None,
            row: row.clone(),
            event_id: None,
        });
        if tracked.found.is_none() || tracked.row != row {
            // What no event caused, such as a move, leaves the name of the event that changed the row before.
            tracked.event_id = event_id.map(str::to_owned).or(tracked.event_id.take());
        }
        tracked.row = row;
    }

    /// Takes in a row that was locked in this transaction.
    pub fn adopt(&mut self, row: Row) {
        if let Some(id) = row.stripe_subscription_id.clone() {
            self.rows.entry(id).or_insert_with(|| Tracked::found(row));
        }
    }

    /// Has a local row become the subscription's row. The row that the subscription had, if any, is deleted already.
    pub fn take_over(&mut self, local: Row, row: Row, event_id: Option<&str>) {
        let Some(id) = row.stripe_subscription_id.clone() else {
            return;
        };
        let local = Arc::new(local);
        let own = self.rows.remove(&id).and_then(|tracked| tracked.before);
        let before = own.or_else(|| Some(local.clone()));
        self.rows.insert(id, Tracked { found: Some(local), before, row, event_id: event_id.map(str::to_owned) });
    }

    /// The account's first local row was taken over, and its plan is kept: events that are still to be handled know it.
    pub fn keep_local_plan(&mut self, account_id: Uuid, plan: &str) {
        for facts in self.facts.values_mut().filter(|facts| facts.account() == Some(account_id)) {
            facts.local_plan.get_or_insert_with(|| plan.to_owned());
        }
    }

    /// The rows of an account that are tracked.
    pub fn rows_of_account(&self, account_id: Uuid) -> Vec<Row> {
        self.rows.values().map(|tracked| &tracked.row).filter(|row| row.account_id == account_id).cloned().collect()
    }

    /// Whether an event is recorded already, or was handled before in this transaction.
    pub fn is_known(&self, event: &Event) -> Result<bool, HandlerError> {
        Ok(self.facts(event)?.is_recorded || self.records.iter().any(|record| record.submission.event.id == event.id))
    }

    /// Has an event recorded with what became of it.
    pub fn record(&mut self, submission: &Submission, handled: &Handled) {
        self.records.push(Record {
            submission: submission.clone(),
            outcome: handled.outcome.as_str(),
            account_id: handled.account_id,
        });
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.rows.values().all(|tracked| !tracked.is_changed())
    }

    /// Writes everything in one round trip: the idempotency rows, the subscriptions' rows and their changes.
    ///
    /// # Errors
    /// [`WriteError`]; the transaction must then be rolled back.
    pub async fn write(&mut self, conn: &Conn) -> Result<(), WriteError> {
        self.records.sort_by(|one, other| one.submission.event.id.cmp(&other.submission.event.id));
        let changed: Vec<_> = self.rows.values().filter(|tracked| tracked.is_changed()).collect();
        let changes: Vec<_> = changed
            .iter()
            .filter_map(|tracked| change::between(tracked.before.as_deref(), &tracked.row, tracked.event_id.as_deref()))
            .collect();
        let mut statements = vec![self.insert_events(conn).boxed()];
        let again = self.records.iter().filter_map(|record| match &record.submission.recording {
            Recording::Again(former) if former != record.outcome => Some(replace_outcome(conn, record, former).boxed()),
            _ => None,
        });
        statements.extend(again);
        statements.extend(changed.iter().map(|tracked| tracked.write(conn).boxed()));
        statements
            .push(async { changes::insert(conn, &changes).await.map(drop).map_err(WriteError::Database) }.boxed());
        join_all(statements).await.into_iter().collect()
    }

    async fn insert_events(&self, conn: &Conn) -> Result<(), WriteError> {
        let first = self.records.iter().filter(|record| record.submission.recording == Recording::First);
        let rows: Vec<_> = first
            .map(|record| {
                let event = &*record.submission.event;
                let failed_since = self.facts.get(&event.id).and_then(|facts| facts.failed_since);
                events::NewEvent { event, outcome: record.outcome, account_id: record.account_id, failed_since }
            })
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        match events::insert(conn, &rows).await {
            Ok(inserted) if inserted == rows.len() => Ok(()),
            // A trigger of the application's kept a row from being inserted: nothing may be committed without it.
            Ok(_) => Err(WriteError::Database(DieselError::NotFound)),
            Err(error) if is_violation_of(&error, events::PRIMARY_KEY) => Err(WriteError::AlreadyRecorded),
            Err(error) => Err(WriteError::Database(error)),
        }
    }
}

impl Tracked {
    fn found(row: Row) -> Self {
        let found = Some(Arc::new(row.clone()));
        Self { before: found.clone(), found, row, event_id: None }
    }

    fn is_changed(&self) -> bool {
        self.found.as_deref() != Some(&self.row)
    }

    async fn write(&self, conn: &Conn) -> Result<(), WriteError> {
        let written = match &self.found {
            None => subscriptions::insert(conn, &self.row).await,
            Some(found) => subscriptions::update(conn, found, &self.row).await,
        };
        match written {
            Ok(1) => Ok(()),
            // The row is locked, so a trigger of the application's must have kept it from being written.
            Ok(_) => Err(WriteError::Database(DieselError::NotFound)),
            Err(error) => Err(WriteError::Database(error)),
        }
    }
}

async fn replace_outcome(conn: &Conn, record: &Record, former: &str) -> Result<(), WriteError> {
    let event = &record.submission.event;
    match events::replace_outcome(conn, event, former, record.outcome, record.account_id).await {
        Ok(0) => Err(WriteError::AlreadyRecorded),
        Ok(_) => Ok(()),
        Err(error) => Err(WriteError::Database(error)),
    }
}

/// Whether a statement violated this unique constraint.
pub fn is_violation_of(error: &DieselError, constraint: &str) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, information)
        if information.constraint_name() == Some(constraint))
}

fn reference<'a>(ctx: Context<'_>, event: &'a Event) -> Reference<'a> {
    let mut names = ctx.policy.trusted_names(event).iter().copied();
    Reference {
        event_id: &event.id,
        subscription_id: event.subscription_id.as_deref(),
        customer_id: event.customer_ids.first().map(String::as_str),
        customer_account_id: event.customer_ids.get(1).map(String::as_str),
        first_name: names.next(),
        second_name: names.next(),
    }
}
