//! `send`: signs a sample or your own event and posts it, as Stripe would.

use std::fs;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::Utc;
use reqwest::{Client, Url};
use serde_json::{Value, json};

use super::target::{self, Target};
use super::{Outcome, samples};
use crate::config::Options;
use crate::secret::Secret;
use crate::stripe::signature::sign;

/// What to send, and where.
#[derive(clap::Args, Debug)]
pub(super) struct Send {
    /// A file with an event, or the name of a sample
    #[arg(value_name = "FILE OR NAME", help = help())]
    event: String,
    /// First create an account for the event's customer, as your application would (needs the admin token)
    #[arg(long)]
    link: bool,
    /// A word in the ids of a sample: each life has a customer and a subscription of its own [default: today's date]
    #[arg(long, value_name = "WORD", value_parser = life)]
    life: Option<String>,
    #[command(flatten)]
    target: Target,
}

fn help() -> String {
    format!("A file with an event, or a sample: {}", samples::names().collect::<Vec<_>>().join(", "))
}

fn life(text: &str) -> Result<String, String> {
    let is_word = (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_word { Ok(text.to_owned()) } else { Err("it is not a word of 1 to 40 ASCII letters and digits".to_owned()) }
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
        let answer = post(&client, url, &secret, &body).await?;
        if let Some(account) = account {
            writeln!(io::stdout(), "{:#}", get(&client, account, &target::admin_token(options)?).await?)?;
        } else if answer.get("outcome").is_some_and(|outcome| outcome == "parked") {
            writeln!(io::stdout(), "{}", self.how_to_link(options, &body)?)?;
        }
        Ok(())
    }

    fn body(&self) -> Result<Vec<u8>> {
        let now = Utc::now();
        let life = self.life.clone().unwrap_or_else(|| samples::life_of_the_day(now));
        if let Some(sample) = samples::sample(&self.event, &life, now) {
            return Ok(sample);
        }
        fs::read(&self.event).with_context(|| format!("{:?} is neither a sample nor a readable file", self.event))
    }

    fn how_to_link(&self, options: &Options, body: &[u8]) -> Result<String> {
        let accounts = self.target.server(options)?.join("api/v1/accounts")?;
        let Some(customer) = customer_of(body)? else {
            return Ok("The event is stored and waits for an account, but names no customer to link.".to_owned());
        };
        let token = target::admin_token_in_shell(options)?;
        let curl = format!("curl -H \"Authorization: Bearer {token}\"");
        Ok(format!(
            "
The event is stored. It is applied once its customer {customer} is linked to an account; an invoice
event also needs its subscription's own event. Link the customer in one of these ways:

  send again with        --link
  create an account      {curl} --json '{{\"name\": \"Acme\", \"stripe_customer_id\": \"{customer}\"}}' {accounts}
  or use an existing one {curl} -X PATCH --json '{{\"stripe_customer_id\": \"{customer}\"}}' {accounts}/<account id>
  or use SQL             INSERT INTO accounts (name, stripe_customer_id) VALUES ('Acme', '{customer}')"
        ))
    }

    /// Creates an account for the event's customer, unless there is one; returns its URL.
    async fn link(&self, client: &Client, options: &Options, body: &[u8]) -> Result<Url> {
        let customer = customer_of(body)?.context("--link: the event names no customer")?;
        let customer = customer.as_str();
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
            bail!("the account was not created: {} {}", response.status(), response.text().await?);
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

/// The id of the event's customer, which may be an expanded object.
fn customer_of(body: &[u8]) -> Result<Option<String>> {
    let event: Value = serde_json::from_slice(body).context("the event is not JSON")?;
    let ids = ["/data/object/customer", "/data/object/customer/id"].map(|pointer| event.pointer(pointer));
    Ok(ids.into_iter().flatten().find_map(Value::as_str).map(str::to_owned))
}

/// Posts the event, prints the answer and returns its body.
async fn post(client: &Client, url: Url, secret: &Secret, body: &[u8]) -> Result<Value> {
    let response = client
        .post(url.clone())
        .header("Stripe-Signature", sign(body, secret, Utc::now().timestamp()))
        .header("Content-Type", "application/json")
        .body(body.to_vec())
        .send()
        .await
        .with_context(|| format!("no answer from {url}"))?;
    let status = response.status();
    let answer = response.text().await?;
    writeln!(io::stdout(), "{status} {answer}")?;
    if !status.is_success() {
        bail!("the server rejected the event");
    }
    // Another server than ours may answer anything with its 2xx.
    Ok(serde_json::from_str(&answer).unwrap_or_default())
}

async fn get(client: &Client, url: Url, token: &Secret) -> Result<Value> {
    let response = client.get(url.clone()).bearer_auth(token.expose()).send().await?;
    response.json().await.with_context(|| format!("no JSON from {url}"))
}
