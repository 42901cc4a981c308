//! `changes retry`: starts the push of changes over. A running server does the pushing.

use super::{Outcome, job};
use crate::config::Options;

/// What to do about changes.
#[derive(clap::Args, Debug)]
pub(super) struct Changes {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Try what failed again at once, rather than after its pause
    Retry {
        /// Deliver every change from this id on again
        #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
        from: Option<i64>,
    },
}

impl Changes {
    /// Sets the state of the push; the running server finds it within a second.
    pub(super) async fn run(&self, options: &Options) -> Outcome {
        let Action::Retry { from } = self.action;
        job::run(options, async |service| {
            job::with_retries(async || service.retry_changes(from).await).await?;
            match from {
                Some(id) => println!("the changes from {id} on will be delivered again"),
                None => println!("the changes that are pending will be tried again"),
            }
            Ok(())
        })
        .await
    }
}
