//! `/admin`, the page for people. It reads through the service, renders HTML, and works without script.
//!
//! One file per page; [`session`] knows who is logged in, [`page`] what all pages share, [`error`] how they fail,
//! [`format`] how values look. It decides nothing about events.

mod account;
mod accounts;
mod changes;
mod chart;
mod error;
mod event;
mod events;
mod format;
mod login;
mod overview;
mod page;
mod paging;
mod search;
pub mod session;

use actix_web::middleware::from_fn;
use actix_web::web::{self, ServiceConfig};
use actix_web::{Resource, Route, guard};

/// Sets up every route of the page. Expects `web::Data<State>` in the app.
pub fn routes(config: &mut ServiceConfig) {
    config.service(
        web::scope("/admin")
            .wrap(from_fn(page::protect))
            .service(read_only("").route(reading().to(overview::show)))
            .service(read_only("/").route(reading().to(overview::show)))
            .service(read_only("/style.css").route(reading().to(page::style)))
            .service(form("/login").route(web::post().to(login::log_in)).route(reading().to(login::back)))
            .service(form("/logout").route(web::post().to(login::log_out)).route(reading().to(login::back)))
            .service(read_only("/search").route(reading().to(search::show)))
            .service(read_only("/events").route(reading().to(events::show)))
            .service(read_only("/events/{id}").route(reading().to(event::show)))
            .service(form("/events/{id}/replay").route(web::post().to(event::replay)).route(reading().to(event::back)))
            .service(
                form("/events/{id}/link").route(web::post().to(event::link)).route(reading().to(event::choose_account)),
            )
            .service(read_only("/accounts").route(reading().to(accounts::show)))
            .service(read_only("/accounts/{id}").route(reading().to(account::show)))
            .service(read_only("/changes").route(reading().to(changes::show)))
            .service(form("/changes/retry").route(web::post().to(changes::retry)).route(reading().to(changes::back)))
            .service(
                form("/accounts/{id}/unlink")
                    .route(web::post().to(account::unlink))
                    .route(reading().to(account::confirm_unlinking)),
            )
            .default_service(web::to(error::not_found)),
    );
}

/// What is only looked at.
fn read_only(path: &str) -> Resource {
    resource(path, "GET, HEAD")
}

/// Where a form is sent. GET leads back to the page that it stands on.
fn form(path: &str) -> Resource {
    resource(path, "GET, HEAD, POST")
}

fn resource(path: &str, allowed: &'static str) -> Resource {
    web::resource(path).default_service(web::to(move || error::method_not_allowed(allowed)))
}

fn reading() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}
