//! The commands that work on the tables, run as the real binary on a test's database.

use std::process::{Child, Command, Stdio};

use super::binary::{self, text};
use super::{StripeApi, TestApp};

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The command, on the database of `app` and, where there is one, with the stand-in for Stripe.
pub fn command(app: &TestApp, stripe: Option<&StripeApi>, args: &[&str]) -> Command {
    let mut command = binary::subledger(&std::env::temp_dir());
    command.args(args).env("DATABASE_URL", app.database.url()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(stripe) = stripe {
        command.env("STRIPE_API_BASE", stripe.base().as_str()).env("STRIPE_SECRET_KEY", "sk_test_key");
    }
    command
}

/// Runs the command to its end.
pub async fn run(app: &TestApp, stripe: Option<&StripeApi>, args: &[&str]) -> Ran {
    wait(command(app, stripe, args).spawn().unwrap()).await
}

pub async fn wait(child: Child) -> Ran {
    // The stand-in that it asks runs on this runtime.
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

impl Ran {
    /// The lines of the result that begin with `prefix`.
    pub fn lines(&self, prefix: &str) -> Vec<&str> {
        self.out.lines().filter(|line| line.starts_with(prefix)).collect()
    }

    #[track_caller]
    pub fn ends_with(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
    }
}
