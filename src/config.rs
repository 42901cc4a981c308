//! Configuration: the only place that reads the environment. Each variable is also a flag; a bad value is one line
//! that names the variable.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use reqwest::Url;
use thiserror::Error;

use crate::db::connect::Target;
use crate::secret::Secret;
use crate::stripe::{PricePlans, api};

/// How long an idle connection is kept: longer than load balancers do (60 s as a rule), since the side that closes
/// first loses the race against a request on its way.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// A variable with a value that cannot be used.
#[derive(Debug, Error)]
#[error("{variable}: {problem}")]
pub struct ConfigError {
    variable: &'static str,
    problem: String,
}

impl ConfigError {
    /// A problem with a variable; written as one line.
    pub fn new(variable: &'static str, problem: impl Display) -> Self {
        Self { variable, problem: problem.to_string().replace('\n', " ") }
    }
}

/// The variables as they were given, by flag or environment, none of them judged yet.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Configuration")]
pub struct Options {
    /// PostgreSQL as postgres://…; without it `serve` runs a private one in ./.subledger
    #[arg(long, env, global = true, hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// Where to listen; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "ADDR")]
    bind_addr: Option<String>,
    /// Signing secrets of the webhook endpoint, comma-separated
    #[arg(long, env, global = true, hide_env_values = true, value_name = "WHSEC")]
    stripe_webhook_secret: Option<String>,
    /// API key for calls to Stripe; without it nothing calls out
    #[arg(long, env, global = true, hide_env_values = true, value_name = "KEY")]
    stripe_secret_key: Option<String>,
    /// Where Stripe's API is [default: `https://api.stripe.com`]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "URL")]
    stripe_api_base: Option<String>,
    /// The most that one call to Stripe may take, connecting included [default: 8000]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "MS")]
    stripe_timeout_ms: Option<String>,
    /// Calls to Stripe a second, at most; a delivery over the limit is answered 503 [default: 40]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "N")]
    stripe_reads_per_second: Option<String>,
    /// What admins authorize themselves with; without it admin routes answer 403
    #[arg(long, env, global = true, hide_env_values = true, value_name = "TOKEN")]
    admin_token: Option<String>,
    /// How old or how far ahead a signature may be, 1 or more [default: 300]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "SECS")]
    signature_tolerance_secs: Option<String>,
    /// Which price is which plan: price_1abc=pro,price_2def=team
    #[arg(long, env, global = true, hide_env_values = true, value_name = "PRICE=PLAN,…")]
    price_plans: Option<String>,
    /// Connections to the database [default: 16]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "N")]
    pool_size: Option<String>,
    /// The most that an event waits for a connection [default: 2000]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "MS")]
    pool_timeout_ms: Option<String>,
    /// Subscription statuses that entitle an account [default: active,trialing,past_due]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "STATUS,…")]
    entitled_statuses: Option<String>,
    /// text, or json for one object a line [default: text]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "FORMAT")]
    log_format: Option<String>,
    /// The largest body that is taken [default: 1048576]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "BYTES")]
    body_limit_bytes: Option<String>,
    /// The most that a body may take to arrive [default: 10000]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "MS")]
    body_timeout_ms: Option<String>,
    /// What is logged, by level or module=level [default: info]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "FILTER")]
    rust_log: Option<String>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Options(…)")
    }
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the server is configured with.
#[derive(Debug)]
pub struct Config {
    /// Where to listen.
    pub bind_addr: SocketAddr,
    /// Any of them may have signed.
    pub webhook_secrets: Vec<Secret>,
    /// Stripe's API, where there is a key.
    pub stripe: Option<api::Client>,
    /// What admins authorize themselves with.
    pub admin_token: Option<Secret>,
    /// Seconds that a signature may be off.
    pub tolerance_secs: u64,
    /// Which price is which plan.
    pub plans: PricePlans,
    /// Connections to the database.
    pub pool_size: u32,
    /// The most that an event waits for one.
    pub pool_timeout: Duration,
    /// Statuses that entitle an account, the best first.
    pub entitled_statuses: Vec<String>,
    /// Bytes.
    pub body_limit: usize,
    /// The most that a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a connection is kept on which nothing happens.
    pub keep_alive: Duration,
}

