//! On whose behalf a call is made.

/// The account that a call reads.
///
/// Sources: <https://docs.stripe.com/connect/authentication>, <https://docs.stripe.com/context>.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The account of the key.
    #[default]
    Own,
    /// A connected account, named by `Stripe-Account`.
    Account(String),
    /// The context of an event, sent as `Stripe-Context`: an account, or the path to one within an organization.
    Context(String),
}

impl Scope {
    /// The header that names it.
    pub(super) fn header(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Own => None,
            Self::Account(account) => Some(("Stripe-Account", account)),
            Self::Context(context) => Some(("Stripe-Context", context)),
        }
    }
}

impl From<Option<&str>> for Scope {
    /// A connected account, else the key's own.
    fn from(connect_account: Option<&str>) -> Self {
        connect_account.map_or(Self::Own, |account| Self::Account(account.to_owned()))
    }
}
