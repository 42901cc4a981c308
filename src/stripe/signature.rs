//! Verifies `Stripe-Signature` headers. Pure: header, bytes, secrets and the time go in; it reads no clock and logs nothing.
//!
//! Source: <https://docs.stripe.com/webhooks/signature#verify-manually>.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;

use crate::secret::Secret;

/// The longest header that is looked at, in bytes. Stripe's own are about 200 bytes a secret.
const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Bytes whose origin is proved. There is no other way to make one than the functions of this module, and
/// [`crate::stripe::Event`] is made of nothing else.
#[derive(Clone, Debug)]
pub struct Verified(Bytes);

impl Verified {
    /// The verified bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// A payload that was verified when it arrived and has been in our own tables since.
    pub(crate) fn from_own_tables(payload: impl Into<Bytes>) -> Self {
        Self(payload.into())
    }

    /// A payload that Stripe's API answered to our key. The TLS connection on which it came proves whose it is.
    pub(crate) fn from_stripes_api(payload: impl Into<Bytes>) -> Self {
        Self(payload.into())
    }
}

/// Why a signature was refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SignatureError {
    /// There is no header.
    #[error("the Stripe-Signature header is absent")]
    Absent,
    /// The header has no single `t`, no usable `v1`, or is too long.
    #[error("the Stripe-Signature header is malformed")]
    Malformed,
    /// No `v1` belongs to these bytes and any of the secrets.
    #[error("no signature matches the payload")]
    Mismatch,
    /// The signature is right, but made too long ago, or in the future.
    #[error("the signature's timestamp is outside the tolerance")]
    Expired,
}

/// Verifies `body` against the value of its `Stripe-Signature` header.
///
/// Any `v1` may match any of `secrets`; other schemes are ignored. `tolerance_secs` counts both ways from `now`.
///
/// # Errors
/// A [`SignatureError`]; the bytes are dropped.
pub fn verify(
    header: Option<&[u8]>,
    body: Bytes,
    secrets: &[Secret],
    tolerance_secs: u64,
    now: DateTime<Utc>,
) -> Result<Verified, SignatureError> {
    let header = SignatureHeader::parse(header.ok_or(SignatureError::Absent)?)?;
    // Every pair is tried, whether or not one has matched, so that the time taken says nothing of which did.
    let mut matched = false;
    for secret in secrets {
        let mac = mac_over(secret, header.timestamp_text, &body);
        for signature in &header.signatures {
            matched |= mac.clone().verify_slice(signature).is_ok();
        }
    }
    if !matched {
        return Err(SignatureError::Mismatch);
    }
    // Judged after the signature: "expired" then means a real event that came late, or a clock that is wrong.
    if now.timestamp().abs_diff(header.timestamp) > tolerance_secs {
        return Err(SignatureError::Expired);
    }
    Ok(Verified(body))
}

/// The header value that Stripe would send for `body` at `timestamp` (Unix seconds).
pub fn sign(body: &[u8], secret: &Secret, timestamp: i64) -> String {
    let signature = mac_over(secret, &timestamp.to_string(), body).finalize().into_bytes();
    format!("t={timestamp},v1={}", hex::encode(signature))
}

fn mac_over(secret: &Secret, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = match Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes a key of any length"),
    };
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

struct SignatureHeader<'a> {
    /// As it stands in the header: it is part of what was signed.
    timestamp_text: &'a str,
    timestamp: i64,
    signatures: Vec<Vec<u8>>,
}

impl<'a> SignatureHeader<'a> {
    fn parse(header: &'a [u8]) -> Result<Self, SignatureError> {
        if header.len() > MAX_HEADER_BYTES {
            return Err(SignatureError::Malformed);
        }
        let text = std::str::from_utf8(header).map_err(|_| SignatureError::Malformed)?;
        let mut timestamps = Vec::new();
        let mut signatures = Vec::new();
        for (scheme, value) in text.split(',').filter_map(|part| part.trim().split_once('=')) {
            match scheme {
                "t" => timestamps.push(value),
                // One that is not hex cannot match; another may.
                "v1" => signatures.extend(hex::decode(value)),
                _ => {}
            }
        }
        let [timestamp_text] = timestamps[..] else {
            return Err(SignatureError::Malformed);
        };
        if !timestamp_text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SignatureError::Malformed);
        }
        let timestamp = timestamp_text.parse().map_err(|_| SignatureError::Malformed)?;
        if signatures.is_empty() {
            return Err(SignatureError::Malformed);
        }
        Ok(Self { timestamp_text, timestamp, signatures })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn check(header: Option<&str>, body: &str, secrets: &[&str], at: i64) -> Result<(), SignatureError> {
        let secrets: Vec<_> = secrets.iter().copied().map(Secret::new).collect();
        let now = DateTime::from_timestamp(at, 0).unwrap_or_default();
        verify(header.map(str::as_bytes), Bytes::from(body.to_owned()), &secrets, 300, now).map(|_| ())
    }

    fn signed(body: &str, secret: &str) -> String {
        sign(body.as_bytes(), &Secret::new(secret), NOW)
    }

    #[test]
    fn any_signature_may_match_any_secret() {
        let good = signed("{}", "whsec_new");
        let (timestamp, v1) = good.split_once(',').unwrap_or_default();
        let several = format!("{timestamp},v1={},v1=zz,v0=ab,{v1}", "00".repeat(32));
        assert_eq!(check(Some(&several), "{}", &["whsec_old", "whsec_new"], NOW), Ok(()));
        assert_eq!(check(Some(&good), "{}", &["whsec_old"], NOW), Err(SignatureError::Mismatch));
        assert_eq!(check(Some(&good), "{} ", &["whsec_new"], NOW), Err(SignatureError::Mismatch));
    }

    #[test]
    fn the_tolerance_counts_both_ways() {
        let good = signed("{}", "whsec_a");
        for (at, expected) in [
            (NOW + 300, Ok(())),
            (NOW + 301, Err(SignatureError::Expired)),
            (NOW - 300, Ok(())),
            (NOW - 301, Err(SignatureError::Expired)),
        ] {
            assert_eq!(check(Some(&good), "{}", &["whsec_a"], at), expected, "at {at}");
        }
    }

    #[test]
    fn only_v1_counts_and_a_malformed_header_is_refused() {
        let v1 = signed("{}", "whsec_a").split_once("v1=").map(|(_, hex)| hex.to_owned()).unwrap_or_default();
        let long = format!("t={NOW},v1={v1},v0={}", "a".repeat(MAX_HEADER_BYTES));
        let cases = [
            format!("t={NOW},v0={v1}"),
            format!("v1={v1}"),
            format!("t={NOW}"),
            format!("t=,v1={v1}"),
            format!("t=-5,v1={v1}"),
            format!("t=1e9,v1={v1}"),
            format!("t=99999999999999999999,v1={v1}"),
            format!("t={NOW},t={NOW},v1={v1}"),
            format!("t={NOW},v1=not hex"),
            String::new(),
            long,
        ];
        for header in cases {
            assert_eq!(check(Some(&header), "{}", &["whsec_a"], NOW), Err(SignatureError::Malformed), "{header}");
        }
        assert_eq!(check(None, "{}", &["whsec_a"], NOW), Err(SignatureError::Absent));
    }

    #[test]
    fn a_part_of_a_signature_does_not_match() {
        let good = signed("{}", "whsec_a");
        assert_eq!(check(Some(&good[..good.len() - 2]), "{}", &["whsec_a"], NOW), Err(SignatureError::Mismatch));
    }
}
