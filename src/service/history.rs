//! What changed in an account, and how the account was shown at an earlier time.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{AccountView, READ_LIMIT, Service, ServiceError};
use crate::db::changes::{self, AppliedEvent, Change};
use crate::db::entitlements;
use crate::db::subscriptions::{AsOf, Row};
use crate::handlers::change::contract_columns;
use crate::handlers::ordering::{self, Order, Version};
use crate::stripe::{Kind, Subscription, thin};

/// Changes on an account's page.
const HISTORY_LIMIT: i64 = 100;

impl Service {
    /// The newest changes of an account, newest first.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn changes_of_account(&self, id: Uuid) -> Result<Vec<Change>, ServiceError> {
        let service = self.clone();
        self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(changes::newest_of_account(&mut conn, id, HISTORY_LIMIT).await?)
        })
        .await
    }

    /// The account as it was shown at `at`; `None` if there was none. Its name, customers and features are those of today,
    /// since only subscriptions have a history.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub async fn account_at(&self, id: Uuid, at: DateTime<Utc>) -> Result<Option<AccountView>, ServiceError> {
        let Some(view) = self.account(id).await? else { return Ok(None) };
        if view.account.created_at > at {
            return Ok(None);
        }
        let service = self.clone();
        let around = self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(changes::around(&mut conn, id, at).await?)
        });
        let mut subscriptions = rows_at(around.await?, view.subscriptions, at);
        subscriptions.retain(|row| row.account_id == id);
        let service = self.clone();
        let named = self.read(READ_LIMIT, async move {
            let stripe_id = |row: &'_ Row| row.stripe_subscription_id.clone().map(|stripe_id| (row.id, stripe_id));
            let ids: Vec<_> = subscriptions.iter().filter_map(stripe_id).collect();
            let ids: Vec<_> = ids.iter().map(|(row_id, stripe_id)| (*row_id, stripe_id.as_str())).collect();
            let mut conn = service.connection().await?;
            let mut last_events = last_events(changes::applied_events(&mut conn, &ids, at).await?);
            for row in &mut subscriptions {
                row.as_of = last_events.remove(&row.id).unwrap_or(std::mem::take(&mut row.as_of));
            }
            Ok(subscriptions)
        });
        let mut subscriptions = named.await?;
        subscriptions.sort_by_key(|row| (std::cmp::Reverse(row.created_at), row.id));
        let rows = Value::Array(subscriptions.iter().map(columns).collect());
        let service = self.clone();
        let entitlement = self.read(READ_LIMIT, async move {
            let mut conn = service.connection().await?;
            Ok(entitlements::at(&mut conn, id, &rows, at).await?)
        });
        // Absent only if the account was deleted just now.
        Ok(entitlement.await?.map(|entitlement| AccountView { subscriptions, entitlement, ..view }))
    }
}

/// The columns of a row that the rule of entitlement looks at, by name.
fn columns(row: &Row) -> Value {
    let mut columns = contract_columns(row);
    columns.insert("last_event_id".to_owned(), row.as_of.last_event_id.clone().into());
    Value::Object(columns)
}

/// The rows as they were at `at`: by the last change before, else by what the first change after found. A row that no
/// change tells of is as it is `today`.
fn rows_at(around: Vec<Change>, today: Vec<Row>, at: DateTime<Utc>) -> Vec<Row> {
    let told_of: HashSet<Uuid> = around.iter().map(|change| change.subscription_id).collect();
    let untold = today.into_iter().filter(|row| !told_of.contains(&row.id) && row.created_at <= at);
    let mut rows: BTreeMap<Uuid, Row> = BTreeMap::new();
    // A row that was merged into another one has the same Stripe id, and its last change came earlier.
    let mut owners: BTreeMap<String, Uuid> = BTreeMap::new();
    let (before, after): (Vec<_>, Vec<_>) = around.into_iter().partition(|change| change.changed_at <= at);
    for change in before {
        let Some(row) = row(&change, Some(&change.after)) else { continue };
        let owner = row.stripe_subscription_id.clone().and_then(|id| owners.insert(id, row.id));
        if let Some(merged) = owner {
            rows.remove(&merged);
        }
        rows.insert(row.id, row);
    }
    for change in after {
        if !rows.contains_key(&change.subscription_id)
            && let Some(row) = row(&change, change.before.as_ref()).filter(|row| row.created_at <= at)
            && row.stripe_subscription_id.as_ref().is_none_or(|id| !owners.contains_key(id))
        {
            rows.insert(row.id, Row { as_of: AsOf::default(), updated_at: row.created_at, ..row });
        }
    }
    rows.into_values().chain(untold).collect()
}

/// The row that a change shows; `None` if it shows none.
fn row(change: &Change, columns: Option<&serde_json::Value>) -> Option<Row> {
    let row: Row = serde_json::from_value(columns?.clone())
        .inspect_err(|error| log::error!(change_id = change.id; "a change cannot be read: {error}"))
        .ok()?;
    Some(Row { updated_at: change.changed_at, ..row })
}

/// The event that each row showed, by the rule that decided it then: the newest state of the events that had been applied.
///
/// A checkout shows a state only if that was fetched, and so counts if a change says that it did. What the row shows today
/// it has shown since that event was applied.
fn last_events(applied: Vec<AppliedEvent>) -> HashMap<Uuid, AsOf> {
    let mut shown: HashMap<Uuid, AppliedEvent> = HashMap::new();
    for event in applied.into_iter().filter(shows_a_state) {
        match shown.get(&event.row_id) {
            Some(stored) if stored.is_shown_today || (!event.is_shown_today && is_older(&event, stored)) => {}
            _ => drop(shown.insert(event.row_id, event)),
        }
    }
    let as_of = |event: AppliedEvent| AsOf {
        last_event_id: Some(event.id),
        last_event_type: event.event_type,
        last_event_created: event.created,
        projected_event_id: None,
    };
    shown.into_iter().map(|(row_id, event)| (row_id, as_of(event))).collect()
}

fn shows_a_state(event: &AppliedEvent) -> bool {
    match event.event_type.as_deref().map(kind) {
        Some(kind) if kind.shows_a_subscription() => true,
        Some(Kind::Checkout) | None => event.changed_state || event.is_shown_today,
        Some(_) => false,
    }
}

fn kind(event_type: &str) -> Kind {
    if event_type.starts_with("v1.") { thin::kind_of(event_type) } else { Kind::of(event_type) }
}

/// Whether an event lost against the one that was shown when it was applied.
fn is_older(event: &AppliedEvent, stored: &AppliedEvent) -> bool {
    let version = |event: &AppliedEvent| {
        let is_final = event.status.as_deref().is_some_and(Subscription::is_final);
        let kind = event.event_type.as_deref().map(kind);
        Some(Version {
            created: event.created?,
            is_final: is_final || kind == Some(Kind::SubscriptionDeleted),
            is_birth: kind == Some(Kind::SubscriptionCreated),
        })
    };
    match (version(stored), version(event)) {
        (Some(stored), Some(event)) => ordering::compare(stored, event) == Order::Older,
        // An event that is not stored any more was received before all that are.
        (stored, event) => stored.is_some() && event.is_none(),
    }
}
