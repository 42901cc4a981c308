//! Numbers that PostgreSQL's `jsonb` cannot hold, or that six bytes would make a hundred thousand digits of: kept, as
//! strings of the same characters.
//!
//! Source: the limits of `numeric`, <https://www.postgresql.org/docs/current/datatype-numeric.html>. JSON has none.

use serde_json::Number;

/// The most characters, and the largest exponent either way, that a number keeps. Every `f64` has fewer.
const MAX_LENGTH: usize = 400;

/// `text`, which is JSON or will be refused, with every number beyond [`MAX_LENGTH`] in quotation marks.
pub fn fit_for_jsonb(text: String) -> String {
    let bytes = text.as_bytes();
    let mut fit = String::new();
    let (mut at, mut copied) = (0, 0);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at + 1),
            b'-' | b'0'..=b'9' => {
                let end = number_end(bytes, at);
                if is_beyond(&text[at..end]) && !is_name(&bytes[end..]) {
                    fit.extend([&text[copied..at], "\"", &text[at..end], "\""]);
                    copied = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return text;
    }
    fit.push_str(&text[copied..]);
    fit
}

/// Behind the quotation mark that ends the string in which `at` is.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn number_end(bytes: &[u8], start: usize) -> usize {
    let is_part = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
    start + bytes[start..].iter().take_while(is_part).count()
}

/// Whether it is a number, and beyond the limit. What is none must not become a string that is valid.
fn is_beyond(token: &str) -> bool {
    let exponent = token.split_once(['e', 'E']).map(|(_, exponent)| exponent.parse::<i32>());
    let is_within = |exponent: i32| exponent.unsigned_abs() as usize <= MAX_LENGTH;
    let is_beyond = token.len() > MAX_LENGTH || exponent.is_some_and(|exponent| !exponent.is_ok_and(is_within));
    is_beyond && token.parse::<Number>().is_ok()
}

/// Whether a colon follows: a number is no name, but its string would be one.
fn is_name(rest: &[u8]) -> bool {
    rest.trim_ascii_start().first() == Some(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(text: &str) -> String {
        fit_for_jsonb(text.to_owned())
    }

    #[test]
    fn only_numbers_beyond_the_limit_become_strings() {
        for (given, expected) in [
            ("[1e401]", r#"["1e401"]"#),
            ("[1E+99999999999, -0.0e-401]", r#"["1E+99999999999", "-0.0e-401"]"#),
            (r#"{"a":1e400,"b":1e401}"#, r#"{"a":1e400,"b":"1e401"}"#),
            (r#"["1e401", "a\"1e401", "\\", 7]"#, r#"["1e401", "a\"1e401", "\\", 7]"#),
            ("[-1.7976931348623157e308, 5e-324]", "[-1.7976931348623157e308, 5e-324]"),
        ] {
            assert_eq!(fit(given), expected);
            assert_eq!(fit(expected), expected);
        }
        let digits = "1".repeat(MAX_LENGTH);
        assert_eq!(fit(&digits), digits);
        assert_eq!(fit(&format!("{digits}1")), format!("\"{digits}1\""));
    }

    #[test]
    fn what_is_not_json_stays_so() {
        for text in ["{1e401:2}", "{1e401 \n:2}", "[1e401e5]", "[1e401-]", "[01e401]", "\"1e401", "\"\\", "[1e40100.]"]
        {
            assert_eq!(fit(text), text);
        }
    }
}
