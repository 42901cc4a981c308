//! The hosts of a `DATABASE_URL`, tried one after the other as libpq does. It knows nothing of sessions.
//!
//! tokio-postgres tries several hosts by itself, but bounds the opening of the socket alone: one that takes the
//! connection and then says nothing, as a frozen machine does, would be waited for without end, and no other tried.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use diesel::result::{ConnectionError, ConnectionResult};
use rand::seq::SliceRandom;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{Client, Config, Connection, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::sqlstate::{Driver, FirstError, PlainText, WatchTls, Watched};

/// How long one host may take until it has let us in, where `connect_timeout` does not say.
const LET_IN_LIMIT: Duration = Duration::from_secs(5);

/// One host of the configuration.
struct Candidate {
    host: Option<Host>,
    address: Option<IpAddr>,
    port: u16,
}

/// Opens a connection to the first host that lets us in and is as `target_session_attrs` wants it. `error` will have the
/// SQLSTATE of the first error of the session.
///
/// # Errors
/// Where none is: one line that names each host and its reason.
pub(super) async fn connect(
    config: &Config,
    limit: Option<Duration>,
    tls: &MakeRustlsConnect,
    error: &FirstError,
) -> ConnectionResult<Opened> {
    let mut problems = Vec::new();
    for candidate in candidates(config).map_err(ConnectionError::BadConnection)? {
        for config in candidate.configs(config, &mut problems).await {
            let opened = open(&config, tls, error);
            match timeout(limit.unwrap_or(LET_IN_LIMIT), opened).await {
                Ok(Ok(opened)) => {
                    // Errors of the start belong to no statement.
                    error.take();
                    return Ok(opened);
                }
                Ok(Err(problem)) => problems.push(candidate.problem(problem)),
                Err(_) => problems.push(candidate.problem("no answer in time")),
            }
        }
    }
    // A name with several addresses may have one problem with all of them.
    problems.dedup();
    Err(ConnectionError::BadConnection(problems.join("; ")))
}

/// A connection, and the task that drives it.
pub(super) type Opened = (Client, Driver);

/// Opens a connection to one host, with or without TLS.
async fn open(config: &Config, tls: &MakeRustlsConnect, error: &FirstError) -> Result<Opened, String> {
    if let [Host::Unix(path)] = config.get_hosts() {
        return open_socket(config, path, error).await;
    }
    let encrypted = WatchTls { tls: tls.clone(), error: error.clone() };
    let mut plain_config = config.clone();
    plain_config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    let plain = WatchTls { tls: PlainText, error: error.clone() };
    match config.get_ssl_mode() {
        SslMode::Disable => plain_config.connect(plain).await.map(drive),
        // As libpq does: "first try an SSL connection; if that fails, try a non-SSL connection".
        SslMode::Prefer => match config.clone().ssl_mode(SslMode::Require).connect(encrypted).await {
            Ok(opened) => Ok(drive(opened)),
            Err(_) => plain_config.connect(plain).await.map(drive),
        },
        _ => config.connect(encrypted).await.map(drive),
    }
    .map_err(|error| chain(&error))
}

/// Drives a connection in a task of its own.
fn drive<S, T>((client, connection): (Client, Connection<S, T>)) -> Opened
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: TlsStream + Unpin + Send + 'static,
{
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            log::debug!("a connection to the database ended: {}", chain(&error));
        }
    });
    (client, Driver(driver.abort_handle()))
}

/// Opens a connection over a Unix-domain socket. `tokio_postgres::Config::connect` would not let it be watched.
async fn open_socket(config: &Config, directory: &Path, error: &FirstError) -> Result<Opened, String> {
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let path = directory.join(format!(".s.PGSQL.{port}"));
    let stream = UnixStream::connect(&path).await.map_err(|error| format!("{}: {error}", path.display()))?;
    let opened = config.connect_raw(Watched::new(stream, error.clone()), NoTls).await;
    let (client, driver) = drive(opened.map_err(|error| chain(&error))?);
    let wanted = match config.get_target_session_attrs() {
        TargetSessionAttrs::ReadWrite => Some("off"),
        TargetSessionAttrs::ReadOnly => Some("on"),
        _ => None,
    };
    if let Some(wanted) = wanted {
        let answers = client.simple_query("SHOW transaction_read_only").await.map_err(|error| chain(&error))?;
        let is_wanted =
            answers.iter().any(|answer| matches!(answer, SimpleQueryMessage::Row(row) if row.get(0) == Some(wanted)));
        if !is_wanted {
            return Err("the session is not as target_session_attrs wants it".to_owned());
        }
    }
    Ok((client, driver))
}

