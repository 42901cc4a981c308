//! The server that is put to the test: where it is, and whether it is fit for a run before one begins.

use anyhow::{Context, Result, bail, ensure};
use chrono::Utc;
use reqwest::{Client, StatusCode, Url};
use serde_json::Value;

use crate::cli::target::{self, Target};
use crate::config::Options;
use crate::secret::Secret;
use crate::stripe::signature::sign;

/// Where the server is, and what it is told to know us by.
#[derive(Clone, Debug)]
pub(super) struct Server {
    base: Url,
    pub(super) webhook: Url,
    pub(super) accounts: Url,
    pub(super) secret: Secret,
    pub(super) admin_token: Secret,
}

impl Server {
    /// The server that the options name.
    ///
    /// # Errors
    /// Where no secret or no admin token is known.
    pub(super) fn of(target: &Target, options: &Options) -> Result<Self> {
        let base = target.server(options)?;
        Ok(Self {
            webhook: target.webhook(options)?,
            accounts: base.join("api/v1/accounts")?,
            secret: target::webhook_secret(options)?,
            admin_token: target::admin_token(options)?,
            base,
        })
    }

    /// Whether it answers, is well, and takes our signature and our token. Leaves no trace in its tables.
    ///
    /// # Errors
    /// One line that says what is wrong.
    pub(super) async fn check(&self, client: &Client) -> Result<()> {
        let health = client.get(self.base.join("health")?).send().await;
        let health =
            health.with_context(|| format!("no server answers at {}; is `subledger serve` running?", self.base))?;
        if !health.status().is_success() {
            bail!("the server at {} is not well: {}", self.base, health.text().await?);
        }
        self.check_signature(client).await?;
        let nobody = format!("{}/{}", self.accounts, uuid::Uuid::nil());
        let answer = client.get(nobody).bearer_auth(self.admin_token.expose()).send().await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(()),
            StatusCode::UNAUTHORIZED => bail!("ADMIN_TOKEN: the server at {} has another one", self.base),
            StatusCode::FORBIDDEN => bail!("ADMIN_TOKEN: the server at {} has none, so nobody is an admin", self.base),
            status => bail!("the server at {} answers an admin with {status}", self.base),
        }
    }

    /// Signs what is no event: a server that accepts the signature says so, and stores nothing.
    async fn check_signature(&self, client: &Client) -> Result<()> {
        let body = "{}";
        let signature = sign(body.as_bytes(), &self.secret, Utc::now().timestamp());
        let request = client.post(self.webhook.clone()).header("Stripe-Signature", signature).body(body);
        let answer = request.send().await.with_context(|| format!("no answer from {}", self.webhook))?;
        let status = answer.status();
        let answer: Value = answer.json().await.unwrap_or_default();
        let message = answer.pointer("/error/message").and_then(Value::as_str).unwrap_or_default();
        match answer.pointer("/error/code").and_then(Value::as_str) {
            Some("invalid_payload") => Ok(()),
            Some("invalid_signature") => {
                bail!("STRIPE_WEBHOOK_SECRET: {} refuses what it signs: {message}", self.webhook)
            }
            _ => {
                ensure!(status != StatusCode::NOT_FOUND, "--url: {} is no webhook of subledger", self.webhook);
                bail!("{} answers a signed probe with {status} {message}", self.webhook)
            }
        }
    }
}
