//! Configuration: the only place that reads the environment. Each variable is also a flag; a bad value is one line
//! that names the variable.

mod checks;

use std::collections::HashMap;
use std::fmt::Display;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use reqwest::Url;
use thiserror::Error;
use url::Host;

use crate::db::connect::Target;
use crate::db::entitlements::Settings;
use crate::db::schema_name::SchemaName;
use crate::duration;
use crate::secret::Secret;
use crate::service::Push;
use crate::stripe::redact::StoredPayloads;
use crate::stripe::trust::{ConnectTrust, Mode};
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
    /// The password if DATABASE_URL has none, as for libpq's programs.
    #[arg(long, env, global = true, hide = true, hide_env_values = true, value_name = "PASSWORD")]
    pgpassword: Option<String>,
    /// The schema of the tables; created when absent [default: public]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "NAME")]
    database_schema: Option<String>,
    /// Where to listen; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "ADDR")]
    bind_addr: Option<String>,
    /// Signing secrets of the webhook endpoint, comma-separated
    #[arg(long, env, global = true, hide_env_values = true, value_name = "WHSEC")]
    stripe_webhook_secret: Option<String>,
    /// API key for calls to Stripe; without it nothing calls out
    #[arg(long, env, global = true, hide_env_values = true, value_name = "KEY")]
    stripe_secret_key: Option<String>,
    /// Which events act: live, test or any [default: by the prefix of STRIPE_SECRET_KEY, else any]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "MODE")]
    stripe_mode: Option<String>,
    /// Connected accounts whose metadata may name an account: true, false or acct_1abc,acct_2def [default: false]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "BOOL OR ACCT,…")]
    trust_connect_metadata: Option<String>,
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
    /// How old or how far ahead a signature may be, 1 to 86400 [default: 300]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "SECS")]
    signature_tolerance_secs: Option<String>,
    /// The plans of prices or products: price_1abc=pro,prod_2def=team
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
    /// Where changes are pushed, signed by Standard Webhooks
    #[arg(long, env, global = true, hide_env_values = true, value_name = "URL")]
    changes_url: Option<String>,
    /// What pushed changes are signed with: whsec_ and a key in Base64
    #[arg(long, env, global = true, hide_env_values = true, value_name = "WHSEC")]
    changes_secret: Option<String>,
    /// entitle, or ignore: whether a subscription entitles none of whose prices is in PRICE_PLANS [default: entitle]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "entitle|ignore")]
    unlisted_prices: Option<String>,
    /// How long after its period's end a subscription counts as overdue, as 48h or 2d [default: 48h]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "DURATION")]
    overdue_after: Option<String>,
    /// How often `serve` reconciles with Stripe by itself, or off [default: 1h]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "DURATION")]
    reconcile_every: Option<String>,
    /// full, or redacted to store payloads without personal data [default: full]
    #[arg(long, env, global = true, hide_env_values = true, value_name = "FORM")]
    stored_payloads: Option<String>,
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
    /// Which events act.
    pub mode: Mode,
    /// The connected accounts whose metadata may name an account.
    pub trust: ConnectTrust,
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
    /// What entitles an account.
    pub entitlement: Settings,
    /// Where changes are pushed.
    pub push: Option<Push>,
    /// How often the server reconciles with Stripe by itself; `None` if it does not.
    pub reconcile_every: Option<Duration>,
    /// The form in which payloads are stored.
    pub stored_payloads: StoredPayloads,
    /// Bytes.
    pub body_limit: usize,
    /// The most that a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a connection is kept on which nothing happens.
    pub keep_alive: Duration,
}

/// Whether the environment asks for a JSON log: for errors in the command line, of which no [`Options`] come.
#[expect(clippy::disallowed_methods, reason = "this is config")]
pub fn environment_wants_json() -> bool {
    std::env::var_os("LOG_FORMAT").is_some_and(|format| format == "json")
}

impl Options {
    /// How the log is written.
    ///
    /// # Errors
    /// If `LOG_FORMAT` cannot be used.
    pub fn log_format(&self) -> Result<LogFormat, ConfigError> {
        match self.log_format.as_deref().unwrap_or("text") {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(ConfigError::new("LOG_FORMAT", format!("{other:?} is neither text nor json"))),
        }
    }

    /// What is logged: a filter that `env_logger` takes.
    ///
    /// # Errors
    /// If `RUST_LOG` cannot be used.
    pub fn log_filter(&self) -> Result<&str, ConfigError> {
        let filter = self.rust_log.as_deref().filter(|filter| !filter.is_empty()).unwrap_or("info");
        env_filter::Builder::new().try_parse(filter).map_err(|error| ConfigError::new("RUST_LOG", error))?;
        Ok(filter)
    }

