//! Redaction: replaces personal data in payloads and keeps everything that is read for handling, replay and ties. Pure.
//!
//! The members that hold personal data are listed here and nowhere else, by their names in Stripe's API reference
//! (<https://docs.stripe.com/api>): customers, invoices, checkout sessions, charges, payment methods and accounts.

use std::str::FromStr;

use serde_json::{Map, Value};
use thiserror::Error;

/// The form in which payloads are stored: `STORED_PAYLOADS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StoredPayloads {
    /// As received.
    #[default]
    Full,
    /// Without personal data: [`redact`].
    Redacted,
}

/// Text that is not a form of stored payloads.
#[derive(Debug, Error)]
#[error("{0:?} is neither full nor redacted")]
pub struct UnknownForm(String);

impl FromStr for StoredPayloads {
    type Err = UnknownForm;

    fn from_str(text: &str) -> Result<Self, UnknownForm> {
        match text {
            "full" => Ok(Self::Full),
            "redacted" => Ok(Self::Redacted),
            _ => Err(UnknownForm(text.to_owned())),
        }
    }
}

/// What stands in the place of a redacted string.
const REDACTED: &str = "[redacted]";

/// Members whose value is personal data, or holds nothing else: names, addresses, e-mail addresses, phone numbers, tax
/// ids, payment details, free text, and links to pages and files that show them.
const PERSONAL: &[&str] = &[
    "account_holder_name",
    "account_number",
    "acss_debit",
    "address",
    "address_city",
    "address_country",
    "address_line1",
    "address_line1_check",
    "address_line2",
    "address_state",
    "address_zip",
    "address_zip_check",
    "au_becs_debit",
    "bacs_debit",
    "bank_account",
    "bank_name",
    "bic",
    "billing_details",
    "billing_email",
    "business_name",
    "buyer_email",
    "buyer_id",
    "card",
    "card_present",
    "client_secret",
    "collected_information",
    "comment",
    "company",
    "custom_fields",
    "customer_account_number",
    "customer_address",
    "customer_details",
    "customer_email",
    "customer_email_address",
    "customer_name",
    "customer_phone",
    "customer_purchase_ip",
    "customer_shipping",
    "customer_signature",
    "customer_tax_ids",
    "description",
    "dob",
    "dynamic_last4",
    "email",
    "evidence",
    "exp_month",
    "exp_year",
    "external_accounts",
    "fingerprint",
    "first_name",
    "footer",
    "header",
    "iban",
    "iban_last4",
    "id_number",
    "individual",
    "individual_name",
    "invoice_pdf",
    "ip",
    "ip_address",
    "last4",
    "last_name",
    "maiden_name",
    "name",
    "next_action",
    "owner",
    "payment_details",
    "payment_method_details",
    "phone",
    "phone_number",
    "receipt_email",
    "receipt_number",
    "receipt_url",
    "routing_number",
    "sepa_debit",
    "shipping",
    "shipping_address",
    "shipping_details",
    "sort_code",
    "sources",
    "support_address",
    "support_email",
    "support_phone",
    "tax_id",
    "tax_ids",
    "tos_acceptance",
    "us_bank_account",
    "user_agent",
    "verification",
    "verified_outputs",
    "wallet",
];

/// Objects of Stripe's that are personal data as a whole.
const PERSONAL_OBJECTS: [&str; 6] = ["bank_account", "card", "payment_method", "person", "source", "tax_id"];

/// Objects of Stripe's whose `url` is a link to a page that shows the customer's data. Other links are kept.
const PERSONAL_PAGES: [&str; 2] = ["billing_portal.session", "checkout.session"];

/// Objects of Stripe's that describe what is sold. Their names and descriptions are nobody's personal data.
const CATALOG_OBJECTS: [&str; 8] =
    ["coupon", "entitlements.feature", "plan", "price", "product", "shipping_rate", "tax_code", "tax_rate"];

/// What a catalog object keeps of [`PERSONAL`].
const CATALOG_TEXTS: [&str; 2] = ["description", "name"];

