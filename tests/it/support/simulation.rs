//! `subledger simulate`, and the server that it is aimed at, as the real binary.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use super::app::{ADMIN_TOKEN, WEBHOOK_SECRET};
use super::binary::{Server, subledger};
use super::job::{self, Ran};

/// The binary, configured for a database.
fn configured(database_url: &str) -> Command {
    let mut command = subledger(&std::env::temp_dir());
    command.env("DATABASE_URL", database_url).env("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET);
    command.env("ADMIN_TOKEN", ADMIN_TOKEN);
    command
}

/// A server on a database.
pub fn serve(database_url: &str) -> Server {
    Server::start(&mut configured(database_url))
}

/// The same, which calls the stand-in for Stripe's API that `simulate --stripe-api` serves at `stripe`.
pub fn serve_with_stripe(database_url: &str, stripe: SocketAddr, further: &[(&str, &str)]) -> Server {
    let mut command = configured(database_url);
    command.env("STRIPE_API_BASE", format!("http://{stripe}")).env("STRIPE_SECRET_KEY", "sk_test_key");
    command.env("STRIPE_READS_PER_SECOND", "5000").env("RECONCILE_EVERY", "off");
    Server::start(command.envs(further.iter().copied()))
}

/// An address of this machine at which nothing listens.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Begins to send lives to `address` (host and port), each delivery for up to a minute, and to compare with
/// `database_url` at the end.
pub fn spawn(address: &str, database_url: &str, customers: u32, parallel: u32, further: &[&str]) -> Child {
    let mut command = configured(database_url);
    command.args(["simulate", "--customers", &customers.to_string(), "--parallel", &parallel.to_string()]);
    command.args(["--give-up-after", "60", "--url", &format!("http://{address}/api/v1/webhooks/stripe")]);
    command.args(further).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The same, to its end.
pub async fn simulate(address: &str, database_url: &str, customers: u32) -> Ran {
    job::wait(spawn(address, database_url, customers, 8, &["--seed", "1"])).await
}

/// The ids of the events that the server has answered with 200, by its log.
pub fn acknowledged(log: &[String]) -> Vec<&str> {
    let told = log.iter().filter(|line| line.contains("outcome=") || line.contains("\"outcome\""));
    told.filter_map(|line| line.split("event_id=").nth(1)?.split(' ').next()).collect()
}
