//! `DATABASE_URL` and what is done with it: parsing, TLS, and the session settings of every connection.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use diesel::QueryResult;
use diesel::result::{ConnectionError, ConnectionResult};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio_postgres::Client;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::hosts::{self, chain};
use super::schema_name::{SchemaName, literal};
use super::sqlstate::{Driver, FirstError};
use super::tls::{self, Verification};

/// The settings of every session.
///
/// - The time limits keep a hanging statement from holding a connection, a lock or a transaction for long.
/// - `jit = off`: no query runs long enough to pay for the 100 ms that compiling takes.
/// - `read committed`, whatever the database's default is: after waiting for a lock, a statement must see what the
///   holder of the lock committed.
/// - `synchronous_commit` is not off, whatever the role or the database says: 200 means that the event is on disk.
/// - `enable_seqscan = off`: a statement that is prepared while the tables are empty would otherwise scan them
///   sequentially until the next autoanalyze, long after they have grown. Every query here has an index to use.
const SESSION_SETTINGS: &str = "
    SET default_transaction_isolation = 'read committed';
    SET statement_timeout = '10s';
    SET lock_timeout = '5s';
    SET jit = off;
    SET enable_seqscan = off;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
    SET idle_in_transaction_session_timeout = '10s'";

/// The same settings for work that may take as long as it has to, whatever limits the role has.
const NO_LIMITS: &str = "
    SET default_transaction_isolation = 'read committed';
    SET statement_timeout = 0;
    SET lock_timeout = 0;
    SET idle_in_transaction_session_timeout = 0";

/// What not every PostgreSQL can: that the server notices within a tenth of a second that we have gone while a
/// statement waits, and that it compresses payloads the cheap way (a fifth less of its CPU for each event).
const OPTIONAL_SETTINGS: [&str; 2] =
    ["SET client_connection_check_interval = '100ms'", "SET default_toast_compression = 'lz4'"];

/// The options in a URL that tokio-postgres takes, beside those that are read here.
const OPTIONS: [&str; 18] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslnegotiation",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// How long putting a session in order may take.
const SETUP_LIMIT: Duration = Duration::from_secs(5);

/// How to reach the database: a parsed `DATABASE_URL`.
#[derive(Clone)]
pub struct Target {
    config: tokio_postgres::Config,
    /// How long one host may take until it has let us in, where the URL says.
    limit: Option<Duration>,
    tls: MakeRustlsConnect,
    /// Where the tables are, if `DATABASE_SCHEMA` says so.
    schema: Option<SchemaName>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its own `Debug` hides the password.
        self.config.fmt(f)
    }
}

