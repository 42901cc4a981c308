//! `erase`: removes a customer's personal data from everything that is stored.

use super::{Outcome, job};
use crate::config::Options;

/// Whose data.
#[derive(clap::Args, Debug)]
pub(super) struct Erase {
    /// The customer, by Stripe's id
    #[arg(long, value_name = "CUS", value_parser = customer)]
    customer: String,
}

fn customer(text: &str) -> Result<String, String> {
    let suffix = text.strip_prefix("cus_").or_else(|| text.strip_prefix("acct_")).unwrap_or_default();
    let is_id = !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_id { Ok(text.to_owned()) } else { Err(format!("{text:?} is no id of a customer (cus_…)")) }
}

impl Erase {
    /// Erases, and prints how much was found.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        job::run(options, async |service| {
            let erased = job::with_retries(async || service.erase(self.customer.clone()).await).await?;
            println!(
                "erased the personal data of {}: {} events, {} failed attempts, {} subscriptions, {} changes",
                self.customer, erased.events, erased.failures, erased.subscriptions, erased.changes
            );
            Ok(())
        })
        .await
    }
}
