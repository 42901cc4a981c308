//! A receiver of pushed changes: verifies each with the official library of Standard Webhooks, answers as a test says,
//! and remembers what it was given.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::web::{Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;
use standardwebhooks::Webhook;
use subledger::secret::Secret;
use subledger::service::Push;

pub const CHANGES_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

type Judge = Box<dyn Fn(&Value) -> u16 + Send + Sync>;

struct Shared {
    taken: Mutex<Vec<Value>>,
    refused: Mutex<Vec<Value>>,
    judge: Mutex<Judge>,
}

pub struct Receiver {
    shared: Arc<Shared>,
    url: Url,
    handle: actix_web::dev::ServerHandle,
}

impl Receiver {
    pub async fn start() -> Self {
        let shared = Arc::new(Shared {
            taken: Mutex::default(),
            refused: Mutex::default(),
            judge: Mutex::new(Box::new(|_| 204)),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/changes", listener.local_addr().unwrap()).parse().unwrap();
        let data = Data::from(shared.clone());
        let server = HttpServer::new(move || App::new().app_data(data.clone()).route("/changes", web::post().to(take)))
            .workers(1)
            .disable_signals()
            .listen(listener)
            .unwrap()
            .run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { shared, url, handle }
    }

    pub fn push(&self) -> Push {
        rustls::crypto::ring::default_provider().install_default().ok();
        Push::new(self.url.clone(), &Secret::new(CHANGES_SECRET)).unwrap()
    }

    /// What is answered from now on.
    pub fn answer(&self, judge: impl Fn(&Value) -> u16 + Send + Sync + 'static) {
        *self.shared.judge.lock().unwrap() = Box::new(judge);
    }

    /// What was answered with success, in order.
    pub fn taken(&self) -> Vec<Value> {
        self.shared.taken.lock().unwrap().clone()
    }

    pub fn refused(&self) -> Vec<Value> {
        self.shared.refused.lock().unwrap().clone()
    }

    /// Waits until so many were taken.
    pub async fn wait_for(&self, count: usize) -> Vec<Value> {
        for _ in 0..600 {
            let taken = self.taken();
            if taken.len() >= count {
                return taken;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} of {count} were delivered, {} refused", self.taken().len(), self.refused().len());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

async fn take(request: HttpRequest, body: Bytes, shared: Data<Shared>) -> HttpResponse {
    let headers = request.headers();
    let mut given = HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let value = headers.get(name).map(|value| value.as_bytes()).unwrap_or_default();
        given.insert(name, HeaderValue::from_bytes(value).unwrap());
    }
    if Webhook::new(CHANGES_SECRET).unwrap().verify(&body, &given).is_err() {
        return HttpResponse::Unauthorized().finish();
    }
    let change: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(given["webhook-id"], format!("chg_{}", change["id"]));
    let status = (shared.judge.lock().unwrap())(&change);
    let kept = if (200..300).contains(&status) { &shared.taken } else { &shared.refused };
    kept.lock().unwrap().push(change);
    HttpResponse::build(actix_web::http::StatusCode::from_u16(status).unwrap()).finish()
}