/// Members that are kept wherever they stand, because handlers, replay or ties read them, or because they only
/// identify an object. `metadata` is kept as it is; the others are still searched for personal data within.
const KEPT: &[&str] = &[
    "account",
    "account_id",
    "api_version",
    "cancel_at",
    "cancel_at_period_end",
    "canceled_at",
    "cancellation_details",
    "client_reference_id",
    "context",
    "covers",
    "created",
    "currency",
    "current_period_end",
    "current_period_start",
    "current_trial",
    "customer",
    "customer_account",
    "data",
    "deleted",
    "discount",
    "discounts",
    "end_date",
    "ended_at",
    "entitlements",
    "feature",
    "feedback",
    "has_more",
    "hosted_invoice_url",
    "id",
    "interval",
    "interval_count",
    "invoice",
    "items",
    "latest_invoice",
    "lines",
    "livemode",
    "lookup_key",
    "metadata",
    "mode",
    "next_payment_attempt",
    "object",
    "parent",
    "pause_collection",
    "payment_status",
    "pending_update",
    "period",
    "plan",
    "previous_attributes",
    "price",
    "pricing",
    "product",
    "quantity",
    "reason",
    "recurring",
    "related_object",
    "request",
    "schedule",
    "snapshot_event",
    "start_date",
    "status",
    "status_transitions",
    "subscription",
    "subscription_details",
    "subscription_item",
    "test_clock",
    "trial_end",
    "trial_start",
    "type",
    "unit_amount",
    "unit_amount_decimal",
    "usage_type",
];

/// What is done with personal data.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Strings become [`REDACTED`], numbers and booleans null. Objects and lists keep their shape.
    Replace,
    /// The member is taken out.
    Remove,
}

/// A payload without personal data, as JSON text. What is read for handling, replay and ties is kept, so that a replay
/// of the result projects to the same values.
pub fn redact(payload: &str) -> String {
    match serde_json::from_str(payload) {
        Ok(mut payload) => {
            walk(&mut payload, None, false, Act::Replace);
            payload.to_string()
        }
        // Text that is not JSON cannot be searched for personal data.
        Err(_) => Value::from(REDACTED).to_string(),
    }
}

/// [`redact`], and without the links to invoice pages: what remains of a customer who is erased.
pub fn erase(payload: &str) -> String {
    match serde_json::from_str(&redact(payload)) {
        Ok(mut payload) => {
            remove_invoice_pages(&mut payload);
            payload.to_string()
        }
        Err(_) => Value::from(REDACTED).to_string(),
    }
}

/// `value` with all personal data taken out. Ties compare objects and `previous_attributes` in this form, so that a
/// payload and its redacted form compare alike.
#[must_use]
pub fn comparable(mut value: Value) -> Value {
    walk(&mut value, None, false, Act::Remove);
    value
}

/// `owner` is the type of the object that `value` is a part of; `is_personal` is whether all of `value` is personal.
fn walk(value: &mut Value, owner: Option<&str>, is_personal: bool, act: Act) {
    match value {
        Value::Object(members) => walk_object(members, owner, is_personal, act),
        Value::Array(elements) => elements.iter_mut().for_each(|element| walk(element, owner, is_personal, act)),
        leaf if is_personal => replace(leaf),
        _ => {}
    }
}

fn walk_object(members: &mut Map<String, Value>, owner: Option<&str>, is_personal: bool, act: Act) {
    let own_type = members.get("object").and_then(Value::as_str).map(str::to_owned);
    let owner = own_type.as_deref().or(owner);
    let is_catalog = owner.is_some_and(|owner| CATALOG_OBJECTS.contains(&owner));
    let is_personal = is_personal || own_type.as_deref().is_some_and(|name| PERSONAL_OBJECTS.contains(&name));
    // Former values belong to the object beside them.
    let changed = members.get("object").and_then(|object| object.get("object")).and_then(Value::as_str);
    let changed = changed.map(str::to_owned);
    let is_redacted = |name: &str| {
        if KEPT.contains(&name) {
            return false;
        }
        is_personal
            || (PERSONAL.contains(&name) && !(is_catalog && CATALOG_TEXTS.contains(&name)))
            || (name == "url" && owner.is_some_and(|owner| PERSONAL_PAGES.contains(&owner)))
    };
    if act == Act::Remove {
        members.retain(|name, _| !is_redacted(name));
    }
    for (name, value) in members.iter_mut().filter(|(name, _)| *name != "metadata") {
        let is_kept = KEPT.contains(&name.as_str());
        let owner = if name == "previous_attributes" { changed.as_deref() } else { owner.filter(|_| is_catalog) };
        // The elements of a personal list are personal. Any other kept member within personal data keeps its own value; what
        // it holds is searched as usual.
        let is_list = is_personal && name == "data";
        walk(value, owner, is_list || (!is_kept && is_redacted(name)), act);
    }
}

fn replace(leaf: &mut Value) {
    match leaf {
        Value::String(text) if !text.is_empty() => *text = REDACTED.to_owned(),
        Value::Number(_) | Value::Bool(_) => *leaf = Value::Null,
        _ => {}
    }
}

