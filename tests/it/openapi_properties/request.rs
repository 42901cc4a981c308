//! Requests made from the document's own words: by it, close to it, and against it.

use std::sync::Arc;

use bytes::Bytes;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::ACCOUNT;
use crate::support::app::ADMIN_TOKEN;
use crate::support::schema::{any_value, fitting, text};
use crate::support::{Document, Raw};

/// A request as it goes over the wire, and what the document calls it.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// As it stands in the document.
    pub path: String,
    /// In place of `{id}`, percent-encoded.
    pub id: String,
    /// Percent-encoded, with its question mark.
    pub query: String,
    pub authorization: Option<String>,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// What was put into the body or the query, and by which schema it was made.
    pub given: Arc<Vec<(Value, Value)>>,
}

impl Request {
    pub fn bytes(&self) -> Vec<u8> {
        let path = self.path.replace("{id}", &self.id).replace("{customer}", "cus_1");
        let mut head = format!("{} {path}{} HTTP/1.1\r\nHost: x\r\n", self.method.to_uppercase(), self.query);
        head += &format!("Connection: close\r\nContent-Length: {}\r\n", self.body.len());
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(authorization) = &self.authorization {
            head += &format!("Authorization: {authorization}\r\n");
        }
        [head.as_bytes(), b"\r\n", &self.body].concat()
    }

    fn is_admins(&self) -> bool {
        self.authorization.as_deref() == Some(&format!("Bearer {ADMIN_TOKEN}"))
    }

    /// Holds an answer against the document, whatever was asked.
    pub fn check(&self, document: &mut Document, answer: &Raw) {
        assert!(answer.status < 500, "{answer:?}");
        let operation = &document.json["paths"][&self.path][&self.method];
        let wants_admin = operation.get("security").is_some();
        if answer.status == 404 && operation["responses"].get("404").is_none() {
            // A path that is none: the parameter is empty, or has a slash.
            assert_is_error(answer, "not_found");
        } else {
            document.check(&self.method, &self.path, answer);
        }
        if wants_admin && !self.is_admins() && answer.status != 404 {
            assert_eq!(answer.status, 401, "{answer:?}");
        }
        // What was sent must not come back as a header of its own.
        assert!(!answer.headers.contains_key("x-forged"), "{answer:?}");
    }

    /// Whether all that was given fits its schema.
    pub fn fits(&self, document: &Document) -> bool {
        self.given.iter().all(|(schema, value)| {
            let mut value = value.clone();
            if let Some(members) = value.as_object_mut().filter(|_| self.path.ends_with("/stripe")) {
                members.remove("data");
            }
            document.problems(schema, &value).is_empty()
        })
    }
}

pub fn assert_is_error(answer: &Raw, code: &str) {
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
    let message = body["error"]["message"].as_str().filter(|message| !message.is_empty());
    assert!(message.is_some(), "{answer:?}");
    assert_eq!(body, json!({"error": {"code": code, "message": message}}));
}

pub fn request(method: &str, path: &str) -> Request {
    Request {
        method: method.to_owned(),
        path: path.to_owned(),
        id: String::new(),
        query: String::new(),
        authorization: Some(format!("Bearer {ADMIN_TOKEN}")),
        headers: Vec::new(),
        body: Bytes::new(),
        given: Arc::default(),
    }
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// An id in a path: known ones, well-formed ones, and rubbish.
pub fn path_id() -> BoxedStrategy<String> {
    prop_oneof![
        select(vec![
            "evt_0", "evt_1", ACCOUNT, "evt_none", "%00", "%ff%fe", "%2e%2e", "%2F", "%25", "%", "%zz", "..", ""
        ])
        .prop_map(str::to_owned),
        any::<[u8; 16]>().prop_map(|bytes| uuid::Uuid::from_bytes(bytes).to_string()),
        text(1, 300).prop_map(|text| encoded(&text)),
        prop::collection::vec(any::<u8>(), 1..40)
            .prop_map(|bytes| percent_encode(&bytes, NON_ALPHANUMERIC).to_string()),
        (1_000..6_000_usize).prop_map(|length| "x".repeat(length)),
    ]
    .boxed()
}

/// `name=value` pairs by the operation's parameters: some that fit, some that do not.
pub fn query(document: &Document, operation: &Value) -> BoxedStrategy<(String, Vec<(Value, Value)>)> {
    let parameters: Vec<_> = operation["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|parameter| parameter["in"] == "query")
        .collect();
    let each: Vec<_> = parameters
        .into_iter()
        .map(|parameter| {
            let (name, schema) = (parameter["name"].as_str().unwrap().to_owned(), parameter["schema"].clone());
            let value = prop_oneof![3 => fitting(document, &schema), 1 => text(0, 300).prop_map(Value::from)];
            prop::option::weighted(0.3, value).prop_map(move |value| Some((name.clone(), schema.clone(), value?)))
        })
        .collect();
    each.prop_map(|pairs| {
        let pairs: Vec<_> = pairs.into_iter().flatten().collect();
        let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let text: Vec<_> = pairs.iter().map(|(name, _, value)| format!("{name}={}", encoded(&shown(value)))).collect();
        let query = if text.is_empty() { String::new() } else { format!("?{}", text.join("&")) };
        (query, pairs.into_iter().map(|(_, schema, value)| (schema, value)).collect())
    })
    .boxed()
}

/// A body by the operation's schema, or one that is not far from it.
pub fn body(document: &Document, operation: &Value) -> BoxedStrategy<Option<(Value, Value)>> {
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    if schema.is_null() {
        return Just(None).boxed();
    }
    let (fits, schema) = (fitting(document, schema), schema.clone());
    let names = document.resolved(&schema)["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    // Of an event the document names only what must be there.
    let unknown = if operation["operationId"] == "receive" { Just("data".to_owned()).boxed() } else { text(0, 10) };
    let name = prop_oneof![5 => select(names), 1 => unknown];
    let close = (fits.clone(), name, any_value()).prop_map(|(mut value, name, other)| {
        value[name] = other;
        value
    });
    prop_oneof![2 => fits, 2 => close, 1 => any_value()].prop_map(move |value| Some((schema.clone(), value))).boxed()
}