impl Options {
    /// How to log, and what: a filter that `env_logger` takes.
    ///
    /// # Errors
    /// Where `LOG_FORMAT` or `RUST_LOG` cannot be used.
    pub fn logging(&self) -> Result<(LogFormat, &str), ConfigError> {
        let format = match self.log_format.as_deref().unwrap_or("text") {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => return Err(ConfigError::new("LOG_FORMAT", format!("{other:?} is neither text nor json"))),
        };
        let filter = self.rust_log.as_deref().filter(|filter| !filter.is_empty()).unwrap_or("info");
        env_filter::Builder::new().try_parse(filter).map_err(|error| ConfigError::new("RUST_LOG", error))?;
        Ok((format, filter))
    }

    /// The database, where one is configured.
    ///
    /// # Errors
    /// Where `DATABASE_URL` cannot be used.
    pub fn database(&self) -> Result<Option<Target>, ConfigError> {
        self.database_url
            .as_deref()
            .map(|url| Target::parse(url).map_err(|error| ConfigError::new("DATABASE_URL", format!("{error:#}"))))
            .transpose()
    }

    /// The webhook's secrets; empty where none is configured.
    ///
    /// # Errors
    /// Where one of them is empty.
    pub fn webhook_secrets(&self) -> Result<Vec<Secret>, ConfigError> {
        let Some(list) = &self.stripe_webhook_secret else {
            return Ok(Vec::new());
        };
        let secrets: Vec<_> = list.split(',').map(str::trim).collect();
        // An empty key would let anybody sign.
        if secrets.contains(&"") {
            return Err(ConfigError::new("STRIPE_WEBHOOK_SECRET", "a secret is empty"));
        }
        Ok(secrets.into_iter().map(Secret::new).collect())
    }

    /// The admin token. An empty one is none.
    pub fn admin_token(&self) -> Option<Secret> {
        self.admin_token.as_deref().filter(|token| !token.is_empty()).map(Secret::new)
    }

    /// Where the server listens.
    ///
    /// # Errors
    /// Where `BIND_ADDR` is no address.
    pub fn bind_addr(&self) -> Result<SocketAddr, ConfigError> {
        let text = self.bind_addr.as_deref().unwrap_or("127.0.0.1:8080");
        text.to_socket_addrs()
            .ok()
            .and_then(|mut addresses| addresses.next())
            .ok_or_else(|| ConfigError::new("BIND_ADDR", format!("{text:?} is no address with a port")))
    }

    /// Everything that the server needs beside its database.
    ///
    /// # Errors
    /// The first variable that cannot be used.
    pub fn server(&self) -> Result<Config, ConfigError> {
        Ok(Config {
            bind_addr: self.bind_addr()?,
            webhook_secrets: self.webhook_secrets()?,
            stripe: self.stripe()?,
            admin_token: self.admin_token(),
            tolerance_secs: number("SIGNATURE_TOLERANCE_SECS", &self.signature_tolerance_secs, 300, 1..=u32::MAX)?
                .into(),
            plans: self.price_plans()?,
            pool_size: number("POOL_SIZE", &self.pool_size, 16, 1..=10_000)?,
            pool_timeout: millis("POOL_TIMEOUT_MS", &self.pool_timeout_ms, 2_000)?,
            entitled_statuses: self.entitled_statuses()?,
            body_limit: number("BODY_LIMIT_BYTES", &self.body_limit_bytes, 1_048_576, 1..=1 << 30)?,
            body_timeout: millis("BODY_TIMEOUT_MS", &self.body_timeout_ms, 10_000)?,
            keep_alive: KEEP_ALIVE,
        })
    }

    fn stripe(&self) -> Result<Option<api::Client>, ConfigError> {
        let timeout = millis("STRIPE_TIMEOUT_MS", &self.stripe_timeout_ms, 8_000)?;
        let base = self.stripe_api_base.as_deref().unwrap_or(api::DEFAULT_BASE);
        let base = Url::parse(base)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| ConfigError::new("STRIPE_API_BASE", format!("{base:?} is no http or https URL")))?;
        let Some(key) = self.stripe_secret_key.as_deref().filter(|key| !key.is_empty()) else {
            return Ok(None);
        };
        if key.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(ConfigError::new("STRIPE_SECRET_KEY", "it holds a character that no key has"));
        }
        let rate = number(
            "STRIPE_READS_PER_SECOND",
            &self.stripe_reads_per_second,
            api::DEFAULT_READS_PER_SECOND,
            1..=10_000,
        )?;
        let client = api::Client::with_rate(base, Secret::new(key), timeout, rate)
            .map_err(|error| ConfigError::new("STRIPE_SECRET_KEY", format!("no client can be made: {error}")))?;
        Ok(Some(client))
    }

    fn price_plans(&self) -> Result<PricePlans, ConfigError> {
        let refuse = |pair: &str, problem| Err(ConfigError::new("PRICE_PLANS", format!("{pair:?} {problem}")));
        let mut plans = HashMap::new();
        let list = self.price_plans.as_deref().unwrap_or("");
        for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (price, plan) = match pair.split_once('=').map(|(price, plan)| (price.trim(), plan.trim())) {
                Some((price, plan)) if !price.is_empty() && !plan.is_empty() => (price.to_owned(), plan.to_owned()),
                _ => return refuse(pair, "is not price=plan"),
            };
            if plans.insert(price, plan).is_some() {
                return refuse(pair, "names a price that has a plan already");
            }
        }
        Ok(plans.into_iter().collect())
    }

    fn entitled_statuses(&self) -> Result<Vec<String>, ConfigError> {
        let list = self.entitled_statuses.as_deref().unwrap_or("active,trialing,past_due");
        let statuses: Vec<_> =
            list.split(',').map(str::trim).filter(|status| !status.is_empty()).map(str::to_owned).collect();
        if statuses.is_empty() {
            return Err(ConfigError::new("ENTITLED_STATUSES", "it names no status, so nobody would be entitled"));
        }
        Ok(statuses)
    }
}

