//! The description of the API as the server gives it, and answers held against it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Raw, TestApp};

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// The document, and which of its answers have been seen.
pub struct Document {
    pub json: Value,
    pub seen: BTreeSet<(String, String, String)>,
}

impl Document {
    pub async fn of(app: &TestApp) -> Self {
        let response = app.http.get(app.url("/openapi.json")).send().await.unwrap();
        assert_eq!(response.status(), 200, "anyone may read it");
        assert_eq!(response.headers()["content-type"], "application/json");
        let json = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        Self { json, seen: BTreeSet::new() }
    }

    pub fn operations(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        let paths = self.json["paths"].as_object().unwrap();
        paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().iter().filter(|(method, _)| METHODS.contains(&method.as_str()));
            methods.map(move |(method, operation)| (method.as_str(), path.as_str(), operation))
        })
    }

    /// What a value is, or what it refers to.
    pub fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value.get("$ref") else { return value };
        let pointer = reference.as_str().unwrap().strip_prefix('#').expect("a reference within the document");
        self.json.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
    }

    fn response(&self, method: &str, path: &str, status: u16) -> &Value {
        let responses = &self.json["paths"][path][method]["responses"];
        let response = responses.get(status.to_string());
        self.resolved(response.unwrap_or_else(|| panic!("{method} {path} {status} is not documented")))
    }

    /// Holds an answer against the document.
    pub fn check(&mut self, method: &str, path: &str, answer: &Raw) {
        let case = format!("{method} {path} {}: {}", answer.status, answer.body);
        let response = self.response(method, path, answer.status);
        for name in response["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
            assert!(answer.headers.contains_key(name), "no {name}: {case}");
        }
        assert!(answer.headers.contains_key("x-request-id"), "{case}");
        let content_type = answer.headers["content-type"].to_str().unwrap().split(';').next().unwrap();
        let content = response["content"].get(content_type).unwrap_or_else(|| panic!("{content_type}: {case}"));
        let body = match content_type {
            "application/json" => serde_json::from_str(&answer.body).expect(&case),
            _ => Value::String(answer.body.clone()),
        };
        let problems = self.problems(&content["schema"], &body);
        assert!(problems.is_empty(), "{case}\n{problems:#?}");
        self.seen.insert((method.to_owned(), path.to_owned(), answer.status.to_string()));
    }

    /// What is wrong with a value, by a schema of the document; what the schema does not mention is wrong too.
    pub fn problems(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut whole = json!({"allOf": [schema], "components": self.json["components"]});
        if self.resolved(schema).get("properties").is_some() || self.resolved(schema).get("allOf").is_some() {
            whole["unevaluatedProperties"] = false.into();
        }
        forbid_more(&mut whole, false);
        let validator = jsonschema::draft202012::options().should_validate_formats(true).build(&whole).unwrap();
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }
}

/// Wherever a part of a value is said to be one of the components, it may hold nothing else. Parts of an `allOf` are
/// judged together.
fn forbid_more(schema: &mut Value, is_part: bool) {
    match schema {
        Value::Object(members) => {
            if members.contains_key("$ref") && !is_part {
                members.insert("unevaluatedProperties".to_owned(), false.into());
            }
            for (name, member) in members {
                match member {
                    Value::Array(parts) if name == "allOf" => parts.iter_mut().for_each(|part| forbid_more(part, true)),
                    member => forbid_more(member, false),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| forbid_more(item, false)),
        _ => {}
    }
}
