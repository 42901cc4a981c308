//! `DATABASE_URL` and what is done with it: parsing, TLS, and the session settings of every connection.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use diesel::QueryResult;
use diesel::result::{ConnectionError, ConnectionResult};
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection};
use tokio_postgres::Client;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::hosts::{self, chain};
use super::schema_name::{SchemaName, literal};
use super::tls::{self, Verification};

/// Bounds on every session, so that nothing that hangs holds a connection, a lock or a transaction for long. And no
/// compiling of queries: none of ours runs long enough to earn the tenth of a second that it takes.
///
/// What locks promise rests on READ COMMITTED: a statement that has waited for a lock must see what was committed
/// meanwhile. So it is asked for, whatever the database's own default is.
const SESSION_SETTINGS: &str = "
    SET default_transaction_isolation = 'read committed';
    SET statement_timeout = '10s';
    SET lock_timeout = '5s';
    SET jit = off;
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
                _ => kept.push(pair),
            }
        }
        let mut config: tokio_postgres::Config =
            format!("{base}?{}", kept.join("&")).parse().map_err(without_secrets)?;
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

    /// Opens a connection and puts its session in order.
    ///
    /// # Errors
    /// Where no host can be reached, or refuses, or does not say enough in time.
    pub async fn connect(&self) -> ConnectionResult<AsyncPgConnection> {
        self.session(&[SESSION_SETTINGS, &self.search_path()], &OPTIONAL_SETTINGS).await
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
        self.session(&[NO_LIMITS, &self.search_path()], &[]).await
    }

    /// Opens a connection without time limits and without diesel, whose errors carry no SQLSTATE: for migrations.
    ///
    /// # Errors
    /// Where no host can be reached, or refuses.
    pub async fn connect_plainly(&self) -> Result<Client> {
        let (client, connection) = hosts::connect(&self.config, self.limit, &self.tls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("a connection to the database ended: {}", chain(&error));
            }
        });
        client.batch_execute(NO_LIMITS).await.map_err(without_secrets)?;
        client.batch_execute(&self.search_path()).await.map_err(without_secrets)?;
        Ok(client)
    }

    async fn session(&self, settings: &[&str], optional: &[&str]) -> ConnectionResult<AsyncPgConnection> {
        let (client, connection) = hosts::connect(&self.config, self.limit, &self.tls).await?;
        let mut conn = AsyncPgConnection::try_from_client_and_connection(client, connection).await?;
        tokio::time::timeout(SETUP_LIMIT, set_up(&mut conn, &settings.join(";"), optional))
            .await
            .map_err(|_| ConnectionError::BadConnection("the server does not answer".to_owned()))?
            .map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(conn)
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
        ] {
            let error = format!("{:#} {0:?}", Target::parse(url).expect_err(url));
            assert!(!error.contains("hunter2"), "{error}");
        }
        let shown = format!("{:?}", Target::parse("postgres://u:hunter2@h/db").unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
