//! What changed between two versions of a subscription's row. Pure.

use serde_json::{Map, Value};

use crate::db::changes::NewChange;
use crate::db::subscriptions::Row;
use crate::stripe::Subscription;

/// What happened to a subscription, in the contract's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Started,
    Renewed,
    PlanChanged,
    SeatsChanged,
    StatusChanged,
    CancellationScheduled,
    CancellationWithdrawn,
    Ended,
    Moved,
    InvoiceChanged,
    Updated,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Started,
        Self::Renewed,
        Self::PlanChanged,
        Self::SeatsChanged,
        Self::StatusChanged,
        Self::CancellationScheduled,
        Self::CancellationWithdrawn,
        Self::Ended,
        Self::Moved,
        Self::InvoiceChanged,
        Self::Updated,
    ];

    /// The word of the column `kinds`.
    fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Renewed => "renewed",
            Self::PlanChanged => "plan_changed",
            Self::SeatsChanged => "seats_changed",
            Self::StatusChanged => "status_changed",
            Self::CancellationScheduled => "cancellation_scheduled",
            Self::CancellationWithdrawn => "cancellation_withdrawn",
            Self::Ended => "ended",
            Self::Moved => "moved",
            Self::InvoiceChanged => "invoice_changed",
            Self::Updated => "updated",
        }
    }

    /// The columns whose change the kind accounts for. A changed column that no kind accounts for is an update.
    fn accounts_for(self, column: &str) -> bool {
        let columns: &[&str] = match self {
            Self::Started => return true,
            Self::Renewed => &["current_period_start", "current_period_end", "ends_at", "items"],
            Self::PlanChanged => &["plan", "plan_source", "stripe_price_id", "items", "items_complete"],
            Self::SeatsChanged => &["seat_limit", "items"],
            Self::StatusChanged => &["status"],
            Self::CancellationScheduled | Self::CancellationWithdrawn => &CANCELLATION,
            Self::Ended => return CANCELLATION.contains(&column) || matches!(column, "status" | "ended_at"),
            Self::Moved => &["account_id"],
            Self::InvoiceChanged => return is_of_invoice(column),
            Self::Updated => &[],
        };
        columns.contains(&column)
    }
}

const CANCELLATION: [&str; 6] =
    ["cancel_at_period_end", "cancel_at", "canceled_at", "ends_at", "cancellation_reason", "cancellation_feedback"];

fn is_of_invoice(column: &str) -> bool {
    column.starts_with("latest_invoice_") || column == "next_payment_attempt"
}

/// The change from `before` to `after`; `None` if no contract column changed.
///
/// `before` is the row as the transaction found it, or `None` if there was none; `after` is the row as the transaction
/// leaves it, with the `id` and the `created_at` that the database has. A local row that a Stripe subscription takes
/// over is its `before`. `event_id` is the last event that changed the row, if one did.
pub fn between(before: Option<&Row>, after: &Row, event_id: Option<&str>) -> Option<NewChange> {
    if before.is_some_and(|before| has_same_columns(before, after)) {
        return None;
    }
    let columns_before = before.map(contract_columns);
    let columns_after = contract_columns(after);
    let changed: Vec<&str> = columns_after
        .iter()
        .filter(|(name, value)| columns_before.as_ref().is_none_or(|before| before.get(*name) != Some(value)))
        .map(|(name, _)| name.as_str())
        .collect();
    if changed.is_empty() {
        return None;
    }
    let kinds = kinds(before, after, &changed).into_iter().map(Kind::as_str).collect();
    Some(NewChange {
        subscription_id: after.id,
        account_id: after.account_id,
        stripe_subscription_id: after.stripe_subscription_id.clone(),
        event_id: event_id.map(str::to_owned),
        kinds,
        before: columns_before.map(Value::Object),
        after: Value::Object(columns_after),
    })
}

/// Whether all contract columns are surely the same: those that are compared contain them, and a few more. Much faster than
/// to compare the columns by their names.
fn has_same_columns(before: &Row, after: &Row) -> bool {
    let placed = |row: &Row| (row.id, row.account_id, row.created_at);
    placed(before) == placed(after)
        && before.stripe_subscription_id == after.stripe_subscription_id
        && before.state == after.state
        && before.latest_invoice == after.latest_invoice
}

