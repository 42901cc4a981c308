//! Durations as people write them: `90d`, `72h`, `30m`, `45s`.

use std::time::Duration;

/// Reads a whole number with one unit. Strict, since `prune` acts on it: no unit, several, or nothing is an error.
///
/// # Errors
/// A description of the problem.
pub fn parse(text: &str) -> Result<Duration, String> {
    let problem = || format!("{text:?} is no duration like 90d, 72h, 30m or 45s");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit_secs = match &text[digits.len()..] {
        "d" => 86_400,
        "h" => 3_600,
        "m" => 60,
        "s" => 1,
        _ => return Err(problem()),
    };
    let is_a_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u32 = if is_a_number { digits.parse().map_err(|_| problem())? } else { return Err(problem()) };
    if number == 0 {
        return Err(format!("{text:?} is no time at all"));
    }
    Ok(Duration::from_secs(u64::from(number) * unit_secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_with_one_unit_is_a_duration() {
        for (text, secs) in [("90d", 7_776_000), ("72h", 259_200), ("30m", 1_800), ("45s", 45)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        for text in
            ["", "d", "90", "90 d", "-1d", "+1d", "1.5h", "1h30m", "90D", "9w", "0d", "99999999999d", "٣d", " 1d"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
