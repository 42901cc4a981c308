//! `grants`: the privileges of the application's role and of the role that serves.

use clap::Args;

use super::Outcome;
use crate::config::{ConfigError, Options};
use crate::db::grants::{self, Roles};
use crate::db::schema_name::identifier;

/// The roles, and whether the statements are run.
#[derive(Args, Debug)]
#[group(id = "roles", required = true, multiple = true, args = ["app_role", "server_role"])]
pub(super) struct Grants {
    /// The application's role: it reads the tables, and writes accounts and local subscriptions
    #[arg(long, value_name = "NAME")]
    app_role: Option<String>,
    /// The role that subledger serves as, if another one runs the migrations
    #[arg(long, value_name = "NAME")]
    server_role: Option<String>,
    /// Run the SQL instead of printing it
    #[arg(long)]
    apply: bool,
}

impl Grants {
    /// Prints or runs the statements.
    pub(super) async fn run(self, options: &Options) -> Outcome {
        let database =
            options.database()?.ok_or_else(|| ConfigError::new("DATABASE_URL", "it is needed to grant anything"))?;
        let roles = Roles { app: self.app_role, server: self.server_role };
        let statements = grants::statements(&database, &roles).await?;
        if self.apply {
            grants::apply(&database, &statements).await?;
            for role in [roles.app, roles.server].iter().flatten() {
                println!("granted to {}", identifier(role));
            }
            return Ok(());
        }
        println!("BEGIN;");
        for statement in statements {
            println!("{statement};");
        }
        println!("COMMIT;");
        Ok(())
    }
}
