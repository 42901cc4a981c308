//! `migrate`: runs pending migrations.

use super::Outcome;
use crate::config::{ConfigError, Options};
use crate::db::migrations;

/// Migrates the database of `DATABASE_URL`.
pub(super) async fn run(options: &Options) -> Outcome {
    let database = options.database()?.ok_or_else(|| ConfigError::new("DATABASE_URL", "it is needed to migrate"))?;
    let ran = migrations::run(&database).await?;
    if ran.is_empty() {
        println!("nothing to do: no migration is pending");
    }
    for name in ran {
        println!("ran {name}");
    }
    Ok(())
}