/// Whether the configuration names hosts, and as many of them as addresses and ports.
///
/// # Errors
/// What is wrong.
pub(super) fn check(config: &Config) -> Result<(), String> {
    candidates(config).map(drop)
}

fn candidates(config: &Config) -> Result<Vec<Candidate>, String> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    let fits = |length: usize| length == 0 || length == count;
    if count == 0 {
        return Err("no host is named".to_owned());
    }
    if !fits(hosts.len()) || !fits(addresses.len()) || !(fits(ports.len()) || ports.len() == 1) {
        return Err("there are not as many hosts as addresses or ports".to_owned());
    }
    let port = |index| ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
    let candidate = |index| Candidate {
        host: hosts.get(index).cloned(),
        address: addresses.get(index).copied(),
        port: port(index),
    };
    let mut candidates: Vec<_> = (0..count).map(candidate).collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        candidates.shuffle(&mut rand::rng());
    }
    Ok(candidates)
}

impl Candidate {
    /// One configuration for each address that the host's name stands for.
    async fn configs(&self, config: &Config, problems: &mut Vec<String>) -> Vec<Config> {
        match (&self.host, self.address) {
            (Some(Host::Tcp(name)), None) => match tokio::net::lookup_host((name.as_str(), self.port)).await {
                Ok(found) => found.map(|found| self.config(config, Some(found.ip()))).collect(),
                Err(error) => {
                    problems.push(self.problem(error));
                    Vec::new()
                }
            },
            (_, address) => vec![self.config(config, address)],
        }
    }

    /// Everything that `all` says, for this host alone.
    fn config(&self, all: &Config, address: Option<IpAddr>) -> Config {
        let mut config = Config::new();
        config.ssl_mode(all.get_ssl_mode());
        match &self.host {
            Some(Host::Tcp(name)) => drop(config.host(name)),
            // "sslmode is ignored for Unix domain socket communication."
            Some(Host::Unix(path)) => drop(config.host_path(path).ssl_mode(SslMode::Disable)),
            None => drop(address.map(|address| config.host(address.to_string()))),
        }
        address.map(|address| config.hostaddr(address));
        config.port(self.port);
        copy_identity(all, &mut config);
        copy_socket(all, &mut config);
        config
    }

    fn problem(&self, problem: impl Display) -> String {
        let port = self.port;
        match (&self.host, self.address) {
            (Some(Host::Tcp(name)), _) => format!("{name}:{port}: {problem}"),
            (Some(Host::Unix(path)), _) => format!("{}:{port}: {problem}", path.display()),
            (None, Some(address)) => format!("{address}:{port}: {problem}"),
            (None, None) => problem.to_string(),
        }
    }
}

fn copy_identity(from: &Config, to: &mut Config) {
    from.get_user().map(|user| to.user(user));
    from.get_password().map(|password| to.password(password));
    from.get_dbname().map(|name| to.dbname(name));
    from.get_options().map(|options| to.options(options));
    from.get_application_name().map(|name| to.application_name(name));
    to.ssl_negotiation(from.get_ssl_negotiation());
    to.channel_binding(from.get_channel_binding());
    to.target_session_attrs(from.get_target_session_attrs());
}

fn copy_socket(from: &Config, to: &mut Config) {
    from.get_connect_timeout().map(|limit| to.connect_timeout(*limit));
    from.get_tcp_user_timeout().map(|limit| to.tcp_user_timeout(*limit));
    to.keepalives(from.get_keepalives());
    to.keepalives_idle(from.get_keepalives_idle());
    from.get_keepalives_interval().map(|interval| to.keepalives_interval(interval));
    from.get_keepalives_retries().map(|retries| to.keepalives_retries(retries));
}

/// An error with its causes, in one line: tokio-postgres's own words alone are "error connecting to server".
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ").replace('\n', " ")
}
