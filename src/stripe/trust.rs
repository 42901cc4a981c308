//! Which events act: those of the configured mode (`STRIPE_MODE`), and which connected accounts may name an account of
//! ours in their metadata (`TRUST_CONNECT_METADATA`). Pure.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The mode of the events that may change rows. A Connect endpoint in live mode receives test-mode events too.
///
/// Source: <https://docs.stripe.com/connect/webhooks>.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Only events with `livemode: true`.
    Live,
    /// Only events with `livemode: false`.
    Test,
    /// Every event.
    #[default]
    Any,
}

impl Mode {
    /// Whether an event with this `livemode` may change rows.
    pub fn allows(self, livemode: bool) -> bool {
        match self {
            Self::Live => livemode,
            Self::Test => !livemode,
            Self::Any => true,
        }
    }

    /// The mode of an API key, by its prefix; `None` if the prefix does not tell.
    ///
    /// Source: <https://docs.stripe.com/keys>.
    pub fn of_key(key: &str) -> Option<Self> {
        let has_prefix = |prefixes: [&str; 2]| prefixes.iter().any(|prefix| key.starts_with(prefix));
        if has_prefix(["sk_live_", "rk_live_"]) {
            Some(Self::Live)
        } else if has_prefix(["sk_test_", "rk_test_"]) {
            Some(Self::Test)
        } else {
            None
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Test => "test",
            Self::Any => "any",
        })
    }
}

/// Text that is not a mode.
#[derive(Debug, Error)]
#[error("{0:?} is none of live, test and any")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "live" => Ok(Self::Live),
            "test" => Ok(Self::Test),
            "any" => Ok(Self::Any),
            _ => Err(UnknownMode(text.to_owned())),
        }
    }
}

/// The connected accounts whose `client_reference_id` and `metadata` may name an account of ours. The owner of a
/// connected account writes both, so by default none is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConnectTrust {
    /// No connected account.
    #[default]
    None,
    /// Every connected account.
    All,
    /// The connected accounts with these ids (`acct_…`).
    Accounts(Vec<String>),
}

impl ConnectTrust {
    /// Whether `connect_account` is trusted. An organization's `context` is a path (`acct_a/acct_b`), whose last part
    /// names the account that the event belongs to.
    pub fn trusts(&self, connect_account: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Accounts(trusted) => {
                let account = connect_account.rsplit('/').next().unwrap_or(connect_account);
                trusted.iter().any(|id| id == account)
            }
        }
    }
}

/// A value of `TRUST_CONNECT_METADATA` that cannot be used.
#[derive(Debug, Error)]
pub enum TrustError {
    /// A list with something that is not an account's id.
    #[error("{0:?} is neither true, false nor the id of a connected account (acct_…)")]
    NotAnAccount(String),
    /// `true` or `false` beside other entries.
    #[error("true or false must stand alone")]
    NotAlone,
}

impl FromStr for ConnectTrust {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        match text {
            "false" => return Ok(Self::None),
            "true" => return Ok(Self::All),
            _ => {}
        }
        let ids: Vec<_> = text.strip_suffix(',').unwrap_or(text).split(',').map(str::trim).collect();
        for id in &ids {
            if matches!(*id, "true" | "false") {
                return Err(TrustError::NotAlone);
            }
            let suffix = id.strip_prefix("acct_").unwrap_or_default();
            if suffix.is_empty() || !suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                return Err(TrustError::NotAnAccount((*id).to_owned()));
            }
        }
        Ok(Self::Accounts(ids.into_iter().map(str::to_owned).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_allows_its_own_events() {
        for (mode, live, test) in [(Mode::Live, true, false), (Mode::Test, false, true), (Mode::Any, true, true)] {
            assert_eq!((mode.allows(true), mode.allows(false)), (live, test), "{mode}");
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
        for text in ["", "Live", "production", "live "] {
            assert!(text.parse::<Mode>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_prefix_of_a_key_tells_its_mode() {
        for (key, mode) in [
            ("sk_live_1", Some(Mode::Live)),
            ("rk_live_1", Some(Mode::Live)),
            ("sk_test_1", Some(Mode::Test)),
            ("rk_test_1", Some(Mode::Test)),
            ("sk_org_live_1", None),
            ("anything", None),
        ] {
            assert_eq!(Mode::of_key(key), mode, "{key}");
        }
    }

    #[test]
    fn only_listed_accounts_are_trusted() {
        let none: ConnectTrust = "false".parse().unwrap();
        let all: ConnectTrust = "true".parse().unwrap();
        let some: ConnectTrust = "acct_a, acct_b,".parse().unwrap();
        assert_eq!((none.clone(), ConnectTrust::default()), (ConnectTrust::None, ConnectTrust::None));
        for (account, is_listed) in [
            ("acct_a", true),
            ("acct_b", true),
            ("acct_c/acct_b", true),
            ("acct_b/acct_c", false),
            ("acct_ab", false),
            ("", false),
        ] {
            assert_eq!(
                (none.trusts(account), all.trusts(account), some.trusts(account)),
                (false, true, is_listed),
                "{account:?}"
            );
        }
    }

    #[test]
    fn what_is_no_list_of_accounts_is_refused() {
        for text in ["", "yes", "True", "acct_", "acct_a,,acct_b", "acct_a,cus_1", "true,acct_a", "acct_a/acct_b"] {
            assert!(text.parse::<ConnectTrust>().is_err(), "{text:?}");
        }
    }
}
