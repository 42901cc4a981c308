//! The hosts of a `DATABASE_URL`, tried one after the other as libpq does. It knows nothing of sessions.
//!
//! tokio-postgres tries several hosts by itself, but bounds the opening of the socket alone: one that takes the
//! connection and then says nothing, as a frozen machine does, would be waited for without end, and no other tried.

use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use diesel::result::{ConnectionError, ConnectionResult};
use rand::seq::SliceRandom;
use tokio::time::timeout;
use tokio_postgres::config::{Host, LoadBalanceHosts, SslMode};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long one host may take until it has let us in, where `connect_timeout` does not say.
const LET_IN_LIMIT: Duration = Duration::from_secs(5);

/// A client, and the connection that has to be polled for it.
pub(super) type Connected = (Client, Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>);

/// One host of the configuration.
struct Candidate {
    host: Option<Host>,
    address: Option<IpAddr>,
    port: u16,
}

/// Opens a connection to the first host that lets us in and is as `target_session_attrs` wants it.
///
/// # Errors
/// Where none is: one line that names each host and its reason.
pub(super) async fn connect(
    config: &Config,
    limit: Option<Duration>,
    tls: &MakeRustlsConnect,
) -> ConnectionResult<Connected> {
    let mut problems = Vec::new();
    for candidate in candidates(config).map_err(ConnectionError::BadConnection)? {
        for config in candidate.configs(config, &mut problems).await {
            match timeout(limit.unwrap_or(LET_IN_LIMIT), config.connect(tls.clone())).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(error)) => problems.push(candidate.problem(chain(&error))),
                Err(_) => problems.push(candidate.problem("no answer in time")),
            }
        }
    }
    // A name with several addresses may have one problem with all of them.
    problems.dedup();
    Err(ConnectionError::BadConnection(problems.join("; ")))
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
            None => {}
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
