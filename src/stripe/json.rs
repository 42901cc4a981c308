//! Small readers over JSON as Stripe sends it, and the changes that PostgreSQL's `jsonb` forces on a payload.

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::numbers;

/// The longest id that is taken for one, in bytes: Stripe promises at most 255 characters.
pub const MAX_ID_BYTES: usize = 255;

/// Before this (4714-11-24 BC) a `timestamptz` cannot be; after chrono's own end it could, but a `DateTime` cannot.
const MIN_TIMESTAMP: i64 = -210_866_803_200;

/// `text` with every escape that `jsonb` cannot hold (`\u0000`, and halves of a surrogate pair) as `\ufffd`, and every
/// number that it cannot hold as a string.
pub fn fit_for_jsonb(text: &str) -> String {
    let mut fit = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        fit.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match code_unit(rest) {
            Some(0x0000 | 0xDC00..=0xDFFF) => replace(&mut fit),
            Some(0xD800..=0xDBFF) => match rest.get(6..).and_then(code_unit) {
                Some(0xDC00..=0xDFFF) => copy(&mut fit, rest, 12),
                _ => replace(&mut fit),
            },
            Some(_) => copy(&mut fit, rest, 6),
            None => copy(&mut fit, rest, 2),
        };
        rest = rest.get(taken..).unwrap_or("");
    }
    fit.push_str(rest);
    numbers::fit_for_jsonb(fit)
}

/// The UTF-16 unit of the `\uXXXX` escape that `text` starts with.
fn code_unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

/// Writes the replacement of one `\uXXXX` and returns how many bytes it stands for.
fn replace(fit: &mut String) -> usize {
    fit.push_str("\\ufffd");
    6
}

/// Copies `bytes` bytes (fewer where the text ends or a character would be cut) and returns how many.
fn copy(fit: &mut String, text: &str, bytes: usize) -> usize {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0).max(1);
    fit.push_str(&text[..end]);
    end
}

/// An id that stands as a string, or within the expanded object.
pub fn id(value: Option<&Value>) -> Option<&str> {
    let id = match value? {
        Value::String(id) => id.as_str(),
        Value::Object(expanded) => expanded.get("id")?.as_str()?,
        _ => return None,
    };
    (!id.is_empty() && id.len() <= MAX_ID_BYTES).then_some(id)
}

/// A non-empty string.
pub fn text(value: Option<&Value>) -> Option<&str> {
    value?.as_str().filter(|text| !text.is_empty())
}

/// Unix seconds; absent where PostgreSQL could not hold the time.
pub fn time(value: Option<&Value>) -> Option<DateTime<Utc>> {
    let seconds = value?.as_i64().filter(|&seconds| seconds >= MIN_TIMESTAMP)?;
    DateTime::from_timestamp(seconds, 0)
}

/// An RFC 3339 time; absent where PostgreSQL could not hold it.
pub fn rfc3339(value: Option<&Value>) -> Option<DateTime<Utc>> {
    let time: DateTime<Utc> = value?.as_str()?.parse().ok()?;
    (time.timestamp() >= MIN_TIMESTAMP).then_some(time)
}

/// A whole number that a column of type `integer` holds.
pub fn integer(value: Option<&Value>) -> Option<i32> {
    value?.as_i64()?.try_into().ok()
}

/// A UUID in its usual, hyphenated form.
pub fn uuid(value: Option<&Value>) -> Option<Uuid> {
    let text = value?.as_str()?;
    (text.len() == 36).then(|| Uuid::try_parse(text).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_jsonb_cannot_hold_is_replaced() {
        for (given, expected) in [
            (r#""a\u0000b""#, r#""a\ufffdb""#),
            (r#""a\\u0000b""#, r#""a\\u0000b""#),
            (r#""a\\\u0000b""#, r#""a\\\ufffdb""#),
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""\uD83D\uDE00""#, r#""\uD83D\uDE00""#),
            (r#""\ud83d""#, r#""\ufffd""#),
            (r#""\ud83d\u0000""#, r#""\ufffd\ufffd""#),
            (r#""\ude00\n\"é""#, r#""\ufffd\n\"é""#),
            (r#""\u00e9""#, r#""\u00e9""#),
            ("\\", "\\"),
            ("\\é", "\\é"),
        ] {
            assert_eq!(fit_for_jsonb(given), expected, "{given}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_text_without_escapes_is_kept(text in ".*", plain in "[^\\\\]*") {
            fit_for_jsonb(&text);
            prop_assert_eq!(fit_for_jsonb(&plain), plain);
        }

        #[test]
        fn what_is_fit_stays_as_it_is(text in r#"(\\u0000|\\ud8[0-9]0|\\udc00|\\\\|é|[a-z])*"#) {
            let fit = fit_for_jsonb(&text);
            prop_assert_eq!(fit_for_jsonb(&fit), fit);
        }
    }

    #[test]
    fn what_is_absent_or_out_of_range_is_none() {
        let value = json!({"n": 2_147_483_648_i64, "f": 1.5, "t": 99_999_999_999_999_i64, "u": "abc", "e": ""});
        assert_eq!(integer(value.get("n")), None);
        assert_eq!(integer(value.get("f")), None);
        assert_eq!(integer(value.get("absent")), None);
        assert_eq!(time(value.get("t")), None);
        assert_eq!(time(Some(&json!(-8_000_000_000_000_i64))), None);
        assert_eq!(rfc3339(Some(&json!("-9000-01-01T00:00:00Z"))), None);
        assert_eq!(uuid(value.get("u")), None);
        assert_eq!(text(value.get("e")), None);
        assert_eq!(id(Some(&json!({"id": "cus_1"}))), Some("cus_1"));
        assert_eq!(id(Some(&json!("x".repeat(256)))), None);
    }
}
