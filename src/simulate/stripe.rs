//! A stand-in for Stripe's API: `GET /v1/subscriptions/{id}` answers a life's state as of what has happened so far.
//! It knows nothing of what was delivered to whom.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::dev::ServerHandle;
use actix_web::http::header::AUTHORIZATION;
use actix_web::web::{self, Data, Path};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use anyhow::{Context, Result};
use serde_json::json;

use super::model::{Life, Shape};
use super::payload;

/// How far each life has come.
#[derive(Debug)]
pub(super) struct Happened {
    lives: Arc<Vec<Life>>,
    by_subscription: HashMap<String, usize>,
    /// Occurrences of each life that have happened.
    counts: Vec<AtomicUsize>,
    questions: AtomicUsize,
}

impl Happened {
    /// Nothing has, yet.
    pub(super) fn nothing(lives: Arc<Vec<Life>>) -> Self {
        Self {
            by_subscription: lives.iter().enumerate().map(|(i, life)| (life.subscription_id.clone(), i)).collect(),
            counts: lives.iter().map(|_| AtomicUsize::new(0)).collect(),
            questions: AtomicUsize::new(0),
            lives,
        }
    }

    /// A life has come to this occurrence, if not further: its event could not be sent otherwise.
    pub(super) fn reach(&self, life: usize, occurrence: usize) {
        if let Some(count) = self.counts.get(life) {
            count.fetch_max(occurrence + 1, Ordering::SeqCst);
        }
    }

    /// How often the stand-in was asked.
    pub(super) fn questions(&self) -> usize {
        self.questions.load(Ordering::Relaxed)
    }

    /// The subscription as it is now. `None`: there is none of this id, or not yet.
    fn subscription(&self, id: &str) -> Option<serde_json::Value> {
        let index = *self.by_subscription.get(id)?;
        let (life, count) = (self.lives.get(index)?, self.counts.get(index)?.load(Ordering::SeqCst));
        let last = count.min(life.occurrences.len()).checked_sub(1)?;
        // A key's API version need not be that of the webhook endpoint.
        Some(payload::subscription(life, &life.occurrences.get(last)?.state, Shape::Basil))
    }
}

/// Serves the stand-in on `address` until it is stopped.
///
/// # Errors
/// Where the address cannot be listened on.
pub(super) fn serve(address: std::net::SocketAddr, happened: Arc<Happened>) -> Result<ServerHandle> {
    let listener = TcpListener::bind(address).with_context(|| format!("--stripe-api: cannot listen on {address}"))?;
    let happened = Data::from(happened);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(happened.clone())
            .route("/v1/subscriptions/{id}", web::get().to(subscription))
            .default_service(web::to(|| async { HttpResponse::NotFound().json(json!({"error": {}})) }))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?
    .run();
    let handle = server.handle();
    tokio::spawn(server);
    Ok(handle)
}

async fn subscription(request: HttpRequest, id: Path<String>, happened: Data<Happened>) -> HttpResponse {
    happened.questions.fetch_add(1, Ordering::Relaxed);
    if !request.headers().contains_key(AUTHORIZATION) {
        let error = json!({"message": "You did not provide an API key.", "type": "invalid_request_error"});
        return HttpResponse::Unauthorized().json(json!({"error": error}));
    }
    match happened.subscription(&id) {
        Some(subscription) => HttpResponse::Ok().json(subscription),
        None => HttpResponse::NotFound().json(json!({"error": {
            "code": "resource_missing",
            "message": format!("No such subscription: '{id}'"),
            "param": "id",
            "type": "invalid_request_error",
        }})),
    }
}
