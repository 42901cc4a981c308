//! How the members of Stripe's objects are read, for the shapes that serde derives: in one pass over the text, with
//! nothing made of what is of no interest.
//!
//! What is of another type than expected counts as absent; no reader here fails for it.

use std::fmt;
use std::marker::PhantomData;

use chrono::{DateTime, Utc};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::object::Metadata;

/// The longest id that is taken for one, in bytes: Stripe promises at most 255 characters.
pub const MAX_ID_BYTES: usize = 255;

/// Before this (4714-11-24 BC) a `timestamptz` cannot be; after chrono's own end it could, but a `DateTime` cannot.
const MIN_TIMESTAMP: i64 = -210_866_803_200;

/// No event is older.
pub const EARLIEST_TIME: DateTime<Utc> = match DateTime::from_timestamp(MIN_TIMESTAMP, 0) {
    Some(time) => time,
    None => DateTime::UNIX_EPOCH,
};

/// Reads `text` as a `T`; whatever is no object is the default.
///
/// Of members of one name the last counts, as in `jsonb`. serde's derived readers refuse them; then, and only then, the
/// text is read as a tree before. (In a tree a member that has the name of a private one of serde_json's is not what it
/// was; Stripe has none.)
///
/// # Errors
/// Where it is no JSON.
pub fn read<T: for<'de> Deserialize<'de> + Default>(text: &str) -> Result<T, serde_json::Error> {
    let read = |text: &str| serde_json::from_str(text).map(Any::<T>::object_or_default);
    read(text).or_else(|_| read(&serde_json::from_str::<Value>(text)?.to_string()))
}

/// A value of any type; its members are read as `T`, its elements as `E`.
#[derive(Clone, Debug)]
pub enum Any<T = IgnoredAny, E = IgnoredAny> {
    /// A string.
    Text(String),
    /// An object. A number, too, if `u64` or `i64` has none like it: serde_json shows it as an object of one member.
    Object(T),
    /// An array.
    Array(Vec<E>),
    /// A number, `null`, `true` or `false`.
    Other,
}

impl<T, E> Any<T, E> {
    fn text(self) -> Option<String> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn object_or_default(self) -> T
    where
        T: Default,
    {
        if let Self::Object(object) = self { object } else { T::default() }
    }
}

impl<'de, T: Deserialize<'de>, E: Deserialize<'de>> Deserialize<'de> for Any<T, E> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyVisitor<T, E>(PhantomData<(T, E)>);

        impl<'de, T: Deserialize<'de>, E: Deserialize<'de>> Visitor<'de> for AnyVisitor<T, E> {
            type Value = Any<T, E>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<F>(self) -> Result<Self::Value, F> {
                Ok(Any::Other)
            }

            fn visit_bool<F>(self, _: bool) -> Result<Self::Value, F> {
                Ok(Any::Other)
            }

            fn visit_i64<F>(self, _: i64) -> Result<Self::Value, F> {
                Ok(Any::Other)
            }

            fn visit_u64<F>(self, _: u64) -> Result<Self::Value, F> {
                Ok(Any::Other)
            }

            fn visit_str<F: Error>(self, text: &str) -> Result<Self::Value, F> {
                Ok(Any::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = sequence.next_element()? {
                    elements.push(element);
                }
                Ok(Any::Array(elements))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Any::Object)
            }
        }

        deserializer.deserialize_any(AnyVisitor(PhantomData))
    }
}

/// A non-empty string.
pub fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let any: Any = Any::deserialize(deserializer)?;
    Ok(any.text().filter(|text| !text.is_empty()))
}

/// A string that Stripe could have given as an id.
pub fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(text(deserializer)?.filter(|id| is_id(id)))
}

/// An id that stands as a string, or within the expanded object.
pub fn reference<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Expanded {
        #[serde(deserialize_with = "id")]
        id: Option<String>,
    }

    let any: Any<Expanded> = Any::deserialize(deserializer)?;
    Ok(match any {
        Any::Object(expanded) => expanded.id,
        any => any.text().filter(|id| is_id(id)),
    })
}

/// Whether Stripe could have given this as an id.
pub fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_ID_BYTES
}

/// An object; what is none is the default.
pub fn object<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let any: Any<T> = Any::deserialize(deserializer)?;
    Ok(any.object_or_default())
}

/// The elements of an array; of them, what is no object is the default.
pub fn elements<'de, T, D>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    T: Deserialize<'de> + Default,
    D: Deserializer<'de>,
{
    let any: Any<IgnoredAny, Any<T>> = Any::deserialize(deserializer)?;
    let Any::Array(elements) = any else {
        return Ok(None);
    };
    Ok(Some(elements.into_iter().map(Any::object_or_default).collect()))
}

/// Unix seconds; absent where PostgreSQL could not hold the time.
pub fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    Ok(raw(deserializer)?.parse().ok().and_then(timestamp))
}

/// The time of these Unix seconds; absent where PostgreSQL could not hold it.
pub fn timestamp(seconds: i64) -> Option<DateTime<Utc>> {
    (seconds >= MIN_TIMESTAMP).then(|| DateTime::from_timestamp(seconds, 0)).flatten()
}

/// Unix seconds, or an RFC 3339 time; absent where PostgreSQL could not hold it.
pub fn time_of_either_form<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let raw = raw(deserializer)?;
    Ok(raw.parse().ok().and_then(timestamp).or_else(|| rfc3339(raw)))
}

fn rfc3339(raw: &str) -> Option<DateTime<Utc>> {
    let text: String = serde_json::from_str(raw).ok()?;
    let time = DateTime::parse_from_rfc3339(&text).ok()?.to_utc();
    (time.timestamp() >= MIN_TIMESTAMP).then_some(time)
}

