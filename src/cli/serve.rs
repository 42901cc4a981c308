//! `serve`: migrates, then serves until SIGTERM or SIGINT.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::Outcome;
use crate::config::{Config, ConfigError, Options};
use crate::db::connect::Target;
use crate::db::schema_name::SchemaName;
use crate::dev_postgres::PrivatePostgres;
use crate::dev_postgres::secrets::Home;
use crate::http::WEBHOOK_PATH;
use crate::server::Application;

/// Runs the server, with a private database where none is configured.
pub(super) async fn run(options: &Options) -> Outcome {
    let config = options.server()?;
    match options.database()? {
        Some(database) => {
            if config.webhook_secrets.is_empty() {
                return Err(ConfigError::new("STRIPE_WEBHOOK_SECRET", "it is required with DATABASE_URL").into());
            }
            serve(config, database).await
        }
        None => serve_privately(config, options.schema()?).await,
    }
}

async fn serve(config: Config, database: Target) -> Outcome {
    let mut stop = Box::pin(stop_signal()?);
    let app = tokio::select! {
        app = Application::build(config, database) => app?,
        () = &mut stop => return Ok(()),
    };
    log::info!("listening on http://{}", app.address());
    app.run_until_stopped(stop).await
}

async fn serve_privately(mut config: Config, schema: Option<SchemaName>) -> Outcome {
    let stop = stop_signal()?;
    let home = Home::at(Path::new("."));
    home.create().context("DATABASE_URL is not set, and a private PostgreSQL has no place here")?;
    let path = home.path().to_owned();
    let postgres = tokio::task::spawn_blocking(move || PrivatePostgres::start(&path)).await??;
    if config.webhook_secrets.is_empty() {
        config.webhook_secrets.push(home.webhook_secret_or_new()?);
    }
    if config.admin_token.is_none() {
        config.admin_token = Some(home.admin_token_or_new()?);
    }
    let database = Target::parse(&postgres.url())?.in_schema(schema);
    let app = Application::build(config, database).await?;
    log::info!("listening on http://{}", app.address());
    print_next_steps(&app, &home, &postgres.url());
    let result = app.run_until_stopped(stop).await;
    tokio::task::spawn_blocking(move || postgres.stop()).await??;
    result
}

fn print_next_steps(app: &Application, home: &Home, database_url: &str) {
    let address = app.address();
    let program = std::env::args().next().unwrap_or_else(|| "subledger".to_owned());
    let steps = format!(
        "
subledger runs with a private PostgreSQL in {home}. In another terminal, in this folder:

  see the main job at work      {program} send customer.subscription.created --link --url http://{address}{WEBHOOK_PATH}
  read the table                psql '{database_url}' -c 'SELECT * FROM subscriptions'
  ask as an admin               curl -H \"Authorization: Bearer $(cat {token})\" http://{address}/events
  look at the page              http://{address}/admin (log in with what is in {token})
  have Stripe's events          stripe listen --forward-to {address}{WEBHOOK_PATH}
                                (then start again with STRIPE_WEBHOOK_SECRET set to the secret that it prints)
",
        home = home.path().display(),
        token = home.admin_token_path().display(),
    );
    // The server serves also where nobody reads this.
    writeln!(std::io::stdout(), "{steps}").ok();
}

/// Ends when the process is told to stop. Listens from the moment it is made.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let signalled = signalled()?;
    Ok(async move {
        let name = signalled.await;
        log::info!("{name}: finishing what is under way");
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
