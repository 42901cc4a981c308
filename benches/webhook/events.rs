//! Events as Stripe sends them, signed and ready to go, so that the load costs next to nothing while it runs.

use anyhow::{Context, Result};
use chrono::Utc;
use serde_json::Value;
use subledger::http::WEBHOOK_PATH;
use subledger::secret::Secret;
use subledger::verify::sign;

const TEMPLATE: &str = include_str!("../../tests/fixtures/basil/customer.subscription.updated.active.json");

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
        self.payload(0)
    }

    /// Whole HTTP requests, signed now.
    pub fn requests(&mut self, count: usize, secret: &Secret) -> Vec<Vec<u8>> {
        let now = Utc::now().timestamp();
        let request = |_| {
            self.made += 1;
            let body = self.payload(self.made);
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

    fn payload(&self, n: u64) -> String {
        let subscription = n % self.subscriptions + 1;
        self.template
            .replace("\"CREATED\"", &(1_800_000_000 + n).to_string())
            .replace("EVENT", &format!("evt_{n:024}"))
            .replace("CUSTOMER", &format!("cus_{subscription:014}"))
            .replace("SUBSCRIPTION", &format!("sub_{subscription:024}"))
    }
}