    /// The database, if one is configured. `PGPASSWORD` is its password if the URL has none.
    ///
    /// # Errors
    /// If `DATABASE_URL` or `DATABASE_SCHEMA` cannot be used.
    pub fn database(&self) -> Result<Option<Target>, ConfigError> {
        let schema = self.schema()?;
        let Some(url) = self.database_url.as_deref() else { return Ok(None) };
        let target =
            Target::parse(url.trim()).map_err(|error| ConfigError::new("DATABASE_URL", format!("{error:#}")))?;
        Ok(Some(target.with_default_password(trimmed(&self.pgpassword).unwrap_or_default()).in_schema(schema)))
    }

    /// The schema of the tables, if one is configured.
    ///
    /// # Errors
    /// If `DATABASE_SCHEMA` cannot be used.
    pub fn schema(&self) -> Result<Option<SchemaName>, ConfigError> {
        let schema = self.database_schema.as_deref().map(SchemaName::new).transpose();
        schema.map_err(|error| ConfigError::new("DATABASE_SCHEMA", error))
    }

    /// The webhook's secrets; empty if none is configured.
    ///
    /// # Errors
    /// If one of them cannot be a signing secret.
    pub fn webhook_secrets(&self) -> Result<Vec<Secret>, ConfigError> {
        let secrets = self.webhook_secret_list();
        if let Some(problem) = secrets.iter().find_map(|secret| checks::webhook_secret_problem(secret)) {
            return Err(ConfigError::new("STRIPE_WEBHOOK_SECRET", problem));
        }
        Ok(secrets.into_iter().map(Secret::new).collect())
    }

    fn webhook_secret_list(&self) -> Vec<&str> {
        self.stripe_webhook_secret.iter().flat_map(|list| list.split(',')).map(str::trim).collect()
    }

    /// The admin token. An empty one is none.
    ///
    /// # Errors
    /// If no `Authorization` header can hold it.
    pub fn admin_token(&self) -> Result<Option<Secret>, ConfigError> {
        let Some(token) = trimmed(&self.admin_token) else { return Ok(None) };
        match checks::admin_token_problem(token) {
            Some(problem) => Err(ConfigError::new("ADMIN_TOKEN", problem)),
            None => Ok(Some(Secret::new(token))),
        }
    }

    /// What in the configuration works but is surely not meant, each a line for the log that names its variable.
    ///
    /// # Errors
    /// As [`Options::server`].
    pub fn warnings(&self) -> Result<Vec<String>, ConfigError> {
        let given = checks::Given {
            has_database: self.database_url.is_some(),
            mode: self.mode()?,
            webhook_secrets: self.webhook_secret_list(),
            api_key: trimmed(&self.stripe_secret_key),
            admin_token: trimmed(&self.admin_token),
            statuses: &self.entitled_statuses()?,
        };
        Ok(given.warnings())
    }

