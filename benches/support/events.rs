//! Events as Stripe sends them: a real payload with an id, a second, a customer and a subscription of its own.

use anyhow::{Context, Result};
use chrono::Utc;
use serde_json::Value;
use sha2::{Digest, Sha256};
use subledger::http::WEBHOOK_PATH;
use subledger::secret::Secret;
use subledger::stripe::signature::sign;

const TEMPLATE: &str = include_str!("../../tests/fixtures/basil/customer.subscription.updated.active.json");

/// The digits of Stripe's ids.
pub const BASE62: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Where ids begin to count, in Unix seconds. Seen from the examples in Stripe's reference: `sub_1MowQVLkdIwHu7ixeRlqHVzs`
/// is of 1679609767 and `pi_3MtwBwLkdIwHu7ix28a3tqPa` of 1680800504, and the digits after the first differ by as much.
pub const EPOCH: u64 = 1_342_389_380;

/// When the first event is of, in Unix seconds.
const FIRST: u64 = 1_800_000_000;

/// Steps from one subscription to the next. Prime, so that every one has its turn, in no order that the database could
/// profit from.
const STEP: u64 = 7_919;

#[derive(Clone, Debug)]
pub struct Events {
    template: String,
    subscriptions: u64,
    /// Whether each event has another quantity than the one of its subscription before it.
    is_changing: bool,
}

impl Events {
    /// Events of this many subscriptions, each in its turn.
    pub fn new(subscriptions: u64) -> Result<Self> {
        let mut event: Value = serde_json::from_str(TEMPLATE)?;
        let id = |pointer| event.pointer(pointer).and_then(Value::as_str).map(str::to_owned).context(pointer);
        let (customer, subscription) = (id("/data/object/customer")?, id("/data/object/id")?);
        event["id"] = "EVENT".into();
        event["created"] = "CREATED".into();
        event["data"]["object"]["quantity"] = "QUANTITY".into();
        event["data"]["object"]["items"]["data"][0]["quantity"] = "QUANTITY".into();
        let template = event.to_string().replace(&customer, "CUSTOMER").replace(&subscription, "SUBSCRIPTION");
        Ok(Self { template, subscriptions, is_changing: false })
    }

    /// The same, and each event changes its subscription's seats.
    #[must_use]
    pub fn changing(self) -> Self {
        Self { is_changing: true, ..self }
    }

    /// Event number `n`. Of two of one subscription, the one with the greater number is the newer.
    pub fn payload(&self, n: u64) -> String {
        self.payload_of(n * STEP % self.subscriptions + 1, n)
    }

    fn payload_of(&self, subscription: u64, n: u64) -> String {
        // The one before it has the number `n - 1`, or `n - self.subscriptions`.
        let quantity = if self.is_changing { 1 + (n + n / self.subscriptions) % 89 } else { 5 };
        self.template
            .replace("\"CREATED\"", &(FIRST + n).to_string())
            .replace("\"QUANTITY\"", &quantity.to_string())
            .replace("EVENT", &id(n))
            .replace("CUSTOMER", &format!("cus_{subscription:014}"))
            .replace("SUBSCRIPTION", &format!("sub_{subscription:024}"))
    }

    /// The delivery of event number `n`, signed now.
    pub fn request(&self, n: u64, secret: &Secret) -> Vec<u8> {
        post(&self.payload(n), secret)
    }

    /// The same, and the event is of the first subscription.
    pub fn request_of_one(&self, n: u64, secret: &Secret) -> Vec<u8> {
        post(&self.payload_of(1, n), secret)
    }
}

fn post(body: &str, secret: &Secret) -> Vec<u8> {
    let (length, signature) = (body.len(), sign(body.as_bytes(), secret, Utc::now().timestamp()));
    format!(
        "POST {WEBHOOK_PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json; charset=utf-8\r\n\
         User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\nStripe-Signature: {signature}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The id of event number `n`, as Stripe makes them: after `evt_1` come five digits to the base of 62 that count the
/// seconds since [`EPOCH`], and then what is in no order. So ids grow, by the second; here a thousand are of one.
pub fn id(n: u64) -> String {
    let seconds = FIRST + n / 1_000 - EPOCH;
    let seconds = (0..5).rev().map(|digit| seconds / 62_u64.pow(digit));
    let digest = Sha256::digest(n.to_be_bytes());
    let rest = digest.iter().take(18).map(|&byte| byte.into());
    "evt_1"
        .chars()
        .chain(seconds.chain(rest).map(|digit| char::from(BASE62.as_bytes()[(digit % 62) as usize])))
        .collect()
}
