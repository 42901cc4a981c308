//! `previous_attributes`: the former values of what an update changed. Pure JSON; it knows nothing of subscriptions.
//!
//! Source: <https://docs.stripe.com/api/events/object#event_object-data-previous_attributes>.

use serde_json::{Map, Value};

/// The former values of what differs: of objects their changed members alone, lists whole, null for what is new.
pub(super) fn attributes(former: &Value, present: &Value) -> Value {
    let (Value::Object(former), Value::Object(present)) = (former, present) else {
        return former.clone();
    };
    let names = former.keys().chain(present.keys().filter(|name| !former.contains_key(*name)));
    names
        .filter_map(|name| {
            let (was, is) = (former.get(name).unwrap_or(&Value::Null), present.get(name).unwrap_or(&Value::Null));
            (was != is).then(|| (name.clone(), attributes(was, is)))
        })
        .collect::<Map<_, _>>()
        .into()
}

#[cfg(test)]
pub(super) fn applied_backwards(previous: &Value, present: &Value) -> Value {
    let (Value::Object(previous), Value::Object(present)) = (previous, present) else {
        return previous.clone();
    };
    let mut former = present.clone();
    for (name, was) in previous {
        let is = present.get(name).unwrap_or(&Value::Null);
        // An object that was not there before came as a whole, and goes as a whole.
        former.insert(name.clone(), if is.is_object() { applied_backwards(was, is) } else { was.clone() });
    }
    former.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_changed_is_named_and_lists_are_whole() {
        let former = json!({"a": 1, "b": {"c": 1, "d": 2}, "items": {"object": "list", "data": [{"q": 1}, {"q": 2}]}});
        let present = json!({"a": 1, "b": {"c": 3, "d": 2}, "items": {"object": "list", "data": [{"q": 1}, {"q": 5}]}});
        let previous = attributes(&former, &present);
        assert_eq!(previous, json!({"b": {"c": 1}, "items": {"data": [{"q": 1}, {"q": 2}]}}));
        assert_eq!(applied_backwards(&previous, &present), former);
    }

    #[test]
    fn what_comes_or_goes_is_named_whole() {
        let (unset, set) = (json!({"pause": null}), json!({"pause": {"behavior": "void", "resumes_at": null}}));
        assert_eq!(attributes(&unset, &set), json!({"pause": null}));
        assert_eq!(attributes(&set, &unset), json!({"pause": {"behavior": "void", "resumes_at": null}}));
        assert_eq!(applied_backwards(&json!({"pause": null}), &set), unset);
    }
}
