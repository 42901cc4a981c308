//! `setup`: creates the webhook endpoint at Stripe, or brings the one that it made before up to date.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use reqwest::Url;

use super::Outcome;
use crate::config::{ConfigError, Options};
use crate::http::WEBHOOK_PATH;
use crate::secret::Secret;
use crate::stripe::api::{API_VERSION, Client, Endpoint, NewEndpoint};
use crate::stripe::handled_types;

/// How long Stripe retries a delivery. Source: <https://docs.stripe.com/webhooks#automatic-retries>.
const STRIPES_RETRIES: TimeDelta = TimeDelta::days(3);

/// Which endpoint.
#[derive(clap::Args, Debug)]
pub(super) struct Setup {
    /// The webhook's public URL; the webhook's path is added to a URL without a path
    #[arg(long, value_name = "URL", value_parser = webhook_url)]
    url: Url,
    /// Make a second endpoint with the API version of this release, and say when the old one can be deleted
    #[arg(long)]
    upgrade: bool,
    /// The endpoint for events of connected accounts
    #[arg(long)]
    connect: bool,
}

fn webhook_url(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|error| format!("{text:?} is no URL: {error}"))?;
    if url.scheme() != "https" || !url.has_host() {
        return Err(format!("{text:?} is no https URL: Stripe delivers events over https alone"));
    }
    if url.path() == "/" {
        url.set_path(WEBHOOK_PATH);
    }
    Ok(url)
}

impl Setup {
    /// Creates or updates, and prints what was done.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        let stripe = options.server()?.stripe;
        let stripe = stripe.ok_or_else(|| ConfigError::new("STRIPE_SECRET_KEY", "it is needed to ask Stripe"))?;
        let types: Vec<_> = handled_types().collect();
        let endpoints = stripe.webhook_endpoints().await.context("cannot read Stripe's webhook endpoints")?.body;
        let same_url = |endpoint: &&Endpoint| {
            Url::parse(&endpoint.url).is_ok_and(|url| url == self.url) && endpoint.is_for_connect == self.connect
        };
        let (managed, others): (Vec<_>, Vec<_>) =
            endpoints.iter().filter(same_url).partition(|endpoint| endpoint.is_managed);
        for endpoint in &managed {
            update(&stripe, endpoint, &types).await?;
        }
        let current = managed.iter().find(|endpoint| endpoint.api_version.as_deref() == Some(API_VERSION));
        let old: Vec<_> =
            managed.iter().copied().filter(|endpoint| endpoint.api_version.as_deref() != Some(API_VERSION)).collect();
        let since = match current {
            Some(endpoint) => endpoint.created,
            None if managed.is_empty() || self.upgrade => Some(self.create(&stripe, &types).await?),
            None => None,
        };
        match since {
            Some(since) => tell_when_old_ones_can_go(&old, since, Utc::now()),
            None => tell_how_to_upgrade(&old),
        }
        for endpoint in others {
            println!(
                "{} has the same URL and was not made by `subledger setup`: both deliver every event. Delete it in \
                 Stripe's dashboard once the other one delivers.",
                endpoint.id
            );
        }
        Ok(())
    }

    /// Makes an endpoint and prints its secret; returns when it was made.
    async fn create(&self, stripe: &Client, types: &[&str]) -> Result<DateTime<Utc>> {
        let new = NewEndpoint { url: self.url.as_str(), types, is_for_connect: self.connect };
        let (endpoint, secret) = stripe.create_webhook_endpoint(new).await.context("cannot create the endpoint")?;
        print_secret(&endpoint, types.len(), &secret).with_context(|| {
            format!(
                "cannot print the secret of {}; copy it from the endpoint's page in Stripe's dashboard",
                endpoint.id
            )
        })?;
        Ok(endpoint.created.unwrap_or_else(Utc::now))
    }
}

fn print_secret(endpoint: &Endpoint, types: usize, secret: &Secret) -> std::io::Result<()> {
    let Endpoint { id, url, .. } = endpoint;
    writeln!(
        std::io::stdout(),
        "created {id} for {url} with {types} event types and API version {API_VERSION}\n\
         STRIPE_WEBHOOK_SECRET={}\n\
         The secret is not shown again. Add it to STRIPE_WEBHOOK_SECRET (several are separated by commas) and restart \
         `subledger serve`; until then its deliveries are refused, and Stripe retries them for three days.",
        secret.expose()
    )
}

/// Brings the types up to date, and enables the endpoint.
async fn update(stripe: &Client, endpoint: &Endpoint, types: &[&str]) -> Result<()> {
    let id = &endpoint.id;
    let (wanted, has): (BTreeSet<&str>, BTreeSet<&str>) =
        (types.iter().copied().collect(), endpoint.types.iter().map(String::as_str).collect());
    if wanted == has && endpoint.is_enabled {
        println!(
            "{id} for {} is up to date. Its secret was shown when it was made; Stripe's dashboard shows it again.",
            endpoint.url
        );
        return Ok(());
    }
    stripe.update_webhook_endpoint(id, types).await.with_context(|| format!("cannot update {id}"))?;
    println!("updated {id} for {}:", endpoint.url);
    wanted.difference(&has).for_each(|name| println!("  added {name}"));
    has.difference(&wanted).for_each(|name| println!("  removed {name}"));
    if !endpoint.is_enabled {
        println!("  enabled; run `subledger reconcile --since 30d` for the events of the time when it was disabled");
    }
    Ok(())
}

fn tell_when_old_ones_can_go(old: &[&Endpoint], since: DateTime<Utc>, now: DateTime<Utc>) {
    let from = since + STRIPES_RETRIES;
    for endpoint in old {
        let version = endpoint.api_version.as_deref().unwrap_or("the account's default version");
        let id = &endpoint.id;
        if now >= from {
            println!(
                "{id} ({version}) can be deleted in Stripe's dashboard once `subledger doctor` reports no problem: \
                 every event of the last three days was sent to the new endpoint, too."
            );
        } else {
            println!(
                "{id} ({version}) can be deleted in Stripe's dashboard from {} on, if `subledger doctor` reports no \
                 problem: until then Stripe may still retry events that were sent to it alone. Both may deliver the \
                 same event; it is applied once.",
                from.to_rfc3339_opts(SecondsFormat::Secs, true)
            );
        }
    }
}

fn tell_how_to_upgrade(old: &[&Endpoint]) {
    for endpoint in old {
        let version = endpoint.api_version.as_deref().unwrap_or("the account's default version");
        println!(
            "{} has API version {version}, this release uses {API_VERSION}: `subledger setup --upgrade` makes a second \
             endpoint with it.",
            endpoint.id
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_urls_are_taken_and_the_path_is_added_where_there_is_none() {
        let url = |text| webhook_url(text).map(String::from);
        assert_eq!(url("https://app.example"), Ok(format!("https://app.example{WEBHOOK_PATH}")));
        assert_eq!(url("https://app.example/hooks"), Ok("https://app.example/hooks".to_owned()));
        for bad in ["http://app.example", "app.example", "https://", "ftp://x/y", ""] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }
}
