//! JSON made of arbitrary bytes: what the properties cannot wait for a fuzzer to spell.

use serde_json::{Map, Number, Value};

const DEPTH: u8 = 7;

/// The names that the readers look for, and one that they do not.
const NAMES: [&str; 40] = [
    "id",
    "object",
    "type",
    "created",
    "data",
    "items",
    "price",
    "plan",
    "quantity",
    "status",
    "customer",
    "account",
    "subscription",
    "parent",
    "subscription_details",
    "metadata",
    "account_id",
    "client_reference_id",
    "mode",
    "api_version",
    "livemode",
    "previous_attributes",
    "current_period_start",
    "current_period_end",
    "cancel_at",
    "cancel_at_period_end",
    "canceled_at",
    "ended_at",
    "trial_end",
    "pause_collection",
    "recurring",
    "usage_type",
    "lookup_key",
    "behavior",
    "covers",
    "latest_invoice",
    "request",
    "default_price",
    "ID",
    "",
];

const TEXTS: [&str; 24] = [
    "",
    "active",
    "canceled",
    "incomplete_expired",
    "subscription",
    "metered",
    "licensed",
    "customer",
    "checkout.session.completed",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.paid",
    "invoice.payment_failed",
    "customer.deleted",
    "v2.core.event",
    "event",
    "sub_1",
    "cus_1",
    "price_mapped",
    "7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11",
    "2025-01-02T03:04:05Z",
    "-9000-01-01T00:00:00Z",
    "a\u{0}b\u{2028}\u{1b}",
];

const NUMBERS: [&str; 20] = [
    "0",
    "-0",
    "-1",
    "1",
    "5",
    "1.5",
    "1e2",
    "2147483647",
    "2147483648",
    "-2147483648",
    "4294967296",
    "4294967297",
    "1760000000",
    "-210866803200",
    "-210866803201",
    "8210266876799",
    "8210266876800",
    "9223372036854775807",
    "18446744073709551616",
    "1e999999",
];

/// The value that `bytes` spell: every byte is a choice, and there is a value for all of them.
pub fn spelled(bytes: &[u8]) -> Value {
    value(&mut bytes.iter().copied(), DEPTH)
}

fn value(bytes: &mut impl Iterator<Item = u8>, depth: u8) -> Value {
    let byte = bytes.next().unwrap_or(0);
    match byte % 8 {
        0 => Value::Null,
        1 => Value::Bool(byte >= 128),
        2 => number(bytes),
        3 => text(bytes).into(),
        4..=6 if depth > 0 => {
            (0..byte / 16).map_while(|_| Some((name(bytes)?, value(bytes, depth - 1)))).collect::<Map<_, _>>().into()
        }
        7 if depth > 0 => (0..byte / 32).map(|_| value(bytes, depth - 1)).collect::<Vec<_>>().into(),
        _ => Value::Null,
    }
}

fn name(bytes: &mut impl Iterator<Item = u8>) -> Option<String> {
    Some(NAMES[usize::from(bytes.next()?) % NAMES.len()].to_owned())
}

fn text(bytes: &mut impl Iterator<Item = u8>) -> String {
    match bytes.next().unwrap_or(0) {
        // As long as an id may be, and one longer.
        byte @ 250..=251 => "x".repeat(usize::from(byte) + 5),
        byte => TEXTS[usize::from(byte) % TEXTS.len()].to_owned(),
    }
}

fn number(bytes: &mut impl Iterator<Item = u8>) -> Value {
    match bytes.next().unwrap_or(0) {
        byte @ 200.. => i64::from_be_bytes([byte; 8].map(|byte| bytes.next().unwrap_or(byte))).into(),
        byte => {
            let text = NUMBERS[usize::from(byte) % NUMBERS.len()];
            text.parse::<Number>().map_or(Value::Null, Value::Number)
        }
    }
}

/// Every part of a value, itself first.
pub fn parts(value: &Value) -> Vec<&Value> {
    let mut parts = vec![value];
    let mut next = 0;
    while let Some(part) = parts.get(next).copied() {
        match part {
            Value::Array(items) => parts.extend(items),
            Value::Object(members) => parts.extend(members.values()),
            _ => {}
        }
        next += 1;
    }
    parts
}

/// Whether a string is anywhere in a value, as a value.
pub fn has_text(value: &Value, text: &str) -> bool {
    parts(value).into_iter().any(|part| part.as_str() == Some(text))
}

/// Whether a whole number is anywhere in a value.
pub fn has_number(value: &Value, number: i64) -> bool {
    parts(value).into_iter().any(|part| part.as_i64() == Some(number))
}
