//! HTTP: takes requests, bounds them, asks the service, and puts every answer into the contract's words. It knows
//! nothing of SQL and decides nothing about events.

mod accounts;
mod admin;
mod auth;
mod changes;
mod error;
mod events;
mod health;
pub mod limits;
mod metrics;
mod openapi;
mod request_id;
mod responses;
mod routes;
mod webhook;

use std::time::Duration;

pub use error::ApiError;
pub use request_id::assign;
pub use routes::routes;

use limits::{Budget, ParsingBudget};

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
    /// The memory that all bodies together may take.
    pub body_budget: Budget,
    /// The memory that large events may take once they are parsed.
    pub parsing_budget: ParsingBudget,
    /// The most that a body may take to arrive.
    pub body_timeout: Duration,
}