    /// A warning of a word in `RUST_LOG` that looks like a level and is none, so that less is logged than was meant.
    pub fn filter_warning(&self) -> Option<String> {
        let word = checks::misread_level(self.rust_log.as_deref()?)?;
        Some(format!(
            "RUST_LOG: {word:?} is no level but the name of a module; levels are error, warn, info, debug, trace, off"
        ))
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
            mode: self.mode()?,
            trust: parsed("TRUST_CONNECT_METADATA", &self.trust_connect_metadata)?.unwrap_or_default(),
            admin_token: self.admin_token()?,
            tolerance_secs: number("SIGNATURE_TOLERANCE_SECS", &self.signature_tolerance_secs, 300, 1..=86_400)?,
            plans: self.price_plans()?,
            pool_size: number("POOL_SIZE", &self.pool_size, 16, 1..=10_000)?,
            pool_timeout: millis("POOL_TIMEOUT_MS", &self.pool_timeout_ms, 2_000)?,
            entitlement: self.entitlement()?,
            push: self.push()?,
            reconcile_every: match self.reconcile_every.as_deref().map(str::trim).unwrap_or("1h") {
                "off" => None,
                text => Some(period("RECONCILE_EVERY", text)?),
            },
            stored_payloads: parsed("STORED_PAYLOADS", &self.stored_payloads)?.unwrap_or_default(),
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
            // Not the value: it may hold a password.
            .ok_or_else(|| ConfigError::new("STRIPE_API_BASE", "it is no http or https URL"))?;
        let Some(key) = trimmed(&self.stripe_secret_key) else { return Ok(None) };
        if let Some(problem) = checks::api_key_problem(key) {
            return Err(ConfigError::new("STRIPE_SECRET_KEY", problem));
        }
        // Whoever listens on the way could take it and act as the account.
        if is_live(key) && base.scheme() == "http" && !is_loopback(&base) {
            return Err(ConfigError::new("STRIPE_API_BASE", "a live key is not sent over http:// to another machine"));
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

    fn mode(&self) -> Result<Mode, ConfigError> {
        let of_key = || trimmed(&self.stripe_secret_key).and_then(Mode::of_key);
        Ok(parsed("STRIPE_MODE", &self.stripe_mode)?.or_else(of_key).unwrap_or_default())
    }

    fn push(&self) -> Result<Option<Push>, ConfigError> {
        let given =
            |text: &Option<String>| text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let (url, secret) = match (given(&self.changes_url), given(&self.changes_secret)) {
            (Some(url), Some(secret)) => (url, Secret::new(secret)),
            (Some(_), None) => return Err(ConfigError::new("CHANGES_SECRET", "it is required with CHANGES_URL")),
            (None, Some(_)) => return Err(ConfigError::new("CHANGES_URL", "it is required with CHANGES_SECRET")),
            (None, None) => return Ok(None),
        };
        let url = Url::parse(&url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        // It may hold a password, so it is not shown.
        let url = url.ok_or_else(|| ConfigError::new("CHANGES_URL", "it is no http or https URL"))?;
        let push = Push::new(url, &secret);
        push.map(Some).map_err(|error| ConfigError::new("CHANGES_SECRET", format!("{error:#}")))
    }

    pub(crate) fn price_plans(&self) -> Result<PricePlans, ConfigError> {
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

    fn entitlement(&self) -> Result<Settings, ConfigError> {
        let ignore_unlisted_prices = match self.unlisted_prices.as_deref().map_or("entitle", str::trim) {
            "entitle" => false,
            "ignore" => true,
            other => {
                return Err(ConfigError::new("UNLISTED_PRICES", format!("{other:?} is neither entitle nor ignore")));
            }
        };
        let overdue_after = self.overdue_after.as_deref().map_or("48h", str::trim);
        let overdue_after =
            duration::parse(overdue_after).map_err(|problem| ConfigError::new("OVERDUE_AFTER", problem))?;
        Ok(Settings { entitled_statuses: self.entitled_statuses()?, ignore_unlisted_prices, overdue_after })
    }

    fn entitled_statuses(&self) -> Result<Vec<String>, ConfigError> {
        let list = self.entitled_statuses.as_deref().unwrap_or("active,trialing,past_due");
        let statuses: Vec<_> =
            list.split(',').map(str::trim).filter(|status| !status.is_empty()).map(str::to_owned).collect();
        match checks::statuses_problem(&statuses) {
            Some(problem) => Err(ConfigError::new("ENTITLED_STATUSES", problem)),
            None => Ok(statuses),
        }
    }
}

/// A secret without the white space around it, which a file or a paste may add; `None` if nothing is left.
fn trimmed(given: &Option<String>) -> Option<&str> {
    given.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

/// The value if it is given; white space around it does not count.
fn parsed<T: FromStr<Err: Display>>(variable: &'static str, given: &Option<String>) -> Result<Option<T>, ConfigError> {
    let parse = |text: &str| text.trim().parse().map_err(|error| ConfigError::new(variable, error));
    given.as_deref().map(parse).transpose()
}

/// Whether a secret or restricted key acts on live data: <https://docs.stripe.com/keys>.
fn is_live(key: &str) -> bool {
    key.starts_with("sk_live_") || key.starts_with("rk_live_")
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
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

fn period(variable: &'static str, text: &str) -> Result<Duration, ConfigError> {
    duration::parse(text.trim()).map_err(|problem| ConfigError::new(variable, problem))
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
        assert_eq!(config.entitlement.entitled_statuses, ["active", "trialing", "past_due"]);
        assert!(!config.entitlement.ignore_unlisted_prices);
        assert_eq!(config.entitlement.overdue_after, Duration::from_secs(48 * 3_600));
        assert_eq!(config.reconcile_every, Some(Duration::from_secs(3_600)));
        assert_eq!(config.stored_payloads, StoredPayloads::Full);
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
            ("STRIPE_MODE", Options { stripe_mode: some("production"), ..Options::default() }),
            ("STRIPE_MODE", Options { stripe_mode: some(""), ..Options::default() }),
            ("TRUST_CONNECT_METADATA", Options { trust_connect_metadata: some("yes"), ..Options::default() }),
            ("STRIPE_API_BASE", Options { stripe_api_base: some("ftp://x"), ..Options::default() }),
            (
                "STRIPE_WEBHOOK_SECRET",
                Options { stripe_webhook_secret: some("whsec_a,,whsec_b"), ..Options::default() },
            ),
            ("UNLISTED_PRICES", Options { unlisted_prices: some("maybe"), ..Options::default() }),
            ("OVERDUE_AFTER", Options { overdue_after: some("48"), ..Options::default() }),
            ("ENTITLED_STATUSES", Options { entitled_statuses: some(","), ..Options::default() }),
            ("PRICE_PLANS", Options { price_plans: some("price_1=a,price_1=b"), ..Options::default() }),
            ("CHANGES_SECRET", Options { changes_url: some("http://localhost/"), ..Options::default() }),
            (
                "CHANGES_URL",
                Options { changes_secret: some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), ..Options::default() },
            ),
            (
                "CHANGES_URL",
                Options {
                    changes_url: some("localhost"),
                    changes_secret: some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
                    ..Options::default()
                },
            ),
            (
                "CHANGES_SECRET",
                Options {
                    changes_url: some("http://localhost/"),
                    changes_secret: some("whsec_?"),
                    ..Options::default()
                },
            ),
            ("OVERDUE_AFTER", Options { overdue_after: some("two days"), ..Options::default() }),
            ("RECONCILE_EVERY", Options { reconcile_every: some("0s"), ..Options::default() }),
            ("STORED_PAYLOADS", Options { stored_payloads: some("none"), ..Options::default() }),
            ("BODY_LIMIT_BYTES", Options { body_limit_bytes: some("-1"), ..Options::default() }),
        ] {
            let problem = problem(options);
            assert!(problem.starts_with(&format!("{variable}: ")) && !problem.contains('\n'), "{problem}");
        }
        let options = Options { rust_log: some("subledger=loud"), ..Options::default() };
        assert!(options.log_filter().expect_err("bad").to_string().starts_with("RUST_LOG: "));
        let options = Options { database_url: some(""), ..Options::default() };
        assert!(options.database().expect_err("bad").to_string().starts_with("DATABASE_URL: "));
        for database_url in [None, some("postgres:///app")] {
            let options = Options { database_url, database_schema: some("pg_billing"), ..Options::default() };
            assert!(options.database().expect_err("bad").to_string().starts_with("DATABASE_SCHEMA: "));
        }
    }

    #[test]
    fn the_mode_is_that_of_the_key_unless_it_is_given() {
        let config = |key: &str, mode: Option<&str>| {
            // Fails if one is installed already.
            rustls::crypto::ring::default_provider().install_default().ok();
            let options = Options {
                stripe_secret_key: Some(key.to_owned()),
                stripe_mode: mode.map(str::to_owned),
                ..Options::default()
            };
            options.server().unwrap().mode
        };
        assert_eq!(config("sk_live_1", None), Mode::Live);
        assert_eq!(config(" rk_test_1\n", None), Mode::Test);
        assert_eq!(config("sk_live_1", Some("any")), Mode::Any);
        assert_eq!(config("", None), Mode::Any);
        let defaults = Options::default().server().unwrap();
        assert_eq!((defaults.mode, defaults.trust), (Mode::Any, ConnectTrust::None));
    }

    #[test]
    fn a_signature_cannot_be_valid_for_longer_than_a_day() {
        let server =
            |secs: &str| Options { signature_tolerance_secs: Some(secs.to_owned()), ..Options::default() }.server();
        assert_eq!(server("86400").unwrap().tolerance_secs, 86_400);
        for wrong in ["86401", "4294967295", "0"] {
            assert!(server(wrong).unwrap_err().to_string().starts_with("SIGNATURE_TOLERANCE_SECS: "));
        }
    }

    #[test]
    fn a_live_key_stays_on_this_machine_or_goes_over_https_and_no_password_is_shown() {
        rustls::crypto::ring::default_provider().install_default().ok();
        let stripe = |key: &str, base: &str| {
            let (key, base) = (Some(key.to_owned()), Some(base.to_owned()));
            Options { stripe_secret_key: key, stripe_api_base: base, ..Options::default() }.server()
        };
        for base in ["https://proxy.test", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"] {
            assert!(stripe("sk_live_1", base).is_ok(), "{base}");
        }
        assert!(stripe("sk_test_1", "http://stripe-mock:12111").is_ok());
        for key in ["sk_live_1", "rk_live_1"] {
            for base in ["http://stripe-mock:12111", "http://192.0.2.1", "http://localhost.evil.test"] {
                let problem = stripe(key, base).unwrap_err().to_string();
                assert!(problem.starts_with("STRIPE_API_BASE: ") && !problem.contains(key), "{problem}");
            }
        }
        let problem = stripe("sk_test_1", "ftp://user:password@proxy.test").unwrap_err().to_string();
        assert!(problem.starts_with("STRIPE_API_BASE: ") && !problem.contains("password"), "{problem}");
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
