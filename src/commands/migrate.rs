//! `migrate`: runs pending migrations.

use anyhow::Context;

use super::Outcome;
use crate::config::Options;
use crate::db::migrations;

/// Migrates the database of `DATABASE_URL`.
pub(super) async fn run(options: &Options) -> Outcome {
    let database = options.database()?.context("DATABASE_URL: it is needed to migrate a database")?;
    let ran = migrations::run(&database).await?;
    if ran.is_empty() {
        println!("nothing to do: no migration is pending");
    }
    for name in ran {
        println!("ran {name}");
    }
    Ok(())
}
