//! `doctor`: what is wrong between Stripe, this deployment and the database.

use anyhow::bail;

use super::{Outcome, job};
use crate::config::Options;
use crate::http::WEBHOOK_PATH;

/// Prints each finding on a line of its own; fails if there is any.
pub(super) async fn run(options: &Options) -> Outcome {
    let config = options.server()?;
    if config.stripe.is_none() {
        eprintln!("STRIPE_SECRET_KEY is not set: what Stripe knows is not checked");
    }
    job::run_unchecked(options, async |service| {
        let findings = service.diagnose(WEBHOOK_PATH).await;
        findings.iter().for_each(|finding| println!("{finding}"));
        match findings.len() {
            0 => {
                println!("nothing is wrong");
                Ok(())
            }
            1 => bail!("1 problem"),
            count => bail!("{count} problems"),
        }
    })
    .await
}
