//! Events as Stripe sends them, signed and ready to go, so that the load costs next to nothing while it runs.

use anyhow::{Context, Result};
use chrono::Utc;
use serde_json::Value;
use subledger::http::WEBHOOK_PATH;
use subledger::secret::Secret;
use subledger::verify::sign;

const TEMPLATE: &str = include_str!("../../tests/fixtures/basil/customer.subscription.updated.active.json");

/// Steps from one subscription to the next. Prime, so that every one has its turn, in no order that the database could
/// profit from.
const STEP: u64 = 7_919;

/// Makes first deliveries, each newer than all before it.
pub struct Events {
    template: String,
    subscriptions: u64,
    made: u64,
}

impl Events {
    /// Events of this many subscriptions, each in its turn.
    pub fn new(subscriptions: u64) -> Result<Self> {
        let mut event: Value = serde_json::from_str(TEMPLATE)?;
        let id = |pointer| event.pointer(pointer).and_then(Value::as_str).map(str::to_owned).context(pointer);
        let (customer, subscription) = (id("/data/object/customer")?, id("/data/object/id")?);
        event["id"] = "EVENT".into();
        event["created"] = "CREATED".into();
        let template = event.to_string().replace(&customer, "CUSTOMER").replace(&subscription, "SUBSCRIPTION");
        Ok(Self { template, subscriptions, made: 0 })
    }

    /// One event, the same each time.
    pub fn example(&self) -> String {
        self.payload(0, 1)
    }

    /// Whole HTTP requests, signed now.
    pub fn requests(&mut self, count: usize, secret: &Secret) -> Vec<Vec<u8>> {
        self.requests_of(count, secret, |event, subscriptions| event * STEP % subscriptions + 1)
    }

    /// The same, and every event is of the first subscription.
    pub fn requests_of_one(&mut self, count: usize, secret: &Secret) -> Vec<Vec<u8>> {
        self.requests_of(count, secret, |_, _| 1)
    }

    /// The id of the event that was made last.
    pub fn newest_id(&self) -> String {
        event_id(self.made)
    }

    fn requests_of(&mut self, count: usize, secret: &Secret, subscription: fn(u64, u64) -> u64) -> Vec<Vec<u8>> {
        let now = Utc::now().timestamp();
        let request = |_| {
            self.made += 1;
            let body = self.payload(self.made, subscription(self.made, self.subscriptions));
            let (length, signature) = (body.len(), sign(body.as_bytes(), secret, now));
            format!(
                "POST {WEBHOOK_PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json; charset=utf-8\r\n\
                 User-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\nStripe-Signature: {signature}\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            )
            .into_bytes()
        };
        (0..count).map(request).collect()
    }

    fn payload(&self, n: u64, subscription: u64) -> String {
        self.template
            .replace("\"CREATED\"", &(1_800_000_000 + n).to_string())
            .replace("EVENT", &event_id(n))
            .replace("CUSTOMER", &format!("cus_{subscription:014}"))
            .replace("SUBSCRIPTION", &format!("sub_{subscription:024}"))
    }
}

/// As long as Stripe's, and in no order, like them: ids that only grow would spare the database's indexes.
fn event_id(n: u64) -> String {
    // The finalizer of SplitMix64, which maps no two numbers to one.
    let mut mixed = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    format!("evt_{mixed:016x}{:08x}", n & 0xffff_ffff)
}
