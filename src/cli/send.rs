//! `send`: signs a sample or your own event and posts it, as Stripe would.

use std::fs;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::Utc;
use reqwest::{Client, Url};
use serde_json::{Value, json};

use super::Outcome;
use super::target::{self, Target};
use crate::config::Options;
use crate::secret::Secret;
use crate::stripe::signature::sign;

macro_rules! samples {
    ($($name:literal),* $(,)?) => {
        /// The samples, by name: one life of one subscription, in order.
        const SAMPLES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../samples/", $name, ".json")))),*];
    };
}

samples!(
    "customer.subscription.created",
    "invoice.paid",
    "checkout.session.completed",
    "customer.subscription.updated",
    "customer.subscription.trial_will_end",
    "invoice.payment_failed",
    "customer.subscription.paused",
    "customer.subscription.deleted",
    "v1.customer.subscription.updated",
);

/// What to send, and where.
#[derive(clap::Args, Debug)]
pub(super) struct Send {
    /// A file with an event, or the name of a sample
    #[arg(value_name = "FILE OR NAME", help = help())]
    event: String,
    /// First make an account for the event's customer, as your application would (needs the admin token)
    #[arg(long)]
    link: bool,
    #[command(flatten)]
    target: Target,
}

fn help() -> String {
    let names: Vec<_> = SAMPLES.iter().map(|(name, _)| *name).collect();
    format!("A file with an event, or a sample: {}", names.join(", "))
}

impl Send {
    /// Sends the event and prints the answer; an answer that is no 2xx is a failure.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        let body = self.body()?;
        let secret = target::webhook_secret(options)?;
        // Not by way of a proxy: the server is at hand.
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
        let account = if self.link { Some(self.link(&client, options, &body).await?) } else { None };
        let url = self.target.webhook(options)?;
        post(&client, url, &secret, body).await?;
        if let Some(account) = account {
            writeln!(io::stdout(), "{:#}", get(&client, account, &target::admin_token(options)?).await?)?;
        }
        Ok(())
    }

    fn body(&self) -> Result<Vec<u8>> {
        if let Some((_, sample)) = SAMPLES.iter().find(|(name, _)| *name == self.event) {
            return Ok(sample.as_bytes().to_vec());
        }
        fs::read(&self.event)
            .with_context(|| format!("{:?} is neither a sample nor a file that can be read", self.event))
    }

    /// Makes an account for the event's customer, unless there is one; returns where it can be read.
    async fn link(&self, client: &Client, options: &Options, body: &[u8]) -> Result<Url> {
        let event: Value = serde_json::from_slice(body).context("the event is not JSON")?;
        let customer = event.pointer("/data/object/customer").and_then(Value::as_str);
        let customer = customer.context("--link: the event names no customer")?;
        let accounts = self.target.server(options)?.join("api/v1/accounts")?;
        let id = account_id_for(customer);
        let response = client
            .post(accounts.clone())
            .bearer_auth(target::admin_token(options)?.expose())
            .json(&json!({"id": id, "name": format!("Account of {customer}"), "stripe_customer_id": customer}))
            .send()
            .await
            .with_context(|| format!("no answer from {accounts}"))?;
        // A second run finds the account of the first one.
        if !response.status().is_success() && response.status() != reqwest::StatusCode::CONFLICT {
            bail!("the account was not made: {} {}", response.status(), response.text().await?);
        }
        Ok(format!("{accounts}/{id}").parse()?)
    }
}

/// The same account for the same customer, at every run.
fn account_id_for(customer: &str) -> uuid::Uuid {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(customer.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

async fn post(client: &Client, url: Url, secret: &Secret, body: Vec<u8>) -> Outcome {
    let response = client
        .post(url.clone())
        .header("Stripe-Signature", sign(&body, secret, Utc::now().timestamp()))
        .header("Content-Type", "application/json")
        .body(body)
        .send()
        .await
        .with_context(|| format!("no answer from {url}"))?;
    let status = response.status();
    let answer = response.text().await?;
    writeln!(io::stdout(), "{status} {answer}")?;
    if !status.is_success() {
        bail!("the event was not taken");
    }
    Ok(())
}

async fn get(client: &Client, url: Url, token: &Secret) -> Result<Value> {
    let response = client.get(url.clone()).bearer_auth(token.expose()).send().await?;
    response.json().await.with_context(|| format!("no JSON from {url}"))
}
