//! HTTP: takes requests, bounds them, asks the service, and puts every answer into the contract's words. It knows
//! nothing of SQL and decides nothing about events.

mod accounts;
mod admin;
mod auth;
mod body;
mod disconnect;
mod error;
mod events;
mod health;
mod request_id;
mod views;
mod webhook;

use std::time::Duration;

use actix_web::web::{self, ServiceConfig};

pub use disconnect::remember_socket;
pub use error::ApiError;
pub use request_id::assign;

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
    /// The most that a body may take to arrive.
    pub body_timeout: Duration,
}

/// Sets up every route. Expects `web::Data<State>` in the app.
pub fn routes(config: &mut ServiceConfig) {
    let resource = |path: &str| web::resource(path).default_service(web::to(error::method_not_allowed));
    config
        .service(resource(WEBHOOK_PATH).route(web::post().to(webhook::receive)))
        .service(resource("/health").route(web::get().to(health::ready)).route(web::head().to(health::ready)))
        .service(resource("/health/live").route(web::get().to(health::live)).route(web::head().to(health::live)))
        .service(resource("/events").route(web::get().to(events::list)))
        .service(resource("/events/{id}").route(web::get().to(events::show)))
        .service(resource("/events/{id}/replay").route(web::post().to(events::replay)))
        .service(resource("/api/v1/accounts").route(web::post().to(accounts::create)))
        .service(
            resource("/api/v1/accounts/{id}")
                .route(web::get().to(accounts::show))
                .route(web::patch().to(accounts::change)),
        )
        .configure(admin::routes)
        .default_service(web::to(error::not_found));
}
