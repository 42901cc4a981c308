//! subledger keeps an application's `subscriptions` table exactly in step with Stripe.
//!
//! The modules, in the order in which an event passes them. Imports point only that way:
//!
//! 1. [`http`] takes the request, bounds its body, and puts every answer into words.
//! 2. [`stripe::signature`] turns signed bytes into [`stripe::signature::Verified`] ones; nothing else can.
//! 3. [`stripe`] reads what Stripe says: events, subscriptions of every API version, its API.
//! 4. [`service`] runs the transaction, for most events of one statement each, that holds the idempotency row and the change.
//! 5. [`handlers`] change rows for one event; they neither commit nor call the network.
//! 6. [`handlers::ordering`] decides which of two states is newer; pure.
//! 7. [`db`] holds one query per function, the pool, and the migrations.
//!
//! Around them: [`config`] reads the environment, [`server`] starts and stops the server, [`cli`] holds the commands of
//! the command line, [`logging`] writes the log, [`metrics`] counts. Where nothing is configured,
//! [`dev_postgres`] keeps the secrets and runs a private PostgreSQL.

pub mod cli;
pub mod config;
pub mod db;
pub mod dev_postgres;
pub mod duration;
pub mod handlers;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod secret;
pub mod server;
pub mod service;
mod simulate;
pub mod stripe;
