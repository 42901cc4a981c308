//! The server as a whole: built, then run until it is told to stop.

use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::middleware::from_fn;
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use anyhow::{Context, Result, bail};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::db::connect::Target;
use crate::db::pool::Pool;
use crate::db::{installation, migrations};
use crate::handlers::{Handlers, Policy};
use crate::http::limits::{self, Budget, Connections, ParsingBudget};
use crate::http::{self, State};
use crate::metrics::Metrics;
use crate::service::retry::with_retries;
use crate::service::{Parts, Reconciler, Service};

/// The most that requests under way get to finish once the server is told to stop, in seconds.
const STOP_LIMIT_SECS: u64 = 30;

/// How long the reconciler gets to give up its lease once the server has stopped.
const RECONCILER_STOP_LIMIT: Duration = Duration::from_secs(3);

/// How long a request's head may take to arrive.
const HEAD_LIMIT: Duration = Duration::from_secs(5);

/// How many connections may wait to be accepted: a sender whose burst is larger tries again a second later.
const BACKLOG: u32 = 1_024;

/// How many bodies of the largest size may be in memory at once; one peer may have half of them.
const LARGEST_BODIES: usize = 64;

/// How many events of the largest size may be parsed at once.
const LARGEST_PARSED: usize = 4;

/// A server that is bound to its address.
pub struct Application {
    server: Server,
    address: SocketAddr,
    background: Background,
}

/// What runs beside the requests. Dropped, it is told to stop.
struct Background {
    service: Service,
    tasks: JoinSet<()>,
}

impl Background {
    fn start(service: &Service, database: Target) -> Self {
        let mut tasks = JoinSet::new();
        let (watcher, pusher) = (service.clone(), service.clone());
        tasks.spawn(async move { watcher.watch_changes().await });
        tasks.spawn(async move { pusher.push_changes(database).await });
        Self { service: service.clone(), tasks }
    }

    /// Ends once everything has stopped.
    async fn stop(mut self) {
        self.service.close_changes();
        while self.tasks.join_next().await.is_some() {}
    }
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
        pool: Pool::new(database, config.pool_size, config.pool_timeout),
        pool_size: config.pool_size,
        queue_timeout: config.pool_timeout,
        stripe: config.stripe.clone(),
        policy: Policy {
            plans: config.plans.clone(),
            mode: config.mode,
            trust: config.trust.clone(),
            entitlement: config.entitlement.clone(),
        },
        handlers: Arc::new(Handlers),
        push: config.push.clone(),
        reconcile_every: config.reconcile_every,
        stored_payloads: config.stored_payloads,
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
        installation::check(&database).await?;
        let service = service(&config, database.clone());
        service.start_sweep();
        let last_event = with_retries(|| service.remember_last_event());
        last_event.await.context("cannot read when the last event came")?;
        // A database that takes no writes just now is no reason not to start; /health says so.
        if let Err(error) = service.publish_entitlement_settings().await {
            log::error!(
                "cannot write the settings of account_entitlements, so that it keeps those it had: {}",
                error.chain()
            );
        }
        service.start_filling_columns();
        let background = Background::start(&service, database);
        let state = Data::new(State {
            service: service.clone(),
            webhook_secrets: config.webhook_secrets,
            tolerance_secs: config.tolerance_secs,
            admin_token: config.admin_token,
            body_limit: config.body_limit,
            body_budget: Budget::of(config.body_limit.saturating_mul(LARGEST_BODIES)),
            parsing_budget: ParsingBudget::of(config.body_limit.saturating_mul(LARGEST_PARSED), config.body_timeout),
            body_timeout: config.body_timeout,
        });
        let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        let max_connections = limits::max_connections(config.pool_size);
        let connections = Connections::new(max_connections);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(state.clone())
                .wrap(from_fn(http::assign))
                .wrap(from_fn(limits::mark_busy))
                .configure(http::routes)
        })
        .workers(workers)
        .backlog(BACKLOG)
        .max_connections(max_connections.div_ceil(workers))
        .client_request_timeout(HEAD_LIMIT)
        .keep_alive(config.keep_alive)
        .on_connect(connections.on_connect(config.keep_alive + HEAD_LIMIT))
        .disable_signals()
        .shutdown_timeout(STOP_LIMIT_SECS)
        .bind(config.bind_addr)
        .with_context(|| format!("BIND_ADDR: cannot listen on {}", config.bind_addr))?;
        let address = *server.addrs().first().context("the server listens nowhere")?;
        Ok(Self { server: server.run(), address, background })
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
        let (stop_reconciler, stopped) = oneshot::channel::<()>();
        let service = self.background.service.clone();
        let reconciler = Reconciler::new(service.clone()).run(async {
            stopped.await.ok();
        });
        let reconciler = tokio::spawn(reconciler);
        // End with this function: dropping the set aborts them.
        let mut jobs = JoinSet::new();
        jobs.spawn(service.clone().backfill());
        jobs.spawn(async move { service.watch_stripe(http::WEBHOOK_PATH).await });
        let result = Self::serve(self.server, handle, &self.background.service, stop).await;
        self.background.stop().await;
        // The reconciler gives up its lease. It ends by itself also where nobody listens any more.
        stop_reconciler.send(()).ok();
        tokio::time::timeout(RECONCILER_STOP_LIMIT, reconciler).await.ok();
        result
    }

    async fn serve(
        server: Server,
        handle: ServerHandle,
        service: &Service,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let mut server = tokio::spawn(server);
        tokio::select! {
            // Not told to, and so a failure also where it ends without an error.
            ended = &mut server => {
                ended.context("the server died")?.context("the server failed")?;
                bail!("the server ended by itself");
            }
            () = stop => {
                // Streams of changes would otherwise be waited for.
                service.close_changes();
                handle.stop(true).await;
            }
        }
        server.await.context("the server died")?.context("the server failed")
    }
}