impl Target {
    /// Parses a `postgres://` URL: several hosts, `target_session_attrs`, and `sslmode` up to `verify-full` with
    /// `sslrootcert` mean what they mean to libpq.
    ///
    /// # Errors
    /// Where it cannot be parsed; the error never shows the URL, which may hold a password.
    pub fn parse(url: &str) -> Result<Self> {
        ensure!(
            url.starts_with("postgres://") || url.starts_with("postgresql://"),
            "it does not start with postgres://"
        );
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        ensure_escaped(base, query)?;
        let mut ssl_mode = None;
        let mut root_file = None;
        let mut kept = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "sslmode" => ssl_mode = Some(decoded(value)?),
                "sslrootcert" => root_file = Some(decoded(value)?),
                // libpq's newer words; without standbys that take writes they mean the same.
                "target_session_attrs" if value == "primary" => kept.push("target_session_attrs=read-write"),
                "target_session_attrs" if value == "standby" => kept.push("target_session_attrs=read-only"),
                _ if OPTIONS.contains(&name) => kept.push(pair),
                // In a URL with an unescaped password this may be a part of it.
                _ if query.contains('@') => bail!("an option after the ? is unknown"),
                _ => bail!("the option {name:?} is unknown"),
            }
        }
        let mut config: tokio_postgres::Config =
            format!("{base}?{}", kept.join("&")).parse().map_err(without_secrets)?;
        hosts::check(&config).map_err(anyhow::Error::msg)?;
        let (mode, verification) = ssl(ssl_mode.as_deref(), root_file.as_deref())?;
        config.ssl_mode(mode);
        let limit = config.get_connect_timeout().copied();
        fill_in(&mut config);
        let tls = MakeRustlsConnect::new(tls::client_config(verification, root_file.as_deref())?);
        Ok(Self { config, limit, tls, schema: None })
    }

    /// The same database, with subledger's tables in `schema`; `None` is the default schema.
    #[must_use]
    pub fn in_schema(self, schema: Option<SchemaName>) -> Self {
        Self { schema, ..self }
    }

    /// The schema of subledger's tables.
    #[must_use]
    pub fn schema(&self) -> SchemaName {
        self.schema.clone().unwrap_or_default()
    }

    /// Whether the schema was configured, and is not merely the default.
    #[must_use]
    pub fn names_schema(&self) -> bool {
        self.schema.is_some()
    }

    /// The same with `password`, unless the URL names one or `password` is empty.
    #[must_use]
    pub fn with_default_password(mut self, password: &str) -> Self {
        if self.config.get_password().is_none() && !password.is_empty() {
            self.config.password(password);
        }
        self
    }

    /// User, hosts and name of the database, for the log; no password.
    pub fn describe(&self) -> String {
        let port = |index| {
            let ports = self.config.get_ports();
            ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432)
        };
        let host = |(index, host): (usize, &Host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(index)),
            Host::Unix(path) => path.display().to_string(),
        };
        let mut hosts: Vec<_> = self.config.get_hosts().iter().enumerate().map(host).collect();
        if hosts.is_empty() {
            hosts = self.config.get_hostaddrs().iter().map(ToString::to_string).collect();
        }
        let user = self.config.get_user().map(|user| format!("{user}@")).unwrap_or_default();
        let name = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("postgres://{user}{}/{name}", hosts.join(","))
    }

    /// Opens a connection and puts its session in order.
    ///
    /// # Errors
    /// Where no host can be reached, or refuses, or does not say enough in time.
    pub async fn connect(&self) -> ConnectionResult<AsyncPgConnection> {
        // Without its driver the connection lives until it is dropped.
        let (conn, driver) = self.connect_watched(&FirstError::default()).await?;
        std::mem::forget(driver);
        Ok(conn)
    }

    /// [`Target::connect`]; `error` will have the SQLSTATE of the session's first error.
    pub(super) async fn connect_watched(&self, error: &FirstError) -> ConnectionResult<(AsyncPgConnection, Driver)> {
        self.session(&[SESSION_SETTINGS, &self.search_path()], &OPTIONAL_SETTINGS, error).await
    }

    /// Opens a connection on which nothing can be written.
    ///
    /// # Errors
    /// Where no host can be reached, or refuses.
    pub async fn connect_read_only(&self) -> ConnectionResult<AsyncPgConnection> {
        let mut conn = self.connect().await?;
        conn.batch_execute("SET default_transaction_read_only = on")
            .await
            .map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(conn)
    }

    /// Opens a connection without time limits, for work that may take long.
    ///
    /// # Errors
    /// Where no host can be reached, or refuses.
    pub async fn connect_unbounded(&self) -> ConnectionResult<AsyncPgConnection> {
        let settings = [NO_LIMITS, &self.search_path()];
        let (conn, driver) = self.session(&settings, &[], &FirstError::default()).await?;
        std::mem::forget(driver);
        Ok(conn)
    }

    /// Opens a connection without time limits and without diesel, whose errors carry no SQLSTATE: for migrations.
    ///
    /// # Errors
    /// Where no host can be reached, or refuses.
    pub async fn connect_plainly(&self) -> Result<Client> {
        let (client, driver) = hosts::connect(&self.config, self.limit, &self.tls, &FirstError::default()).await?;
        std::mem::forget(driver);
        client.batch_execute(NO_LIMITS).await.map_err(without_secrets)?;
        client.batch_execute(&self.search_path()).await.map_err(without_secrets)?;
        Ok(client)
    }

    async fn session(
        &self,
        settings: &[&str],
        optional: &[&str],
        error: &FirstError,
    ) -> ConnectionResult<(AsyncPgConnection, Driver)> {
        let (client, driver) = hosts::connect(&self.config, self.limit, &self.tls, error).await?;
        let mut conn = AsyncPgConnection::try_from(client).await?;
        tokio::time::timeout(SETUP_LIMIT, set_up(&mut conn, &settings.join(";"), optional))
            .await
            .map_err(|_| ConnectionError::BadConnection("the server does not answer".to_owned()))?
            .map_err(ConnectionError::CouldntSetupConfiguration)?;
        // Settings that this server does not have are no errors of a statement.
        error.take();
        Ok((conn, driver))
    }

    /// Puts the schema in front of the session's own search path, once: a pooler may hand on the session of before.
    fn search_path(&self) -> String {
        let schema = literal(self.schema().as_str());
        format!(
            "SELECT set_config('search_path', concat_ws(', ', schema, NULLIF(path, '')), false)
             FROM quote_ident({schema}) AS schema, current_setting('search_path') AS path
             WHERE NOT starts_with(path || ',', schema || ',')"
        )
    }
}

/// Puts a session in order.
async fn set_up(conn: &mut AsyncPgConnection, settings: &str, optional: &[&str]) -> QueryResult<()> {
    conn.batch_execute(settings).await?;
    for setting in optional {
        if let Err(error) = conn.batch_execute(setting).await {
            log::debug!("the database does not take `{setting}`: {error}");
        }
    }
    Ok(())
}

/// Refuses a URL in which an unescaped password would be taken for a host, a port or an option: errors show those.
fn ensure_escaped(base: &str, query: &str) -> Result<()> {
    let signs = base.matches('@').count();
    let has_colon = base.split_once("://").is_some_and(|(_, rest)| rest.contains(':'));
    ensure!(
        signs < 2 && (signs == 1 || !has_colon || !query.contains('@')),
        "a special character is not escaped; in a user or password, write @ as %40, ? as %3F, / as %2F, % as %25"
    );
    Ok(())
}

