//! A view of JSON as Stripe sends it, and small readers over it.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

/// The longest id that is taken for one, in bytes: Stripe promises at most 255 characters.
pub const MAX_ID_BYTES: usize = 255;

/// Before this (4714-11-24 BC) a `timestamptz` cannot be; after chrono's own end it could, but a `DateTime` cannot.
const MIN_TIMESTAMP: i64 = -210_866_803_200;

/// One value within a text that is JSON, read only as deep as it is asked.
///
/// Most of an event is of no interest here. Skipping it costs an eighth of what it costs to make a tree of it.
#[derive(Clone, Copy, Debug)]
pub struct Json<'a>(&'a str);

impl<'a> Json<'a> {
    /// What `null` is.
    pub const NULL: Self = Self("null");

    /// `text`, which is one JSON value; what is none has no members, no text, and no number.
    pub fn of(text: &'a str) -> Self {
        Self(text.trim_ascii())
    }

    /// As it stands.
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// As a tree.
    pub fn to_value(self) -> Value {
        serde_json::from_str(self.0).unwrap_or_default()
    }

    /// The members of an object; none where it is no object.
    pub fn members(self) -> Members<'a> {
        if !self.is_object() {
            return Members::default();
        }
        Members::read(self.0).unwrap_or_default()
    }

    /// The elements of an array.
    pub fn elements(self) -> Option<Vec<Self>> {
        let elements: Vec<&'a RawValue> = serde_json::from_str(self.0).ok()?;
        Some(elements.into_iter().map(|element| Self(element.get())).collect())
    }

    /// A string.
    pub fn string(self) -> Option<Cow<'a, str>> {
        serde_json::from_str::<Text<'_>>(self.0).ok().map(|Text(text)| text)
    }

    /// A whole number.
    pub fn number(self) -> Option<i64> {
        self.0.parse().ok()
    }

    /// Whether it is `true`.
    pub fn is_true(self) -> bool {
        self.0 == "true"
    }

    /// Whether it is `null`.
    pub fn is_null(self) -> bool {
        self.0 == "null"
    }

    /// Whether it is an object.
    pub fn is_object(self) -> bool {
        self.0.starts_with('{')
    }
}

/// The members of one object.
#[derive(Debug, Default)]
pub struct Members<'a>(Vec<(Cow<'a, str>, Json<'a>)>);

impl<'a> Members<'a> {
    /// Reads the members of the object that `text` is.
    ///
    /// # Errors
    /// Where it is no JSON, or no object.
    pub fn read(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The member of this name. Of several the last counts, as in `jsonb`.
    pub fn get(&self, name: &str) -> Option<Json<'a>> {
        self.0.iter().rev().find(|(other, _)| other == name).map(|(_, value)| *value)
    }

    /// The member at the end of this path of names.
    pub fn at(&self, path: &[&str]) -> Option<Json<'a>> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.get(first)?, |value, name| value.members().get(name))
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(64);
                while let Some((Text(name), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    members.push((name, Json(value.get())));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

/// A string that is copied only where it has escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// An id that stands as a string, or within the expanded object.
pub fn id(value: Option<Json<'_>>) -> Option<Cow<'_, str>> {
    let value = value?;
    if value.is_object() { own_id(&value.members()) } else { value.string().filter(|id| is_id(id)) }
}

/// The id of the object that has these members.
pub fn own_id<'a>(object: &Members<'a>) -> Option<Cow<'a, str>> {
    object.get("id")?.string().filter(|id| is_id(id))
}

/// Whether Stripe could have given this as an id.
pub fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_ID_BYTES
}

/// A non-empty string.
pub fn text(value: Option<Json<'_>>) -> Option<Cow<'_, str>> {
    value?.string().filter(|text| !text.is_empty())
}

/// Unix seconds; absent where PostgreSQL could not hold the time.
pub fn time(value: Option<Json<'_>>) -> Option<DateTime<Utc>> {
    timestamp(value?.number()?)
}

/// The time of these Unix seconds; absent where PostgreSQL could not hold it.
pub fn timestamp(seconds: i64) -> Option<DateTime<Utc>> {
    (seconds >= MIN_TIMESTAMP).then(|| DateTime::from_timestamp(seconds, 0)).flatten()
}

/// An RFC 3339 time; absent where PostgreSQL could not hold it.
pub fn rfc3339(value: Option<Json<'_>>) -> Option<DateTime<Utc>> {
    let time = DateTime::parse_from_rfc3339(&value?.string()?).ok()?.to_utc();
    (time.timestamp() >= MIN_TIMESTAMP).then_some(time)
}

/// A whole number that a column of type `integer` holds.
pub fn integer(value: Option<Json<'_>>) -> Option<i32> {
    value?.number()?.try_into().ok()
}

/// A UUID in its usual, hyphenated form.
pub fn uuid(value: Option<Json<'_>>) -> Option<Uuid> {
    let text = value?.string()?;
    (text.len() == 36).then(|| Uuid::try_parse(&text).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_absent_or_out_of_range_is_none() {
        let text = r#"{"n": 2147483648, "f": 1.5, "t": 99999999999999, "u": "abc", "e": "", "m": -1e3, "z": -0}"#;
        let value = Json::of(text).members();
        assert_eq!(integer(value.get("n")), None);
        assert_eq!(integer(value.get("f")), None);
        assert_eq!(integer(value.get("m")), None);
        assert_eq!(integer(value.get("z")), Some(0));
        assert_eq!(integer(value.get("absent")), None);
        assert_eq!(time(value.get("t")), None);
        assert_eq!(time(Some(Json::of("-8000000000000"))), None);
        for no_time in [r#""-9000-01-01T00:00:00Z""#, r#""2025-01-02T 3:04:05Z""#] {
            assert_eq!(rfc3339(Some(Json::of(no_time))), None, "{no_time}");
        }
        assert_eq!(uuid(value.get("u")), None);
        assert_eq!(super::text(value.get("e")), None);
        assert_eq!(id(Some(Json::of(r#"{"id": "cus_1"}"#))).as_deref(), Some("cus_1"));
        assert_eq!(id(Some(Json::of(&format!("\"{}\"", "x".repeat(256))))), None);
    }

    #[test]
    fn of_members_of_one_name_the_last_counts_and_escapes_are_resolved() {
        let members = Json::of(r#" {"a": 1, "b": {"c": [true, null]}, "\u0061": "\u00e9\n" } "#).members();
        assert_eq!(members.get("a").and_then(Json::string).as_deref(), Some("é\n"));
        let elements = members.at(&["b", "c"]).and_then(Json::elements).unwrap();
        assert!(elements[0].is_true() && elements[1].is_null() && elements.len() == 2);
        assert!(members.at(&["a", "c"]).is_none() && members.get("c").is_none());
        assert!(Json::of("[1]").members().get("a").is_none());
    }

    proptest! {
        #[test]
        fn a_text_is_taken_exactly_if_it_is_json(text in r#"\{("a":|"|\\|\}|\{|\[|\]|1|-|e|\.|null|true|,| |\\u00e9){0,12}\}"#) {
            let value: Result<serde_json::Value, _> = serde_json::from_str(&text);
            prop_assert_eq!(Members::read(&text).is_ok(), value.is_ok(), "{}", text);
        }
    }
}
