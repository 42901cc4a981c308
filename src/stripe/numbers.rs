//! Numbers that PostgreSQL's `jsonb` cannot hold: kept, as strings of the same characters.
//!
//! Source: the limits of `numeric`, <https://www.postgresql.org/docs/current/datatype-numeric.html>, and `numeric_in`, which
//! reads the numbers of `jsonb`. JSON has no limits.

use serde_json::Number;

/// The most digits of a `numeric` before the decimal point.
const MAX_INTEGER_DIGITS: i64 = 131_072;

/// The most digits of a `numeric` behind the decimal point, zeros at the end among them.
const MAX_FRACTION_DIGITS: i64 = 16_383;

/// `numeric_in` takes no exponent that is this large or larger, either way, not even of zero.
const EXPONENT_LIMIT: i64 = i32::MAX as i64 / 2;

/// `text`, which is JSON or will be refused, with every number that `jsonb` cannot hold in quotation marks.
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

/// Whether it is a number, and beyond the limits. What is none must not become a string that is valid.
fn is_beyond(token: &str) -> bool {
    let (digits, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
    // Nearly every number is so short that nothing has to be counted.
    if exponent == "0" && digits.len() as i64 <= MAX_FRACTION_DIGITS {
        return false;
    }
    // An exponent that overflows is beyond every limit.
    let exponent = exponent.parse().unwrap_or(i64::MAX);
    let digits = digits.trim_start_matches('-');
    let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = integer.bytes().chain(fraction.bytes());
    let leading_zeros = all_digits.take_while(|digit| *digit == b'0').count();
    let is_zero = leading_zeros == integer.len() + fraction.len();
    let is_beyond = exponent <= -EXPONENT_LIMIT
        || exponent >= EXPONENT_LIMIT
        || fraction.len() as i64 - exponent > MAX_FRACTION_DIGITS
        || (!is_zero && integer.len() as i64 - leading_zeros as i64 + exponent > MAX_INTEGER_DIGITS);
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
    fn only_numbers_beyond_the_limits_become_strings() {
        for (given, expected) in [
            ("[1e131072]", r#"["1e131072"]"#),
            ("[1E+99999999999999999999, -0.0e-16383]", r#"["1E+99999999999999999999", "-0.0e-16383"]"#),
            (r#"{"a":1e131071,"b":1e131072}"#, r#"{"a":1e131071,"b":"1e131072"}"#),
            (r#"["1e131072", "a\"1e131072", "\\", 7]"#, r#"["1e131072", "a\"1e131072", "\\", 7]"#),
            (
                "[-1.7976931348623157e308, 5e-324, 1e2000, 1e-2000]",
                "[-1.7976931348623157e308, 5e-324, 1e2000, 1e-2000]",
            ),
        ] {
            assert_eq!(fit(given), expected);
            assert_eq!(fit(expected), expected);
        }
        for (before, after) in [(131_072, 0), (1, 16_383), (131_072, 16_383)] {
            let point = if after == 0 { "" } else { "." };
            let digits = |before, after| format!("{}{point}{}", "1".repeat(before), "1".repeat(after));
            let within = digits(before, after);
            assert_eq!(fit(&within), within);
            let beyond = digits(before + usize::from(before > 1), after + usize::from(after > 1));
            assert_eq!(fit(&beyond), format!("\"{beyond}\""));
        }
    }

    #[test]
    fn what_is_not_json_stays_so() {
        for text in [
            "{1e131072:2}",
            "{1e131072 \n:2}",
            "[1e131072e5]",
            "[1e131072-]",
            "[01e131072]",
            "\"1e131072",
            "\"\\",
            "[1e13107200.]",
        ] {
            assert_eq!(fit(text), text);
        }
    }
}
