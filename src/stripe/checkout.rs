//! A checkout session, as far as it concerns subscriptions.
//!
//! Source: <https://docs.stripe.com/api/checkout/sessions/object>.

use super::Object;

/// A checkout session of mode `subscription`.
#[derive(Debug)]
pub struct Checkout<'a> {
    /// `cus_…`, else `acct_…`; Checkout makes a new customer unless it was told one.
    pub customer_id: Option<&'a str>,
    /// `sub_…` that the checkout made.
    pub subscription_id: Option<&'a str>,
}

impl<'a> Checkout<'a> {
    /// Reads a session; `None` for one of another mode (`payment`, `setup`).
    pub fn read(session: &'a Object) -> Option<Self> {
        (session.mode.as_deref() == Some("subscription"))
            .then_some(Self { customer_id: session.any_customer(), subscription_id: session.subscription.as_deref() })
    }
}
