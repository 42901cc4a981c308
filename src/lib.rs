//! subledger keeps an application's `subscriptions` table exactly in step with Stripe.
//!
//! The modules, in the order in which an event passes them:
//!
//! 1. [`http`] reads the request, bounds its body, and writes the answer.
//! 2. [`stripe::signature`] turns signed bytes into [`stripe::signature::Verified`] ones; nothing else can.
//! 3. [`stripe`] parses events and subscriptions of every API version, and holds the client of Stripe's API.
//! 4. [`service`] queues the event, applies it in a batch with others (`service/group_commit.rs`), and opens the one
//!    transaction that holds the idempotency row and every change: load, decide, write (`service/apply.rs`).
//! 5. [`handlers`] decide: they change rows in memory ([`handlers::Work`]), and neither commit nor call the network.
//!    [`handlers::ordering`] decides which of two states is newer; pure.
//! 6. [`db`] holds one query for each function, the pool, and the migrations.
//!
//! Imports point one way: `http` → `service` → `handlers` → `db`; all of them use `stripe`.
//!
//! To understand how an event is applied, read `service/apply.rs`, `handlers/work.rs` and `handlers/subscription.rs`, in
//! this order. `docs/ARCHITECTURE.md` has the picture, and says where to change what.
//!
//! Around them: [`config`] reads the environment, [`server`] starts and stops the server, [`cli`] holds the commands,
//! [`logging`] writes the log, [`metrics`] counts. `simulate` generates load and compares the tables with the expected
//! state. [`dev_postgres`] runs a private PostgreSQL and keeps its secrets if nothing is configured.

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
