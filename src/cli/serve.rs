//! `serve`: migrates, then serves until SIGTERM or SIGINT.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use log::Level;
use tokio::signal::unix::{SignalKind, signal};

use super::Outcome;
use crate::config::{Config, ConfigError, LogFormat, Options};
use crate::db::connect::Target;
use crate::db::schema_name::SchemaName;
use crate::dev_postgres::PrivatePostgres;
use crate::dev_postgres::secrets::Home;
use crate::http::WEBHOOK_PATH;
use crate::logging;
use crate::server::Application;
use crate::stripe::handled_types;

/// Runs the server, with a private database if none is configured.
pub(super) async fn run(options: &Options) -> Outcome {
    let config = options.server()?;
    match options.database()? {
        Some(database) => {
            if config.webhook_secrets.is_empty() {
                return Err(ConfigError::new("STRIPE_WEBHOOK_SECRET", "it is required with DATABASE_URL").into());
            }
            serve(options, config, database).await
        }
        None => serve_privately(options, config, options.schema()?).await,
    }
}

async fn serve(options: &Options, config: Config, database: Target) -> Outcome {
    let mut stop = Box::pin(stop_signal()?);
    let summary = Summary::of(&config, &database);
    let app = tokio::select! {
        app = Application::build(config, database) => app?,
        () = &mut stop => return Ok(()),
    };
    announce(options, &app, &summary)?;
    app.run_until_stopped(stop).await
}

async fn serve_privately(options: &Options, mut config: Config, schema: Option<SchemaName>) -> Outcome {
    let stop = stop_signal()?;
    let home = Home::at(Path::new("."));
    home.create().context("DATABASE_URL is not set, and a private PostgreSQL has no place here")?;
    let path = home.path().to_owned();
    let postgres = tokio::task::spawn_blocking(move || PrivatePostgres::start(&path)).await??;
    home.keep_configured(config.webhook_secrets.first(), config.admin_token.as_ref())?;
    if config.webhook_secrets.is_empty() {
        config.webhook_secrets.push(home.webhook_secret_or_new()?);
    }
    if config.admin_token.is_none() {
        config.admin_token = Some(home.admin_token_or_new()?);
    }
    let url = postgres.url();
    let folder = postgres.dir().display().to_string();
    let mut postgres = postgres.supervise();
    let database = Target::parse(&url)?.in_schema(schema);
    let summary = Summary::of(&config, &database);
    let app = Application::build(config, database).await?;
    log::warn!(
        "DATABASE_URL is not set: events are stored in a private PostgreSQL in {folder}, which is for trials, not for production"
    );
    announce(options, &app, &summary)?;
    show_next_steps(options.log_format()?, &app, &home, &url);
    let result = app
        .run_until_stopped(async {
            tokio::select! {
                () = stop => {}
                () = postgres.given_up() => {}
            }
        })
        .await;
    let stopped = postgres.stop().await;
    result.and(stopped)
}

/// What an operator wants to see at the start of the log.
struct Summary {
    database: String,
    mode: String,
    stripe: String,
    admin: &'static str,
}

impl Summary {
    fn of(config: &Config, database: &Target) -> Self {
        let stripe = config.stripe.as_ref().map_or("not called", |stripe| stripe.host());
        Self {
            database: database.describe(),
            mode: config.mode.to_string(),
            stripe: stripe.to_owned(),
            admin: if config.admin_token.is_some() { "token" } else { "none" },
        }
    }
}

/// Logs the warnings about the configuration, the summary, and the address.
fn announce(options: &Options, app: &Application, summary: &Summary) -> Outcome {
    if let Some(warning) = options.filter_warning() {
        // The filter that the warning is about would suppress it.
        logging::write_unfiltered(options.log_format()?, Level::Warn, warning);
    }
    for warning in options.warnings()? {
        log::warn!("{warning}");
    }
    let Summary { database, mode, stripe, admin } = summary;
    let version = env!("CARGO_PKG_VERSION");
    log::info!(version, database, mode, stripe, admin; "started");
    log::info!("listening on http://{}", app.address());
    Ok(())
}

/// Says how to try the server: to people on standard output, into a JSON log as one entry.
fn show_next_steps(format: LogFormat, app: &Application, home: &Home, database_url: &str) {
    let address = app.address();
    let program = std::env::args().next().unwrap_or_else(|| "subledger".to_owned());
    let (folder, token) = (home.path().display(), home.admin_token_path().display().to_string());
    let send = format!("{program} send customer.subscription.created --link --url http://{address}{WEBHOOK_PATH}");
    let query = format!("psql '{database_url}' -c 'SELECT * FROM subscriptions'");
    let ask = format!("curl -H \"Authorization: Bearer $(cat {token})\" http://{address}/events");
    let listen = format!(
        "stripe listen --events {} --forward-to {address}{WEBHOOK_PATH}",
        handled_types().collect::<Vec<_>>().join(",")
    );
    if format == LogFormat::Json {
        log::info!(send, query, ask, listen; "how to try the server");
        return;
    }
    let steps = format!(
        "
subledger runs with a private PostgreSQL in {folder}. In another terminal, in this folder:

  send an event and see the result  {send}
  read the table                    {query}
  list the events as an admin       {ask}
  open the page for people          http://{address}/admin (log in with the token in {token})
  forward Stripe's events           {listen}
                                    (then restart subledger with STRIPE_WEBHOOK_SECRET set to the secret that it prints)
"
    );
    // The server also runs without a reader of its standard output.
    writeln!(std::io::stdout(), "{steps}").ok();
}

/// Ends when the process is told to stop. Listens from the moment it is made.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let signalled = signalled()?;
    Ok(async move {
        let name = signalled.await;
        log::info!("{name}: finishing the requests that are under way");
    })
}

/// Ends at SIGTERM or SIGINT with the signal's name. Listens from the moment it is made.
pub(super) fn signalled() -> Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}
