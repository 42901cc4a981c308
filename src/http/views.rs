//! How events and accounts look from outside: the contract's fields, in its names.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use crate::db::failures::Failure;
use crate::db::listing::Listed;
use crate::db::subscriptions::Row;
use crate::service::{AccountView, EventPage, EventView};

/// One event, alone: with its payload.
pub fn event(view: &EventView) -> Value {
    let mut event = listed(&view.event, &view.failures);
    event["payload"] = match &view.payload {
        Some(payload) => serde_json::from_str(payload).unwrap_or_else(|_| payload.clone().into()),
        None => Value::Null,
    };
    event
}

/// A page of events.
pub fn events(page: &EventPage) -> Value {
    let data: Vec<_> = page.events.iter().map(|(event, failures)| listed(event, failures)).collect();
    json!({"data": data, "has_more": page.has_more})
}

fn listed(event: &Listed, failures: &[Failure]) -> Value {
    json!({
        "id": event.id,
        "type": event.type_,
        "status": event.status,
        "created": time(event.created),
        "received_at": time(Some(event.received_at)),
        "api_version": event.api_version,
        "livemode": event.livemode,
        "connect_account": event.connect_account,
        "customer": event.customer_id,
        "subscription": event.subscription_id,
        "account": event.account_id,
        "failures": failures.iter().map(failure).collect::<Vec<_>>(),
    })
}

fn failure(failure: &Failure) -> Value {
    json!({"failed_at": time(Some(failure.failed_at)), "error": failure.error})
}

/// One account.
pub fn account(view: &AccountView) -> Value {
    let entitlement = &view.entitlement;
    json!({
        "id": view.account.id,
        "name": view.account.name,
        "stripe_customer_ids": view.customers,
        "subscriptions": view.subscriptions.iter().map(subscription).collect::<Vec<_>>(),
        "entitlement": {
            "entitled": entitlement.entitled,
            "reason": entitlement.reason,
            "plan": entitlement.plan,
            "seat_limit": entitlement.seat_limit,
            "until": time(entitlement.until),
            "since_event": entitlement.since_event,
        },
    })
}

fn subscription(row: &Row) -> Value {
    let (state, as_of, invoice) = (&row.state, &row.as_of, &row.latest_invoice);
    let times = [
        ("current_period_start", state.current_period_start),
        ("current_period_end", state.current_period_end),
        ("cancel_at", state.cancel_at),
        ("canceled_at", state.canceled_at),
        ("ended_at", state.ended_at),
        ("trial_end", state.trial_end),
        ("last_event_created", as_of.last_event_created),
        ("created_at", Some(row.created_at)),
        ("updated_at", Some(row.updated_at)),
    ];
    let mut columns: Map<String, Value> = times.into_iter().map(|(name, at)| (name.to_owned(), time(at))).collect();
    let others = [
        ("id", json!(row.id)),
        ("account_id", json!(row.account_id)),
        ("plan", json!(state.plan)),
        ("status", json!(state.status)),
        ("stripe_subscription_id", json!(row.stripe_subscription_id)),
        ("stripe_price_id", json!(state.stripe_price_id)),
        ("seat_limit", json!(state.seat_limit)),
        ("cancel_at_period_end", json!(state.cancel_at_period_end)),
        ("paused_collection", json!(state.paused_collection)),
        ("latest_invoice_id", json!(invoice.latest_invoice_id)),
        ("latest_invoice_status", json!(invoice.latest_invoice_status)),
        ("last_event_id", json!(as_of.last_event_id)),
    ];
    columns.extend(others.into_iter().map(|(name, value)| (name.to_owned(), value)));
    Value::Object(columns)
}

/// RFC 3339 in UTC.
fn time(at: Option<DateTime<Utc>>) -> Value {
    at.map_or(Value::Null, |at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true).into())
}
