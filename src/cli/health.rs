//! `health`: asks a running server whether it serves. For container images, which have no other program to ask with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Url};

use super::Outcome;
use crate::config::Options;

/// Shorter than what container engines wait for, so that it is this program that says what is wrong.
const PATIENCE: Duration = Duration::from_secs(4);

/// What to ask.
#[derive(clap::Args, Debug)]
pub(super) struct Health {
    /// What to ask instead; …/health also asks for the database [default: /health/live at BIND_ADDR]
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
}

impl Health {
    /// Prints the answer; one that is no 2xx, or none, is a failure.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        let url = self.url(options)?;
        let client = Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let response = client.get(url.clone()).send().await.with_context(|| format!("no answer from {url}"))?;
        let status = response.status();
        println!("{status} {}", response.text().await?);
        ensure!(status.is_success(), "the server is not well");
        Ok(())
    }

    fn url(&self, options: &Options) -> Result<Url> {
        match &self.url {
            Some(url) => Ok(url.clone()),
            None => Ok(format!("http://{}/health/live", reachable(options.bind_addr()?)).parse()?),
        }
    }
}

/// A server that listens on every address of this machine is asked on the one that is always there.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_every_address_is_asked_on_this_machine() {
        for (listens_on, asked) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("10.0.0.7:80", "10.0.0.7:80"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
        ] {
            assert_eq!(reachable(listens_on.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
