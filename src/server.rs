//! The server as a whole: built, then run until it is told to stop.

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Server;
use actix_web::middleware::from_fn;
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use anyhow::{Context, Result, bail};
use tokio::runtime::Handle;

use crate::config::Config;
use crate::db::connect::Target;
use crate::db::{migrations, pool};
use crate::descriptors;
use crate::http::{self, Budget, State};
use crate::metrics::Metrics;
use crate::service::{Parts, Service};

/// The most that requests under way get to finish once the server is told to stop, in seconds.
const STOP_LIMIT_SECS: u64 = 30;

/// How long a request's head may take to arrive.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// How many connections may wait to be accepted: a sender whose burst is larger tries again a second later.
const BACKLOG: u32 = 1_024;

/// How many bodies of the largest size may be in memory at once.
const LARGEST_BODIES: usize = 32;

/// A server that is bound to its address.
pub struct Application {
    server: Server,
    address: SocketAddr,
}

impl std::fmt::Debug for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Application").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The service over `database`, as it is configured. All its work will run on the runtime that this is called on.
pub fn service(config: &Config, database: Target) -> Service {
    let metrics = Arc::<Metrics>::default();
    if let Some(stripe) = &config.stripe {
        let metrics = metrics.clone();
        stripe.observe(move |outcome| metrics.stripe_request(outcome));
    }
    Service::new(Parts {
        pool: pool::build(database, config.pool_size, config.pool_timeout),
        turn_timeout: config.pool_timeout,
        stripe: config.stripe.clone(),
        plans: config.plans.clone(),
        entitled_statuses: config.entitled_statuses.clone(),
        metrics,
        runtime: Handle::current(),
    })
}

impl Application {
    /// Migrates the database and binds the address. All database work will run on the runtime that this is called on.
    ///
    /// # Errors
    /// Where the database is out of reach, a migration fails, or the address is taken.
    pub async fn build(config: Config, database: Target) -> Result<Self> {
        let ran = migrations::run(&database).await?;
        if !ran.is_empty() {
            log::info!("ran migrations: {}", ran.join(", "));
        }
        let service = service(&config, database);
        service.remember_last_event().await.context("cannot read when the last event came")?;
        let state = Data::new(State {
            service,
            webhook_secrets: config.webhook_secrets,
            tolerance_secs: config.tolerance_secs,
            admin_token: config.admin_token,
            body_limit: config.body_limit,
            body_budget: Budget::of(config.body_limit.saturating_mul(LARGEST_BODIES)),
            body_timeout: config.body_timeout,
        });
        let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        let connections = descriptors::connections(config.pool_size);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(state.clone())
                .wrap(from_fn(http::assign))
                .wrap(from_fn(http::mark_busy))
                .configure(http::routes)
        })
        .workers(workers)
        .backlog(BACKLOG)
        .max_connections(connections.div_ceil(workers))
        .client_request_timeout(HEAD_LIMIT)
        .keep_alive(config.keep_alive)
        .on_connect(http::on_connect(config.keep_alive + HEAD_LIMIT))
        .disable_signals()
        .shutdown_timeout(STOP_LIMIT_SECS)
        .bind(config.bind_addr)
        .with_context(|| format!("BIND_ADDR: cannot listen on {}", config.bind_addr))?;
        let address = *server.addrs().first().context("the server listens nowhere")?;
        Ok(Self { server: server.run(), address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port on which it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Serves until `stop` ends; then takes no more connections and finishes what is under way.
    ///
    /// # Errors
    /// Where the server itself fails.
    pub async fn run_until_stopped(self, stop: impl Future<Output = ()>) -> Result<()> {
        let handle = self.server.handle();
        let mut server = tokio::spawn(self.server);
        tokio::select! {
            // Not told to, and so a failure also where it ends without an error.
            ended = &mut server => {
                ended.context("the server died")?.context("the server failed")?;
                bail!("the server ended by itself");
            }
            () = stop => handle.stop(true).await,
        }
        server.await.context("the server died")?.context("the server failed")
    }
}
