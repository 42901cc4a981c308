//! A string that must not be shown: `Debug` hides it, and comparing takes the same time for every guess.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A webhook secret, an API key or an admin token.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Wraps `value`, which is used as it is.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The secret itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `guess` is the secret. Both are hashed first, so that not even the length shows in the time taken.
    pub fn matches(&self, guess: &[u8]) -> bool {
        Sha256::digest(self.0.as_bytes()).ct_eq(&Sha256::digest(guess)).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_matches_only_itself_and_never_shows() {
        let secret = Secret::new("whsec_abc");
        assert!(secret.matches(b"whsec_abc"));
        assert!(!secret.matches(b"whsec_ab"));
        assert!(!secret.matches(b""));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }
}
