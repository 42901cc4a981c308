//! subledger keeps an application's `subscriptions` table exactly in step with Stripe.
//!
//! The modules, in the order in which an event passes them. Imports point only that way:
//!
//! 1. [`http`] takes the request, bounds its body, and puts every answer into words.
//! 2. [`verify`] turns signed bytes into [`verify::Verified`] ones; nothing else can.
//! 3. [`stripe`] reads what Stripe says: events, subscriptions of every API version, its API.
//! 4. [`service`] runs the transaction, for most events of one statement each, that holds the idempotency row and the change.
//! 5. [`handlers`] change rows for one event; they neither commit nor call the network.
//! 6. [`ordering`] decides which of two states is newer; pure.
//! 7. [`db`] holds one query per function, the pool, and the migrations.
//!
//! Around them: [`config`] reads the environment, [`app`] starts and stops the server, [`commands`] are the jobs of
//! the command line, [`logging`] writes the log, [`metrics`] counts, [`descriptors`] bounds the number of clients. Where nothing
//! is configured, [`home`] keeps the secrets and [`postgres`] runs a private PostgreSQL.

pub mod app;
pub mod commands;
pub mod config;
pub mod db;
pub mod descriptors;
pub mod handlers;
pub mod home;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod ordering;
pub mod postgres;
pub mod secret;
pub mod service;
pub mod stripe;
pub mod verify;
