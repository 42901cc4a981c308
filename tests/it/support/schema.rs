//! Values by the schemas of the document: such as fit, and such as come close.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::Document;

/// A value that fits a schema of the document.
pub fn fitting(document: &Document, schema: &Value) -> BoxedStrategy<Value> {
    let schema = document.resolved(schema);
    if let Some(words) = schema["enum"].as_array() {
        return select(words.clone()).boxed();
    }
    for several in ["oneOf", "anyOf"] {
        if let Some(one_of) = schema[several].as_array() {
            let each = one_of.iter().map(|schema| fitting(document, schema));
            return proptest::strategy::Union::new(each).boxed();
        }
    }
    match &schema["type"] {
        Value::Array(types) => {
            let each = types.iter().map(|name| {
                let mut schema = schema.clone();
                schema["type"] = name.clone();
                fitting(document, &schema)
            });
            proptest::strategy::Union::new(each).boxed()
        }
        Value::String(name) => of_type(document, schema, name),
        other => panic!("no type: {other} in {schema}"),
    }
}

fn of_type(document: &Document, schema: &Value, name: &str) -> BoxedStrategy<Value> {
    match name {
        "null" => Just(Value::Null).boxed(),
        "boolean" => any::<bool>().prop_map(Value::from).boxed(),
        "integer" => {
            let bound = |name: &str, otherwise| schema[name].as_i64().unwrap_or(otherwise);
            (bound("minimum", i64::MIN)..=bound("maximum", i64::MAX)).prop_map(Value::from).boxed()
        }
        "string" if schema["format"] == "uuid" => uuid().prop_map(Value::from).boxed(),
        "string" => {
            let bound = |name: &str, otherwise| schema[name].as_u64().unwrap_or(otherwise) as usize;
            text(bound("minLength", 0), bound("maxLength", 60)).prop_map(Value::from).boxed()
        }
        "object" => object(document, schema),
        other => panic!("no such type: {other} in {schema}"),
    }
}

/// All that is required, and of the rest some.
fn object(document: &Document, schema: &Value) -> BoxedStrategy<Value> {
    let is_required = |name: &String| schema["required"].as_array().is_some_and(|names| names.contains(&json!(name)));
    let members = schema["properties"].as_object().unwrap().iter().map(|(name, member)| {
        let value = fitting(document, member);
        let there = if is_required(name) { Just(true).boxed() } else { any::<bool>().boxed() };
        (Just(name.clone()), there, value).boxed()
    });
    let members: Vec<_> = members.collect();
    members
        .prop_map(|members| {
            let there = members.into_iter().filter(|(_, there, _)| *there);
            there.map(|(name, _, value)| (name, value)).collect::<Map<_, _>>().into()
        })
        .boxed()
}

/// Any value at all, of the kinds that are confused with what fits.
pub fn any_value() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1.0e9..1.0e9_f64).prop_map(Value::from),
        text(0, 300).prop_map(Value::from),
        text(250, 260).prop_map(Value::from),
        Just(json!("a\u{0}b")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z_]{0,8}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
    .boxed()
}

/// Text with a number of characters, odd ones among them, but without NUL.
pub fn text(least: usize, most: usize) -> BoxedStrategy<String> {
    let odd = "\u{1}\t\n\r\u{1b}\u{7f}\u{85} '\"\\%_&=+/?#<>{}é\u{202e}\u{2028}\u{fffd}😀".chars().collect::<Vec<_>>();
    let char = prop_oneof![3 => proptest::char::range('a', 'z'), 1 => select(odd)];
    let length = prop_oneof![least..=most.min(least + 20), Just(most)];
    length.prop_flat_map(move |length| prop::collection::vec(char.clone(), length).prop_map(String::from_iter)).boxed()
}

fn uuid() -> impl Strategy<Value = String> {
    any::<[u8; 16]>().prop_map(|bytes| uuid::Uuid::from_bytes(bytes).to_string())
}