/// The contract's columns of a row, by name.
pub fn contract_columns(row: &Row) -> Map<String, Value> {
    let mut columns = match serde_json::to_value(row) {
        Ok(Value::Object(columns)) => columns,
        // Nothing in a row refuses to be JSON.
        _ => Map::new(),
    };
    // The database generates this column; a row that is yet to be written has none.
    let state = &row.state;
    let period_end = state.current_period_end.filter(|_| state.cancel_at_period_end);
    let ends_at = state.ended_at.or(state.cancel_at).or(period_end);
    columns.insert("ends_at".to_owned(), serde_json::to_value(ends_at).unwrap_or_default());
    columns
}

fn kinds(before: Option<&Row>, after: &Row, changed: &[&str]) -> Vec<Kind> {
    let has_changed = |column: &str| changed.contains(&column);
    let is_new = before
        .is_none_or(|before| before.id != after.id || before.stripe_subscription_id != after.stripe_subscription_id);
    let has_ended = is_ended(after) && before.is_none_or(|before| !is_ended(before));
    // A first row and a take-over are told by `started`; what they differ in is no change of this subscription.
    let Some(before) = before.filter(|_| !is_new) else {
        return [Some(Kind::Started), has_ended.then_some(Kind::Ended)].into_iter().flatten().collect();
    };
    let mut kinds: Vec<Kind> = Vec::new();
    for kind in Kind::ALL {
        let happened = match kind {
            Kind::Started => false,
            Kind::Renewed => {
                after.state.current_period_end > before.state.current_period_end
                    && before.state.current_period_end.is_some()
            }
            Kind::PlanChanged => has_changed("plan"),
            Kind::SeatsChanged => has_changed("seat_limit"),
            Kind::StatusChanged => has_changed("status"),
            Kind::CancellationScheduled => !is_ended(after) && is_newly_scheduled(before, after),
            Kind::CancellationWithdrawn => !is_ended(after) && is_scheduled(before) && !is_scheduled(after),
            Kind::Ended => has_ended,
            Kind::Moved => has_changed("account_id"),
            Kind::InvoiceChanged => changed.iter().any(|column| is_of_invoice(column)),
            Kind::Updated => changed.iter().any(|column| !kinds.iter().any(|kind| kind.accounts_for(column))),
        };
        if happened {
            kinds.push(kind);
        }
    }
    kinds
}

fn is_ended(row: &Row) -> bool {
    row.state.ended_at.is_some() || Subscription::is_final(&row.state.status)
}

fn is_scheduled(row: &Row) -> bool {
    row.state.cancel_at_period_end || row.state.cancel_at.is_some()
}

