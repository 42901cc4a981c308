//! A checkout session, as far as it concerns subscriptions.
//!
//! Source: <https://docs.stripe.com/api/checkout/sessions/object>.

use std::borrow::Cow;

use super::json::{self, Json};

/// A checkout session of mode `subscription`.
#[derive(Debug)]
pub struct Checkout<'a> {
    /// `cus_…`; Checkout makes a new customer unless it was told one.
    pub customer_id: Option<Cow<'a, str>>,
    /// `sub_…` that the checkout made.
    pub subscription_id: Option<Cow<'a, str>>,
}

impl<'a> Checkout<'a> {
    /// Reads a session; `None` for one of another mode (`payment`, `setup`).
    pub fn read(session: Json<'a>) -> Option<Self> {
        let session = session.members();
        (session.get("mode").and_then(Json::string).as_deref() == Some("subscription")).then(|| Self {
            customer_id: json::id(session.get("customer")),
            subscription_id: json::id(session.get("subscription")),
        })
    }
}