/// A whole number that a column of type `integer` holds.
pub fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    Ok(raw(deserializer)?.parse().ok())
}

/// A whole number that a column of type `bigint` holds.
pub fn big_integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    Ok(raw(deserializer)?.parse().ok())
}

/// An object's `metadata`: an account's id, and all of it as it stands.
pub(super) fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Metadata, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Known {
        #[serde(deserialize_with = "uuid")]
        account_id: Option<Uuid>,
    }

    let raw = raw(deserializer)?;
    if !raw.starts_with('{') || raw == "{}" {
        return Ok(Metadata::default());
    }
    let known: Known = read(raw).unwrap_or_default();
    Ok(Metadata { account_id: known.account_id, text: Some(raw.to_owned()) })
}

/// Whether it is `true`.
pub fn is_true<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(raw(deserializer)? == "true")
}

/// Whether it is anything but `null`.
pub fn is_set<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(raw(deserializer)? != "null")
}

/// A UUID in its usual, hyphenated form.
pub fn uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
    let text = text(deserializer)?.filter(|text| text.len() == 36);
    Ok(text.and_then(|text| Uuid::try_parse(&text).ok()))
}

/// A value as it stands.
fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'de str, D::Error> {
    Ok(<&'de RawValue>::deserialize(deserializer)?.get())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Shape {
        #[serde(deserialize_with = "text")]
        text: Option<String>,
        #[serde(deserialize_with = "reference")]
        id: Option<String>,
        #[serde(deserialize_with = "time_of_either_form")]
        time: Option<DateTime<Utc>>,
        #[serde(deserialize_with = "integer")]
        integer: Option<i32>,
        #[serde(deserialize_with = "uuid")]
        uuid: Option<Uuid>,
        #[serde(deserialize_with = "is_true")]
        is_true: bool,
        #[serde(deserialize_with = "is_set")]
        is_set: bool,
        #[serde(deserialize_with = "elements")]
        elements: Option<Vec<Inner>>,
        #[serde(deserialize_with = "object")]
        object: Inner,
    }

    #[derive(Clone, Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Inner {
        #[serde(deserialize_with = "integer")]
        n: Option<i32>,
    }

    fn shape(text: &str) -> Shape {
        read(text).unwrap()
    }

    #[test]
    fn each_is_read_as_what_it_is() {
        let text = r#" {"text": "\u00e9\n", "id": {"id": "cus_1"}, "time": -5, "integer": -0, "is_true": true, "is_set": [],
            "uuid": "7f0c1c9e-55f4-4d5e-9d0b-0f3f3c7b8a11", "elements": [{"n": 1}, 2, "3", null, [{"n": 4}]],
            "object": {"m": {"n": 8}, "n": 9}} "#;
        let read = shape(text);
        assert_eq!((read.text.as_deref(), read.id.as_deref()), (Some("é\n"), Some("cus_1")));
        assert_eq!((read.time, read.integer), (timestamp(-5), Some(0)));
        assert!(read.is_true && read.is_set && read.uuid.is_some());
        let elements: Vec<_> = read.elements.unwrap().into_iter().map(|element| element.n).collect();
        assert_eq!(elements, [Some(1), None, None, None, None]);
        assert_eq!(read.object.n, Some(9));
        assert_eq!(shape(r#"{"id": "cus_2"}"#).id.as_deref(), Some("cus_2"));
        assert_eq!(shape(r#"{"time": "1970-01-01T00:00:07Z"}"#).time, timestamp(7));
    }

    #[test]
    fn what_is_of_another_type_or_out_of_range_is_absent() {
        let long = format!(r#""{}""#, "x".repeat(256));
        let values = ["null", "false", "7.5", "1e400", "[]", "[{}]", "{}", r#""""#, r#"{"id": {"id": "x"}}"#];
        for (name, more) in [
            ("text", vec!["7"]),
            ("id", vec!["7", &long, r#"{"id": 7}"#]),
            (
                "time",
                vec!["99999999999999", "-8000000000000", r#""-9000-01-01T00:00:00Z""#, r#""2025-01-02T 3:04:05Z""#],
            ),
            ("integer", vec!["2147483648", "-1e3", r#""7""#]),
            ("uuid", vec!["7", r#""abc""#, r#""7f0c1c9e55f44d5e9d0b0f3f3c7b8a11""#]),
            ("is_true", vec!["1", r#""true""#]),
            ("object", vec!["7", r#"{"n": {"n": 7}}"#, r#"[{"n": 7}]"#]),
        ] {
            for value in values.into_iter().chain(more) {
                assert_eq!(shape(&format!(r#"{{"{name}": {value}}}"#)), Shape::default(), "{name}: {value}");
            }
        }
        assert_eq!(shape(r#"{"is_set": null, "elements": {}}"#), Shape::default());
        for none in ["null", "7", r#""text""#, "[1]", r#"["text", "id"]"#] {
            assert_eq!(shape(none), Shape::default(), "{none}");
        }
    }

    #[test]
    fn of_members_of_one_name_the_last_counts() {
        assert_eq!(
            shape(r#"{"text": "a", "object": {"n": 1, "n": 2}, "text": "b", "n": 1, "\u0074ext": "c"}"#),
            Shape { text: Some("c".to_owned()), object: Inner { n: Some(2) }, ..Shape::default() }
        );
    }

    proptest! {
        #[test]
        fn a_text_is_read_exactly_if_it_is_json(
            text in r#"\{("text":|"object":|"x":|"|\\|\}|\{|\[|\]|1|-|e|\.|null|true|,| |\\u00e9){0,12}\}"#
        ) {
            let value: Result<Value, _> = serde_json::from_str(&text);
            prop_assert_eq!(read::<Shape>(&text).is_ok(), value.is_ok(), "{}", text);
        }
    }
}