/// Whether a cancellation was scheduled, or another day was set for one. Stripe may say the same day in two ways.
fn is_newly_scheduled(before: &Row, after: &Row) -> bool {
    let day = |row: &Row| row.state.cancel_at.or(row.state.current_period_end);
    is_scheduled(after) && (!is_scheduled(before) || (after.state.cancel_at.is_some() && day(after) != day(before)))
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta, Utc};
    use uuid::Uuid;

    use super::*;
    use crate::db::subscriptions::{AsOf, LatestInvoice, State};

    fn day(day: i64) -> Option<DateTime<Utc>> {
        Some(DateTime::UNIX_EPOCH + TimeDelta::days(day))
    }

    fn row() -> Row {
        Row {
            ends_at: None,
            placed_by_metadata: false,
            took_local_row: false,
            id: Uuid::nil(),
            account_id: Uuid::nil(),
            stripe_subscription_id: Some("sub_1".to_owned()),
            state: State {
                plan: Some("pro".to_owned()),
                status: "active".to_owned(),
                seat_limit: Some(3),
                current_period_start: day(0),
                current_period_end: day(30),
                ..State::default()
            },
            as_of: AsOf::default(),
            latest_invoice: LatestInvoice::default(),
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
        }
    }

    fn kinds_of(before: Option<&Row>, change: impl FnOnce(&mut Row)) -> Vec<&'static str> {
        let mut after = before.cloned().unwrap_or_else(row);
        change(&mut after);
        between(before, &after, Some("evt_1")).map(|change| change.kinds).unwrap_or_default()
    }

    #[test]
    fn bookkeeping_is_no_change() {
        let bookkeeping = |row: &mut Row| {
            row.updated_at += TimeDelta::days(1);
            row.as_of.last_event_id = Some("evt_9".to_owned());
            row.latest_invoice.latest_invoice_event_created = day(2);
            row.state.stripe_customer_id = Some("cus_1".to_owned());
        };
        let mut after = row();
        bookkeeping(&mut after);
        assert_eq!(between(Some(&row()), &after, None), None);
    }

    #[test]
    fn each_change_has_its_word() {
        let scheduled = Row { state: State { cancel_at_period_end: true, ..row().state }, ..row() };
        let local = Row { stripe_subscription_id: None, ..row() };
        assert_eq!(kinds_of(None, |_| {}), ["started"]);
        assert_eq!(kinds_of(None, |row| row.state.status = "canceled".to_owned()), ["started", "ended"]);
        assert_eq!(kinds_of(Some(&local), |row| row.stripe_subscription_id = Some("sub_1".to_owned())), ["started"]);
        assert_eq!(kinds_of(Some(&row()), |row| row.state.current_period_end = day(60)), ["renewed"]);
        assert_eq!(kinds_of(Some(&row()), |row| row.state.plan = None), ["plan_changed"]);
        assert_eq!(kinds_of(Some(&row()), |row| row.state.seat_limit = None), ["seats_changed"]);
        assert_eq!(kinds_of(Some(&row()), |row| row.state.status = "past_due".to_owned()), ["status_changed"]);
        assert_eq!(kinds_of(Some(&row()), |row| row.state.cancel_at = day(9)), ["cancellation_scheduled"]);
        assert_eq!(
            kinds_of(Some(&scheduled), |row| row.state.cancel_at_period_end = false),
            ["cancellation_withdrawn"]
        );
        assert_eq!(kinds_of(Some(&row()), |row| row.account_id = Uuid::max()), ["moved"]);
        let pay = |row: &mut Row| row.latest_invoice.latest_invoice_status = Some("paid".to_owned());
        assert_eq!(kinds_of(Some(&row()), pay), ["invoice_changed"]);
        assert_eq!(kinds_of(Some(&row()), |row| row.state.paused_collection = true), ["updated"]);
        let end = |row: &mut Row| {
            row.state.status = "canceled".to_owned();
            row.state.ended_at = day(30);
            row.state.cancel_at_period_end = false;
        };
        assert_eq!(kinds_of(Some(&scheduled), end), ["status_changed", "ended"]);
    }

    #[test]
    fn several_changes_come_in_the_order_of_the_contract_and_the_rest_is_an_update() {
        let change = |row: &mut Row| {
            row.state.paused_collection = true;
            row.account_id = Uuid::max();
            row.state.status = "past_due".to_owned();
            row.state.seat_limit = Some(8);
            row.state.current_period_start = day(30);
            row.state.current_period_end = day(60);
        };
        let expected = ["renewed", "seats_changed", "status_changed", "moved", "updated"];
        assert_eq!(kinds_of(Some(&row()), change), expected);
    }

    #[test]
    fn a_change_shows_the_columns_by_their_names_and_reads_back_as_the_row() {
        let mut after = row();
        after.state.cancel_at_period_end = true;
        let change = between(Some(&row()), &after, Some("evt_1")).unwrap();
        assert_eq!(change.after["current_period_end"], "1970-01-31T00:00:00Z");
        assert_eq!(change.after["ends_at"], "1970-01-31T00:00:00Z");
        assert_eq!(change.before.as_ref().unwrap()["ends_at"], Value::Null);
        for bookkeeping in ["updated_at", "last_event_id", "last_event_type", "stripe_customer_id"] {
            assert!(change.after.get(bookkeeping).is_none(), "{bookkeeping}");
        }
        let read: Row = serde_json::from_value(change.after).unwrap();
        assert_eq!((read.state, read.id, read.created_at), (after.state, after.id, after.created_at));
    }
}
