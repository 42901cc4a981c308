//! The signature header: what is accepted is exactly what a naive reading of Stripe's rules accepts.
//!
//! Source: <https://docs.stripe.com/webhooks/signature#verify-manually>.

use bytes::Bytes;
use chrono::DateTime;
use sha2::{Digest, Sha256};
use subledger::secret::Secret;
use subledger::stripe::signature::{SignatureError, verify};

/// When every header arrives.
const NOW: i64 = 1_760_000_000;

const SECRETS: [&str; 2] = ["whsec_old", "whsec_a_new_one_that_is_longer_than_the_64_bytes_of_a_block_of_sha256"];
const TOLERANCE_SECS: u64 = 300;

/// The first line is the header, the rest the body. In the header `{old}`, `{new}` and `{other}` stand for the
/// signature with the one secret, the other, and one that is not ours, over the header's first `t`.
pub fn hold(data: &[u8]) {
    let mut parts = data.splitn(2, |&byte| byte == b'\n');
    let template = parts.next().unwrap_or_default();
    let body = parts.next().unwrap_or_default();
    let header = filled_in(template, body);
    let now = DateTime::from_timestamp(NOW, 0).expect("a time");
    let secrets = SECRETS.map(Secret::new);
    let body = Bytes::copy_from_slice(body);
    let result = verify(Some(&header), body.clone(), &secrets, TOLERANCE_SECS, now);
    let shown = String::from_utf8_lossy(&header);
    assert_eq!(result.as_ref().map(|_| ()).map_err(|error| *error), naive(&header, &body), "{shown}");
    if let Ok(verified) = result {
        assert_eq!(verified.bytes(), &body, "the bytes are those that were signed");
        let altered = Bytes::from([&body[..], b"x"].concat());
        let again = verify(Some(&header), altered, &secrets, TOLERANCE_SECS, now);
        assert_eq!(again.map(|_| ()), Err(SignatureError::Mismatch), "{shown}");
    }
    assert_eq!(verify(None, body, &secrets, TOLERANCE_SECS, now).map(|_| ()), Err(SignatureError::Absent));
}

fn filled_in(template: &[u8], body: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(template) else { return template.to_vec() };
    let time = fields(text).into_iter().find(|(name, _)| *name == "t").map_or("", |(_, value)| value);
    let signed = [time.as_bytes(), b".", body].concat();
    text.replace("{old}", &hmac(SECRETS[0], &signed))
        .replace("{new}", &hmac(SECRETS[1], &signed))
        .replace("{other}", &hmac("whsec_of_nobody", &signed))
        .into_bytes()
}

fn naive(header: &[u8], body: &[u8]) -> Result<(), SignatureError> {
    let text = std::str::from_utf8(header).map_err(|_| SignatureError::Malformed)?;
    if text.len() > 8192 {
        return Err(SignatureError::Malformed);
    }
    let values = |wanted: &str| -> Vec<&str> {
        fields(text).into_iter().filter(|(name, _)| *name == wanted).map(|(_, value)| value).collect()
    };
    let times = values("t");
    let time = if times.len() == 1 { whole_number(times[0]) } else { None };
    let is_hex = |value: &&str| value.len().is_multiple_of(2) && value.chars().all(|char| char.is_ascii_hexdigit());
    let signatures: Vec<_> = values("v1").into_iter().filter(is_hex).collect();
    let (Some(time), false) = (time, signatures.is_empty()) else { return Err(SignatureError::Malformed) };
    let signed = [times[0].as_bytes(), b".", body].concat();
    let right = SECRETS.map(|secret| hmac(secret, &signed));
    if !signatures.iter().any(|given| right.contains(&given.to_ascii_lowercase())) {
        return Err(SignatureError::Mismatch);
    }
    let is_near = (NOW - 300..=NOW + 300).contains(&time);
    if is_near { Ok(()) } else { Err(SignatureError::Expired) }
}

fn fields(header: &str) -> Vec<(&str, &str)> {
    header.split(',').filter_map(|field| field.trim().split_once('=')).collect()
}

/// Digits alone: no sign, no space.
fn whole_number(text: &str) -> Option<i64> {
    let mut number: i64 = 0;
    for char in text.chars() {
        number = number.checked_mul(10)?.checked_add(i64::from(char.to_digit(10)?))?;
    }
    (!text.is_empty()).then_some(number)
}

/// HMAC-SHA256 as RFC 2104 writes it down, in hex.
fn hmac(key: &str, message: &[u8]) -> String {
    let mut block = [0; 64];
    let key = if key.len() > 64 { Sha256::digest(key).to_vec() } else { key.as_bytes().to_vec() };
    block[..key.len()].copy_from_slice(&key);
    let inner = Sha256::digest([&block.map(|byte| byte ^ 0x36)[..], message].concat());
    hex::encode(Sha256::digest([&block.map(|byte| byte ^ 0x5c)[..], &inner[..]].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hmac_by_hand_is_that_of_rfc_4231() {
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(hmac("Jefe", b"what do ya want for nothing?"), expected);
    }

    #[test]
    fn what_the_template_says_comes_to_pass() {
        let outcome = |template: &str| naive(&filled_in(template.as_bytes(), b"{}"), b"{}");
        assert_eq!(outcome("t=1760000000,v1={old}"), Ok(()));
        assert_eq!(outcome("t=1760000000,v1={new}"), Ok(()));
        assert_eq!(outcome("t=1760000000,v1={other}"), Err(SignatureError::Mismatch));
        assert_eq!(outcome("t=1750000000,v1={old}"), Err(SignatureError::Expired));
    }
}