fn number<T>(
    variable: &'static str,
    given: &Option<String>,
    default: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, ConfigError>
where
    T: FromStr + PartialOrd + Display + Copy,
{
    let Some(text) = given else { return Ok(default) };
    text.trim().parse().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        ConfigError::new(variable, format!("{text:?} is no whole number from {least} to {most}"))
    })
}

fn millis(variable: &'static str, given: &Option<String>, default: u32) -> Result<Duration, ConfigError> {
    number(variable, given, default, 1..=86_400_000).map(|millis| Duration::from_millis(millis.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(options: Options) -> String {
        options.server().expect_err("a bad value").to_string()
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = Options::default().server().unwrap();
        assert_eq!(config.bind_addr.to_string(), "127.0.0.1:8080");
        assert_eq!((config.tolerance_secs, config.pool_size, config.body_limit), (300, 16, 1_048_576));
        assert_eq!(config.pool_timeout, Duration::from_secs(2));
        assert_eq!(config.body_timeout, Duration::from_secs(10));
        assert_eq!(config.entitled_statuses, ["active", "trialing", "past_due"]);
        assert!(config.stripe.is_none() && config.admin_token.is_none() && config.webhook_secrets.is_empty());
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_the_variable() {
        let some = |text: &str| Some(text.to_owned());
        for (variable, options) in [
            ("POOL_SIZE", Options { pool_size: some("0"), ..Options::default() }),
            ("POOL_TIMEOUT_MS", Options { pool_timeout_ms: some("soon"), ..Options::default() }),
            ("SIGNATURE_TOLERANCE_SECS", Options { signature_tolerance_secs: some("0"), ..Options::default() }),
            ("BIND_ADDR", Options { bind_addr: some("nowhere"), ..Options::default() }),
            ("PRICE_PLANS", Options { price_plans: some("price_1"), ..Options::default() }),
            ("STRIPE_API_BASE", Options { stripe_api_base: some("ftp://x"), ..Options::default() }),
            (
                "STRIPE_WEBHOOK_SECRET",
                Options { stripe_webhook_secret: some("whsec_a,,whsec_b"), ..Options::default() },
            ),
            ("ENTITLED_STATUSES", Options { entitled_statuses: some(","), ..Options::default() }),
            ("PRICE_PLANS", Options { price_plans: some("price_1=a,price_1=b"), ..Options::default() }),
            ("BODY_LIMIT_BYTES", Options { body_limit_bytes: some("-1"), ..Options::default() }),
        ] {
            let problem = problem(options);
            assert!(problem.starts_with(&format!("{variable}: ")) && !problem.contains('\n'), "{problem}");
        }
        let options = Options { rust_log: some("subledger=loud"), ..Options::default() };
        assert!(options.logging().expect_err("bad").to_string().starts_with("RUST_LOG: "));
        let options = Options { database_url: some(""), ..Options::default() };
        assert!(options.database().expect_err("bad").to_string().starts_with("DATABASE_URL: "));
    }

    #[test]
    fn several_secrets_and_plans_are_taken() {
        let options = Options {
            stripe_webhook_secret: Some("whsec_a, whsec_b".to_owned()),
            price_plans: Some("price_1=pro, price_2=team,".to_owned()),
            ..Options::default()
        };
        let config = options.server().unwrap();
        assert_eq!(config.webhook_secrets.len(), 2);
        assert_eq!(config.plans.plan("price_2"), Some("team"));
    }
}
