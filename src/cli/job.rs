//! What the jobs that work on the tables share: the service over the database, Stripe's API, and an end at any point.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Outcome, serve};
use crate::config::{Config, ConfigError, Options};
use crate::db::connect::Target;
use crate::db::installation;
use crate::dev_postgres::secrets::Home;
use crate::dev_postgres::{PrivatePostgres, RunningPostgres};
use crate::server;
use crate::service::retry::Retries;
pub(super) use crate::service::retry::failure_of_its_own;
use crate::service::{DatabaseState, Service, ServiceError};
use crate::stripe::api::Client;

/// Runs `work` on the service until it ends, or until the process is told to stop: what is in a transaction then is
/// rolled back, and what is committed stays.
pub(super) async fn run(options: &Options, work: impl AsyncFnOnce(Service) -> Outcome) -> Outcome {
    run_with(&options.server()?, options, work).await
}

/// [`run`], with Stripe's API.
pub(super) async fn run_with_stripe(options: &Options, work: impl AsyncFnOnce(Service, Client) -> Outcome) -> Outcome {
    let config = options.server()?;
    let stripe = config.stripe.clone();
    let stripe = stripe.ok_or_else(|| ConfigError::new("STRIPE_SECRET_KEY", "it is needed to ask Stripe"))?;
    run_with(&config, options, async |service| work(service, stripe).await).await
}

/// [`run`], also where the database does not answer or a migration is pending: `work` says so itself.
pub(super) async fn run_unchecked(options: &Options, work: impl AsyncFnOnce(Service) -> Outcome) -> Outcome {
    let signalled = serve::signalled()?;
    let database = Database::open(options).await?;
    let service = server::service(&options.server()?, database.target.clone());
    let result = tokio::select! {
        result = Box::pin(work(service)) => result,
        name = signalled => Err(anyhow::anyhow!("{name}: stopped")),
    };
    database.close().await?;
    result
}

async fn run_with(config: &Config, options: &Options, work: impl AsyncFnOnce(Service) -> Outcome) -> Outcome {
    let signalled = serve::signalled()?;
    let database = Database::open(options).await?;
    installation::check(&database.target).await?;
    let service = server::service(config, database.target.clone());
    // On the heap: futures within futures this deep are more than the compiler lays out.
    let work = Box::pin(ready_then(service, work));
    let result = tokio::select! {
        result = work => result,
        name = signalled => Err(anyhow::anyhow!("{name}: stopped; what is done is kept, run it again for the rest")),
    };
    database.close().await?;
    result
}

async fn ready_then(service: Service, work: impl AsyncFnOnce(Service) -> Outcome) -> Outcome {
    match service.database_state().await {
        // What a dry run reads can be read; what has to be written fails by itself.
        DatabaseState::Ok | DatabaseState::Unwritable => work(service).await,
        DatabaseState::MigrationPending => bail!("a migration is pending; run `subledger migrate` first"),
        DatabaseState::Away => bail!("cannot reach the database"),
    }
}

/// The configured database, else the private one of this folder: that of a running server, or started for the job.
struct Database {
    target: Target,
    own: Option<PrivatePostgres>,
    /// Keeps the way to its socket open.
    _running: Option<RunningPostgres>,
}

impl Database {
    async fn open(options: &Options) -> Result<Self> {
        if let Some(target) = options.database()? {
            return Ok(Self { target, own: None, _running: None });
        }
        let path = Home::at(Path::new(".")).path().to_owned();
        let Some(running) = RunningPostgres::find(&path)? else {
            let problem = "it is needed, since no server keeps a database in this folder";
            return Err(ConfigError::new("DATABASE_URL", problem).into());
        };
        let schema = options.schema()?;
        let target = Target::parse(&running.url()?)?.in_schema(schema.clone());
        if target.connect().await.is_ok() {
            return Ok(Self { target, own: None, _running: Some(running) });
        }
        let own = tokio::task::spawn_blocking(move || PrivatePostgres::start(&path)).await??;
        Ok(Self { target: Target::parse(&own.url())?.in_schema(schema), own: Some(own), _running: None })
    }

    async fn close(self) -> Result<()> {
        if let Some(own) = self.own {
            tokio::task::spawn_blocking(move || own.stop()).await??;
        }
        Ok(())
    }
}

/// [`crate::service::retry::with_retries`], for closures that borrow.
pub(super) async fn with_retries<T>(mut work: impl AsyncFnMut() -> Result<T, ServiceError>) -> Result<T, ServiceError> {
    let mut retries = Retries::default();
    loop {
        match Box::pin(work()).await {
            Ok(done) => return Ok(done),
            Err(error) => retries.wait_after(error).await?,
        }
    }
}

/// An id of a connected account.
pub(super) fn connect_account(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("acct_").unwrap_or("");
    let is_one = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_one { Ok(text.to_owned()) } else { Err("it is no id of a connected account (acct_…)".to_owned()) }
}
