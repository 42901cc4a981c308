//! The command line. Each command is a file; none of them writes to the database but through the service layer
//! (`simulate` gives an account a local trial, as an application does).

mod changes;
mod doctor;
mod duration;
mod erase;
mod grants;
mod health;
mod import;
mod job;
mod migrate;
mod progress;
mod prune;
mod reconcile;
mod replay;
mod samples;
mod send;
mod serve;
mod setup;
pub(crate) mod target;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use log::Level;
use rustls::crypto::ring;

use crate::config::{ConfigError, LogFormat, Options, environment_wants_json};
use crate::logging;

/// Keeps an application's subscription table exactly in step with Stripe.
#[derive(Debug, Parser)]
#[command(version, about, subcommand_precedence_over_arg = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Migrate, then serve (what `subledger` alone does)
    Serve,
    /// Run pending migrations; needs only DATABASE_URL
    Migrate,
    /// Print or run the SQL that gives the application's role and the server's what they need, and no more
    Grants(grants::Grants),
    /// Create the webhook endpoint at Stripe, or bring it up to date (needs STRIPE_SECRET_KEY)
    Setup(setup::Setup),
    /// Say what is wrong between Stripe, this deployment and the database; exits 1 if anything is
    Doctor,
    /// Sign a sample or your own event and post it
    Send(send::Send),
    /// Read Stripe's event list and apply what never arrived; report drift (needs STRIPE_SECRET_KEY)
    Reconcile(reconcile::Reconcile),
    /// First fill: every subscription that Stripe has (needs STRIPE_SECRET_KEY)
    Import(import::Import),
    /// Apply events again from what is stored
    Replay(replay::Replay),
    /// Deliver changes of subscriptions to CHANGES_URL again
    Changes(changes::Changes),
    /// Delete idempotency rows, failures and changes that are old; parked events and last changes stay
    Prune(prune::Prune),
    /// Remove a customer's personal data from everything that is stored
    Erase(erase::Erase),
    /// Ask a running server whether it serves; ends with 0 or 1 (for a container's health check)
    Health(health::Health),
    /// Send whole subscription lives, shuffled, duplicated and in parallel, and compare the tables with the truth
    Simulate(crate::simulate::Simulate),
}

/// The result of a command: exit code 0 if it is done, 1 if something failed, 2 for wrong usage.
pub(crate) type Outcome = Result<(), anyhow::Error>;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error),
    };
    // A bad LOG_FORMAT is itself reported as text.
    let format = cli.options.log_format().unwrap_or(LogFormat::Text);
    let outcome = start_logging(&cli.options).and_then(|()| run(cli));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match format {
                LogFormat::Text => eprintln!("subledger: {error:#}"),
                LogFormat::Json => logging::write_unfiltered(format, Level::Error, format!("{error:#}")),
            }
            ExitCode::from(if error.is::<ConfigError>() { 2 } else { 1 })
        }
    }
}

fn usage_error(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nothing can be done about a terminal that takes no text.
        error.print().ok();
        return ExitCode::SUCCESS;
    }
    if environment_wants_json() {
        logging::write_unfiltered(LogFormat::Json, Level::Error, error.render());
    } else {
        error.print().ok();
    }
    ExitCode::from(2)
}

fn start_logging(options: &Options) -> Outcome {
    logging::init(options.log_format()?, options.log_filter()?);
    Ok(())
}

fn run(cli: Cli) -> Outcome {
    // Fails where one is installed already, which then serves.
    ring::default_provider().install_default().ok();
    // One thread for all that waits for the database: what is handed on between tasks need not wake another.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        match cli.command.unwrap_or(Command::Serve) {
            Command::Serve => serve::run(&cli.options).await,
            Command::Migrate => migrate::run(&cli.options).await,
            Command::Grants(grants) => grants.run(&cli.options).await,
            Command::Setup(setup) => setup.run(&cli.options).await,
            Command::Doctor => doctor::run(&cli.options).await,
            Command::Send(send) => send.run(&cli.options).await,
            Command::Reconcile(reconcile) => reconcile.run(&cli.options).await,
            Command::Import(import) => import.run(&cli.options).await,
            Command::Replay(replay) => replay.run(&cli.options).await,
            Command::Changes(changes) => changes.run(&cli.options).await,
            Command::Prune(prune) => prune.run(&cli.options).await,
            Command::Erase(erase) => erase.run(&cli.options).await,
            Command::Health(health) => health.run(&cli.options).await,
            Command::Simulate(simulate) => simulate.run(&cli.options).await,
        }
    })
}
