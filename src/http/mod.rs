//! HTTP: takes requests, bounds them, asks the service, and puts every answer into the contract's words. It knows
//! nothing of SQL and decides nothing about events.

mod accounts;
mod admin;
mod auth;
mod body;
mod budget;
mod changes;
mod connection;
mod disconnect;
mod error;
mod events;
mod health;
mod metrics;
mod openapi;
mod request_id;
mod routes;
mod views;
mod webhook;

use std::time::Duration;

pub use budget::Budget;
pub use connection::{mark_busy, on_connect};
pub use error::ApiError;
pub use request_id::assign;
pub use routes::routes;

use crate::secret::Secret;
use crate::service::Service;

/// The path to which Stripe delivers.
pub const WEBHOOK_PATH: &str = "/api/v1/webhooks/stripe";

/// What the endpoints share.
#[derive(Debug)]
pub struct State {
    /// The service layer.
    pub service: Service,
    /// Any of them may have signed a delivery.
    pub webhook_secrets: Vec<Secret>,
    /// Seconds that a signature may be off.
    pub tolerance_secs: u64,
    /// What admins authorize themselves with; `None`: there are no admins.
    pub admin_token: Option<Secret>,
    /// Bytes.
    pub body_limit: usize,
    /// What all bodies together may take of the memory.
    pub body_budget: Budget,
    /// The most that a body may take to arrive.
    pub body_timeout: Duration,
}
