//! The event parser: it never panics, takes what is an event and nothing else, and what it takes PostgreSQL can hold.

use bytes::Bytes;
use chrono::DateTime;
use serde_json::{Value, json};
use subledger::secret::Secret;
use subledger::stripe::signature::{Verified, sign, verify};
use subledger::stripe::{Event, Kind, NAMED_TYPES};

use super::json;

const MAX_ID_BYTES: usize = 255;

/// Takes the bytes as they are, as the JSON that they spell, and as an event whose object they spell. Returns the
/// payloads that were made of them.
pub fn hold(data: &[u8]) -> Vec<String> {
    let spelled = json::spelled(data);
    let first = usize::from(data.first().copied().unwrap_or_default());
    let event_type = NAMED_TYPES.get(first).copied().unwrap_or("some.other");
    let whole = json!({"id": "evt_1", "type": event_type, "data": {"object": &spelled}}).to_string();
    let of_whole = hold_of(whole.as_bytes());
    assert!(of_whole.is_some(), "this is an event: {whole}");
    [hold_of(data), hold_of(spelled.to_string().as_bytes()), of_whole].into_iter().flatten().collect()
}

fn hold_of(data: &[u8]) -> Option<String> {
    let given: Option<Value> = serde_json::from_slice(data).ok();
    let event = match Event::parse(&verified(data)) {
        Ok(event) => event,
        Err(error) => {
            assert!(error.to_string().len() < 200, "the answer does not grow with the payload: {error}");
            assert!(!given.is_some_and(|given| is_event(&given)), "refused, but an event: {error}");
            return None;
        }
    };
    let body: Value = serde_json::from_str(&event.payload).expect("the payload is JSON");
    assert!(is_event(&body), "taken, but no event: {body}");
    assert!(json::parts(&body).into_iter().all(fits_jsonb), "jsonb cannot hold {body}");
    if given.is_some_and(|given| json::parts(&given).into_iter().all(is_usual)) {
        assert_eq!(event.payload.as_bytes(), data, "kept as it was received");
    }
    hold_fields(&event, &body);
    let again = Event::parse(&verified(event.payload.as_bytes())).expect("a payload is an event");
    assert_eq!(shown(&again), shown(&event), "what is replayed is what was received");
    Some(event.payload.to_string())
}

/// Whatever is said of an event stands in it.
fn hold_fields(event: &Event, body: &Value) {
    assert_eq!((Some(&*event.id), Some(&*event.event_type)), (body["id"].as_str(), body["type"].as_str()));
    let ids = [&event.connect_account, &event.customer_id, &event.subscription_id];
    for id in ids.into_iter().filter_map(|id| id.as_deref()) {
        assert!(!id.is_empty() && id.len() <= MAX_ID_BYTES, "{id}");
        assert!(json::has_text(body, id), "{id} is not in {body}");
    }
    for id in &event.named_account_ids {
        let stands = |part: &Value| part.as_str().is_some_and(|text| text.eq_ignore_ascii_case(&id.to_string()));
        assert!(json::parts(body).into_iter().any(stands), "{id} is not in {body}");
    }
    if let Some(created) = event.created {
        let seconds = body["created"].as_i64();
        let text = || DateTime::parse_from_rfc3339(body["created"].as_str()?).ok().map(|time| time.timestamp());
        assert_eq!(seconds.or_else(text), Some(created.timestamp()), "{body}");
    }
    assert_eq!(event.livemode, body["livemode"] == true);
    if event.kind != Kind::Other {
        assert!(event.data()["object"].get("id").is_some_and(Value::is_string), "{body}");
        assert_ne!(body["object"], "v2.core.event");
    }
}

/// Everything that can be asked of an event, as text.
fn shown(event: &Event) -> String {
    let ids = (&event.id, &event.connect_account, &event.customer_id, &event.subscription_id);
    let rest = (&event.event_type, event.kind, event.created, &event.api_version, event.livemode);
    let objects = (event.object(), event.data());
    format!("{ids:?} {rest:?} {:?} {objects:?} {}", event.named_account_ids, event.payload)
}

fn is_event(body: &Value) -> bool {
    let is_id = |name: &str| body[name].as_str().is_some_and(|text| !text.is_empty() && text.len() <= MAX_ID_BYTES);
    body.is_object() && is_id("id") && is_id("type")
}

/// Whether it is nothing that would have to be replaced: no NUL, and no number that is no 64-bit one.
fn is_usual(value: &Value) -> bool {
    let has_nul = |text: &str| text.contains('\0');
    match value {
        Value::String(text) => !has_nul(text),
        Value::Object(members) => !members.keys().any(|name| has_nul(name)),
        Value::Number(number) => number.is_i64() || number.is_u64(),
        _ => true,
    }
}

/// What PostgreSQL's documentation says of `jsonb` and, for numbers, of `numeric`: no NUL; at most 131072 digits
/// before the point and 16383 after it.
fn fits_jsonb(value: &Value) -> bool {
    let has_nul = |text: &str| text.contains('\0');
    match value {
        Value::String(text) => !has_nul(text),
        Value::Object(members) => !members.keys().any(|name| has_nul(name)),
        Value::Number(number) => fits_numeric(&number.to_string()),
        _ => true,
    }
}

fn fits_numeric(number: &str) -> bool {
    let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let Ok(exponent) = exponent.parse::<i64>() else { return false };
    let length = |digits: &str| i64::try_from(digits.len()).unwrap_or(i64::MAX);
    length(whole).saturating_add(exponent) <= 131_072 && length(fraction).saturating_sub(exponent) <= 16_383
}

/// Bytes as they come from Stripe. There is no other way to an event than a signature.
fn verified(data: &[u8]) -> Verified {
    let secret = Secret::new("whsec_fuzz");
    let header = sign(data, &secret, 0);
    verify(Some(header.as_bytes()), Bytes::copy_from_slice(data), &[secret], 300, DateTime::UNIX_EPOCH)
        .expect("signed and in time")
}