fn decoded(value: &str) -> Result<String> {
    let decoded = url::form_urlencoded::parse(format!("v={value}").as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .context("an option cannot be decoded")?;
    Ok(decoded)
}

fn without_secrets(error: tokio_postgres::Error) -> anyhow::Error {
    anyhow::anyhow!(chain(&error))
}

fn ssl(mode: Option<&str>, root_file: Option<&str>) -> Result<(SslMode, Verification)> {
    // Anybody can have a certificate that the machine's roots vouch for: libpq insists on the name then.
    let default = if root_file == Some("system") {
        ensure!(matches!(mode, None | Some("verify-full")), "sslrootcert=system wants sslmode=verify-full");
        "verify-full"
    } else {
        "prefer"
    };
    Ok(match mode.unwrap_or(default) {
        "disable" => (SslMode::Disable, Verification::None),
        "allow" | "prefer" => (SslMode::Prefer, Verification::None),
        // "If a root CA file exists, the behavior of sslmode=require will be the same as that of verify-ca."
        "require" if root_file.is_some() => (SslMode::Require, Verification::Chain),
        "require" => (SslMode::Require, Verification::None),
        "verify-ca" => (SslMode::Require, Verification::Chain),
        "verify-full" => (SslMode::Require, Verification::ChainAndName),
        _ => bail!("sslmode is none of disable, allow, prefer, require, verify-ca, verify-full"),
    })
}

/// What the URL leaves open and must not stay open: a host that is gone is to be noticed within seconds.
fn fill_in(config: &mut tokio_postgres::Config) {
    if config.get_application_name().is_none() {
        config.application_name("subledger");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(Duration::from_secs(2));
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(Duration::from_secs(10));
    }
    config.keepalives_idle(Duration::from_secs(15));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_with_every_option_that_libpq_knows_for_tls() {
        for url in [
            "postgres://u:p@localhost/db",
            "postgresql://u@h1:5432,h2:5433/db?target_session_attrs=read-write&sslmode=verify-full",
            "postgres://u@%2Frun%2Fpg/db?sslmode=disable",
            "postgres://u@h1,h2/db?target_session_attrs=primary",
            "postgres:///db?host=/run/pg&user=u",
            "postgres://u@h/db?sslmode=require&connect_timeout=3",
        ] {
            assert!(Target::parse(url).is_ok(), "{url}: {:?}", Target::parse(url).err());
        }
    }

    #[test]
    fn a_bad_url_is_refused_without_showing_the_password() {
        for url in [
            "mysql://u:hunter2@h/db",
            "postgres://u:hunter2@h:port/db",
            "postgres://u:hunter2@h/db?sslmode=maybe",
            "postgres://u:hunter2@h/db?nonsense=1",
            "postgres://u:hunter2@h/db?sslmode=verify-ca&sslrootcert=/nonexistent.pem",
            "postgres://u:hunter2@h/db?sslmode=require&sslrootcert=system",
            "postgres://u:pa@hunter2@h/db",
            "postgres://u:hunter2@pa@h:1/db",
            "postgres://u:pa?hunter2@h/db",
            "postgres://u:1234?hunter2=@h/db",
            "postgres://a@b:pa?hunter2@h/db",
            "postgres://u:pa/hunter2@x@h/db",
            "postgres://u:hunter2@/db",
            "postgres://u:hunter2@h1,h2/db?hostaddr=127.0.0.1",
        ] {
            let error = format!("{:#} {0:?}", Target::parse(url).expect_err(url));
            assert!(!error.contains("hunter2"), "{error}");
        }
        let target = Target::parse("postgres://u:hunter2@h/db").unwrap();
        let shown = format!("{target:?} {}", target.describe());
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_database_is_described_by_user_hosts_and_name() {
        for (url, described) in [
            ("postgres://u:p@h1:1,h2:2/db?sslmode=require", "postgres://u@h1:1,h2:2/db"),
            ("postgres://u@h", "postgres://u@h:5432/u"),
            ("postgres:///db?host=/run/pg&user=u", "postgres://u@/run/pg/db"),
        ] {
            assert_eq!(Target::parse(url).unwrap().describe(), described);
        }
    }

    #[test]
    fn a_default_password_does_not_replace_that_of_the_url() {
        let password = |url: &str, default: &str| {
            let target = Target::parse(url).unwrap().with_default_password(default);
            target.config.get_password().map(|password| String::from_utf8(password.to_vec()).unwrap())
        };
        assert_eq!(password("postgres://u@h/db", "other").as_deref(), Some("other"));
        assert_eq!(password("postgres://u:own@h/db", "other").as_deref(), Some("own"));
        assert_eq!(password("postgres://u@h/db", ""), None);
    }
}
