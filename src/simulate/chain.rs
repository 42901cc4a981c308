//! Checks the announced changes of a subscription: an unbroken chain from nothing, or from a local row, to the row that
//! the table holds. Pure.

use serde_json::Value;

use super::compare::{Fields, same};
use super::tables::Change;

/// The contract's columns of a row, as a change shows them.
const COLUMNS: [&str; 31] = [
    "id",
    "account_id",
    "plan",
    "plan_source",
    "status",
    "stripe_subscription_id",
    "stripe_price_id",
    "seat_limit",
    "current_period_start",
    "current_period_end",
    "cancel_at_period_end",
    "cancel_at",
    "canceled_at",
    "ended_at",
    "ends_at",
    "trial_end",
    "paused_collection",
    "stripe_created",
    "cancellation_reason",
    "cancellation_feedback",
    "metadata",
    "items",
    "items_complete",
    "livemode",
    "connect_account",
    "latest_invoice_id",
    "latest_invoice_status",
    "latest_invoice_created",
    "latest_invoice_url",
    "next_payment_attempt",
    "created_at",
];

/// The kinds that a change has if and only if one of these columns changed, first rows and take-overs excepted.
const KINDS: [(&str, &[&str]); 5] = [
    ("plan_changed", &["plan"]),
    ("seats_changed", &["seat_limit"]),
    ("status_changed", &["status"]),
    ("moved", &["account_id"]),
    (
        "invoice_changed",
        &[
            "latest_invoice_id",
            "latest_invoice_status",
            "latest_invoice_created",
            "latest_invoice_url",
            "next_payment_attempt",
        ],
    ),
];

/// Checks the changes of one subscription, oldest first, against its row.
pub(super) fn check(row: &Value, changes: &[Change], fields: &mut Fields<'_>) {
    let mut former: Option<&Change> = None;
    for change in changes {
        let nothing = Value::Null;
        let before = change.before.as_ref().unwrap_or(&nothing);
        match former {
            None => fields.expect(
                "first change's subscription before",
                &Value::Null,
                before.get("stripe_subscription_id").unwrap_or(&Value::Null),
            ),
            Some(former) => {
                fields.expect_none(
                    "columns of a change that are not the former one's",
                    &differing(&former.after, before),
                );
                let is_in_order = change.changed_at >= former.changed_at;
                fields.expect("changed_at is in order", &true.into(), &is_in_order.into());
            }
        }
        check_kinds(change, before, former.is_none(), fields);
        former = Some(change);
    }
    match former {
        Some(last) => {
            fields.expect_none("columns of the last change that are not the row's", &differing(&last.after, row))
        }
        None => fields.expect("has changes", &true.into(), &false.into()),
    }
}

fn check_kinds(change: &Change, before: &Value, is_first: bool, fields: &mut Fields<'_>) {
    let changed = differing(before, &change.after);
    fields.expect("a change changes something", &true.into(), &(!changed.is_empty()).into());
    let has = |kind: &str| change.kinds.iter().any(|other| other == kind);
    if is_first {
        fields.expect("the first change has the kind started", &true.into(), &has("started").into());
    }
    if has("started") {
        return;
    }
    for (kind, columns) in KINDS {
        let expected = columns.iter().any(|column| changed.contains(column));
        fields.expect(kind, &expected.into(), &has(kind).into());
    }
}

/// The columns that two rows do not show alike, or that one of them does not have.
fn differing(one: &Value, other: &Value) -> Vec<&'static str> {
    let is_same = |column: &&str| match (one.get(*column), other.get(*column)) {
        (Some(one), Some(other)) => same(one, other),
        _ => false,
    };
    COLUMNS.into_iter().filter(|column| !is_same(column)).collect()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use serde_json::json;

    use super::*;
    use crate::simulate::compare::Difference;

    fn row(seats: i64) -> Value {
        let mut row: Value = COLUMNS.into_iter().map(|column| (column.to_owned(), Value::Null)).collect();
        row["stripe_subscription_id"] = json!("sub_1");
        row["created_at"] = json!("2025-01-01T00:00:00+00:00");
        row["seat_limit"] = json!(seats);
        row
    }

    fn change(before: Option<Value>, after: Value, kinds: &[&str]) -> Change {
        Change {
            stripe_subscription_id: "sub_1".to_owned(),
            kinds: kinds.iter().map(|&kind| kind.to_owned()).collect(),
            before,
            after,
            changed_at: DateTime::UNIX_EPOCH,
        }
    }

    fn differences(changes: &[Change]) -> Vec<Difference> {
        let mut differences = Vec::new();
        check(&row(2), changes, &mut Fields::new("sub_1", &mut differences));
        differences
    }

    #[test]
    fn a_chain_leads_to_the_row_and_every_gap_is_found() {
        let mut first = change(None, row(1), &["started"]);
        // Times are compared as times.
        first.after["created_at"] = json!("2025-01-01T00:00:00Z");
        let second = change(Some(row(1)), row(2), &["seats_changed"]);
        assert_eq!(differences(&[first.clone(), second.clone()]), []);
        let local = change(Some(json!({"stripe_subscription_id": null})), row(1), &["started"]);
        assert_eq!(differences(&[local, second.clone()]), [], "a take-over");

        let other_kind = Change { kinds: vec!["updated".to_owned()], ..second.clone() };
        let mut late = first.clone();
        late.changed_at += chrono::TimeDelta::seconds(1);
        let mut lacking = second.clone();
        lacking.after.as_object_mut().unwrap().remove("items");
        for (broken, what) in [
            (vec![], "no change"),
            (vec![first.clone()], "the last one is missing"),
            (vec![second.clone()], "the first one is missing"),
            (vec![first.clone(), change(Some(row(7)), row(2), &["seats_changed"])], "one between is missing"),
            (vec![first.clone(), second.clone(), change(Some(row(2)), row(2), &["updated"])], "one changes nothing"),
            (vec![first.clone(), other_kind], "the kind is another"),
            (vec![late, second.clone()], "the times run backwards"),
            (vec![first, lacking], "a column is not shown"),
        ] {
            assert!(!differences(&broken).is_empty(), "{what}");
        }
    }
}
