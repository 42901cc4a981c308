//! `/admin`, the page for people. It reads through the service, renders HTML, and works without script.
//!
//! One file per page; [`session`] knows who is logged in, [`page`] what all pages share, [`error`] how they fail,
//! [`show`] how values look. It decides nothing about events.

mod account;
mod chart;
mod error;
mod event;
mod events;
mod login;
mod overview;
mod page;
mod search;
pub mod session;
mod show;

use actix_web::middleware::from_fn;
use actix_web::web::{self, ServiceConfig};
use actix_web::{Resource, Route, guard};

/// Sets up every route of the page. Expects `web::Data<State>` in the app.
pub fn routes(config: &mut ServiceConfig) {
    config.service(
        web::scope("/admin")
            .wrap(from_fn(page::protect))
            .service(resource("").route(reading().to(overview::show)))
            .service(resource("/").route(reading().to(overview::show)))
            .service(resource("/style.css").route(reading().to(page::style)))
            .service(resource("/login").route(web::post().to(login::log_in)).route(reading().to(login::back)))
            .service(resource("/logout").route(web::post().to(login::log_out)).route(reading().to(login::back)))
            .service(resource("/search").route(reading().to(search::show)))
            .service(resource("/events").route(reading().to(events::show)))
            .service(resource("/events/{id}").route(reading().to(event::show)))
            .service(
                resource("/events/{id}/replay").route(web::post().to(event::replay)).route(reading().to(event::back)),
            )
            .service(resource("/events/{id}/link").route(web::post().to(event::link)).route(reading().to(event::back)))
            .service(resource("/accounts/{id}").route(reading().to(account::show)))
            .default_service(web::to(error::not_found)),
    );
}

fn resource(path: &str) -> Resource {
    web::resource(path).default_service(web::to(error::method_not_allowed))
}

fn reading() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}
