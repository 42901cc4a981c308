//! What PostgreSQL's `jsonb` cannot hold, and what a payload has there instead.

use super::numbers;

/// `text` with every escape that `jsonb` cannot hold (`\u0000`, and halves of a surrogate pair) as `\ufffd`, and every
/// number that it cannot hold as a string.
pub fn fit(text: &str) -> String {
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

/// Whether the arrays and objects of `text`, if it is JSON, are nested more than `limit` levels deep.
pub fn is_deeper_than(limit: usize, text: &str) -> bool {
    // Counting is much cheaper than looking at each byte in its turn, and enough for nearly every event.
    brackets(text) > limit && depth(text) > limit
}

/// How many arrays and objects begin in `text`, and how many such characters are in its strings.
fn brackets(text: &str) -> usize {
    let is_one = |byte: &u8| u8::from(matches!(byte, b'[' | b'{'));
    // In pieces whose count fits a byte, so that many bytes are counted at once.
    text.as_bytes().chunks(255).map(|piece| usize::from(piece.iter().map(is_one).sum::<u8>())).sum()
}

fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => while bytes.next().is_some_and(|byte| byte != b'"' && (byte != b'\\' || bytes.next().is_some())) {},
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            assert_eq!(fit(given), expected, "{given}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_text_without_escapes_is_kept(text in ".*", plain in "[^\\\\]*") {
            fit(&text);
            prop_assert_eq!(fit(&plain), plain);
        }

        #[test]
        fn what_is_fit_stays_as_it_is(text in r#"(\\u0000|\\ud8[0-9]0|\\udc00|\\\\|é|[a-z])*"#) {
            let once = fit(&text);
            prop_assert_eq!(fit(&once), once);
        }
    }

    #[test]
    fn brackets_within_strings_do_not_count_as_depth() {
        for (text, expected) in
            [("1", 0), ("[]", 1), (r#"[{"a[[\\":"[[\"{"},[[]]]"#, 3), (r#"["\\",[]]"#, 2), ("]]][", 1)]
        {
            assert_eq!(depth(text), expected, "{text}");
        }
    }
}