fn remove_invoice_pages(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                if name == "hosted_invoice_url" {
                    *value = Value::Null;
                } else {
                    remove_invoice_pages(value);
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(remove_invoice_pages),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use proptest::sample::{Index, select};
    use serde_json::json;

    use super::*;
    use crate::stripe::signature::Verified;
    use crate::stripe::{Event, PricePlans, Subscription, jsonb};

    /// Every payload of the fixtures, events and API objects alike.
    fn fixtures() -> Vec<Value> {
        fn files(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    files(&path, found);
                } else if path.extension().is_some_and(|extension| extension == "json") {
                    found.push(path);
                }
            }
        }
        let mut found = Vec::new();
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), &mut found);
        found.retain(|path| !path.ends_with("signatures.json"));
        found.sort();
        let read = |path: &PathBuf| serde_json::from_str(&jsonb::fit(&std::fs::read_to_string(path).unwrap())).unwrap();
        found.iter().map(read).collect()
    }

    fn event(payload: &str) -> Option<Event> {
        Event::parse(&Verified::from_own_tables(payload.to_owned())).ok()
    }

    /// All that is read of an event, in words. A field that is read some day is in it by itself.
    fn readings(payload: &str) -> String {
        let plans = PricePlans::default();
        let read = event(payload).map(|mut event| {
            let subscription = Subscription::project(event.object(), &plans).ok();
            let covers = event.covers("evt_1");
            event.payload.clear();
            (event, subscription, covers)
        });
        format!("{read:?}")
    }

    /// What ties compare of an event.
    fn tie(payload: &str) -> Option<Value> {
        event(payload).map(|event| comparable(event.data()))
    }

    #[test]
    fn no_name_is_both_personal_and_kept_and_the_lists_are_sorted() {
        for list in [PERSONAL, KEPT] {
            assert!(list.is_sorted(), "{list:?}");
        }
        let both: Vec<_> = PERSONAL.iter().filter(|name| KEPT.contains(name)).collect();
        assert!(both.is_empty(), "{both:?}");
    }

    #[test]
    fn the_fixtures_names_addresses_and_payment_details_are_gone() {
        // A page of a list has no object of its own.
        for payload in fixtures().into_iter().filter(|payload| !payload["data"].is_array()) {
            let mut redacted: Value = serde_json::from_str(&redact(&payload.to_string())).unwrap();
            assert_eq!(redacted["data"]["object"]["metadata"], payload["data"]["object"]["metadata"]);
            if let Some(object) = redacted["data"]["object"].as_object_mut() {
                object.remove("metadata");
            }
            let text = redacted.to_string();
            for personal in ["Harbour", "billing@", "4242", "/pdf", "_secret_"] {
                assert!(!text.contains(personal), "{personal} is in {text}");
            }
        }
    }

    #[test]
    fn personal_data_is_found_wherever_stripe_puts_it_and_catalog_names_stay() {
        let payload = json!({"id": "evt_1", "type": "customer.updated", "data": {
            "object": {"id": "cus_1", "object": "customer", "name": "Jo Doe", "email": "jo@example.com", "phone": "+1 555",
                "description": "Jo's account", "address": {"line1": "1 Main St", "country": "US"},
                "shipping": {"name": "Jo Doe", "address": {"city": "Paris"}}, "balance": 7,
                "default_source": {"id": "card_1", "object": "card", "last4": "4242", "name": "Jo Doe", "exp_year": 2031,
                                   "customer": "cus_1"},
                "subscriptions": {"data": [{"id": "sub_1", "object": "subscription", "plan": {
                    "id": "plan_1", "object": "plan", "name": "Gold", "product": {
                        "object": "product", "name": "Gold seats", "marketing_features": [{"name": "Chat"}]}}}]},
                "metadata": {"name": "kept"}},
            "previous_attributes": {"email": "old@example.com", "address": null, "balance": 3}}});
        let redacted: Value = serde_json::from_str(&redact(&payload.to_string())).unwrap();
        let object = &redacted["data"]["object"];
        assert_eq!(
            (&object["name"], &object["email"], &object["balance"]),
            (&json!(REDACTED), &json!(REDACTED), &json!(7))
        );
        assert_eq!(object["address"], json!({"line1": REDACTED, "country": REDACTED}));
        assert_eq!(
            object["default_source"],
            json!({"id": "card_1", "object": "card", "last4": REDACTED, "name": REDACTED, "exp_year": null,
                   "customer": "cus_1"})
        );
        assert_eq!(object["subscriptions"], payload["data"]["object"]["subscriptions"]);
        assert_eq!(object["metadata"], json!({"name": "kept"}));
        assert_eq!(redacted["data"]["previous_attributes"], json!({"email": REDACTED, "address": null, "balance": 3}));
        let compared = comparable(payload["data"].clone());
        assert_eq!(compared["previous_attributes"], json!({"balance": 3}));
        let product = json!({"object": {"object": "product", "name": "New"}, "previous_attributes": {"name": "Old"}});
        assert_eq!(comparable(product.clone()), product);
    }

    #[test]
    fn tax_ids_the_texts_of_quotes_and_links_to_sessions_are_personal() {
        let redacted = |object: Value| {
            let payload = json!({"data": {"object": object}}).to_string();
            let redacted: Value = serde_json::from_str(&redact(&payload)).unwrap();
            redacted["data"]["object"].clone()
        };
        let tax_id = |value: &str| {
            json!({"id": "txi_1", "object": "tax_id", "customer": "cus_1", "type": "eu_vat", "value": value,
                   "verification": {"verified_name": value}})
        };
        assert_eq!(redacted(tax_id("DE123")), tax_id(REDACTED));
        let without_object = json!({"type": "eu_vat", "value": "DE123"});
        let tax_ids = |ids: [Value; 2]| json!({"id": "cus_1", "object": "customer", "tax_ids": {"data": ids}});
        assert_eq!(
            redacted(tax_ids([tax_id("DE123"), without_object])),
            tax_ids([tax_id(REDACTED), json!({"type": "eu_vat", "value": REDACTED})])
        );
        let quote = |text: &str| json!({"object": "quote", "header": text, "footer": text, "customer": "cus_1"});
        assert_eq!(redacted(quote("Jo Doe")), quote(REDACTED));
        let session = |object: &str, url: &str| {
            json!({"id": "cs_1", "object": object, "url": url, "line_items": {
            "object": "list", "url": "/v1/checkout/sessions/cs_1/line_items", "data": []}})
        };
        for object in PERSONAL_PAGES {
            assert_eq!(redacted(session(object, "https://pay.example")), session(object, REDACTED));
        }
        let payload = json!({"data": {"object": session("checkout.session", ""),
                                      "previous_attributes": {"url": "https://pay.example"}}});
        assert!(!redact(&payload.to_string()).contains("pay.example"));
        let list =
            json!({"object": "list", "url": "/v1/x", "data": [{"id": "il_1", "object": "line_item", "url": "/y"}]});
        assert_eq!(redacted(list.clone()), list);
    }

    #[test]
    fn erasing_removes_links_to_invoice_pages_too() {
        let invoice =
            json!({"data": {"object": {"object": "invoice", "hosted_invoice_url": "https://invoice.example"}}});
        assert_eq!(redact(&invoice.to_string()), invoice.to_string());
        assert!(!erase(&invoice.to_string()).contains("https://"));
        assert_eq!(redact("no json"), format!("{REDACTED:?}"));
    }

    /// Sets a member of the object before which `skip` others stand.
    fn set(value: &mut Value, skip: &mut usize, member: &mut Option<(String, Value)>) {
        match value {
            Value::Object(members) if *skip == 0 => members.extend(member.take()),
            Value::Object(members) => {
                *skip -= 1;
                members.values_mut().for_each(|value| set(value, skip, member));
            }
            Value::Array(elements) => elements.iter_mut().for_each(|value| set(value, skip, member)),
            _ => {}
        }
    }

    fn count(value: &Value) -> usize {
        match value {
            Value::Object(members) => 1 + members.values().map(count).sum::<usize>(),
            Value::Array(elements) => elements.iter().map(count).sum(),
            _ => 0,
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z_@.]{0,12}".prop_map(Value::from),
            select(&PERSONAL_OBJECTS[..]).prop_map(Value::from),
            select(&CATALOG_OBJECTS[..]).prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::hash_map(any_name(), inner, 0..4).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    fn any_name() -> impl Strategy<Value = String> {
        prop_oneof![select(PERSONAL), select(KEPT)].prop_map(str::to_owned)
    }

    proptest! {
        #[test]
        fn a_replay_of_the_redacted_payload_reads_the_same_and_ties_alike(
            which: Index,
            changes in prop::collection::vec((any::<Index>(), any_name(), any_value()), 0..6),
        ) {
            static FIXTURES: LazyLock<Vec<Value>> = LazyLock::new(fixtures);
            let mut payload = which.get(&FIXTURES).clone();
            for (place, name, value) in changes {
                let mut skip = place.index(count(&payload).max(1));
                set(&mut payload, &mut skip, &mut Some((name, value)));
            }
            let full = payload.to_string();
            let redacted = redact(&full);
            prop_assert_eq!(readings(&redacted), readings(&full));
            prop_assert_eq!(tie(&redacted), tie(&full));
            prop_assert_eq!(redact(&redacted), redacted);
        }
    }
}
