//! A stand-in for Stripe's API: answers `GET /v1/subscriptions/{id}` as a test says, and remembers who asked.

use std::collections::{HashMap, VecDeque};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use actix_web::http::StatusCode;
use actix_web::web::{Data, Path};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use reqwest::Url;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// One answer; the last one that a test gave is repeated.
#[derive(Clone)]
struct Canned {
    status: u16,
    body: Value,
    /// Held back until the test lets it go.
    gate: Option<Arc<Semaphore>>,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<HashMap<String, VecDeque<Canned>>>,
    asked: Mutex<Vec<Asked>>,
}

/// A request that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub subscription: String,
    pub authorization: Option<String>,
    pub connect_account: Option<String>,
}

pub struct StripeApi {
    shared: Arc<Shared>,
    base: Url,
    handle: actix_web::dev::ServerHandle,
}

/// Holds an answer back until it is let go or dropped.
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn open(&self) {
        self.0.add_permits(1_000);
    }
}

impl StripeApi {
    pub async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let data = Data::from(shared.clone());
        let server = HttpServer::new(move || {
            App::new().app_data(data.clone()).route("/v1/subscriptions/{id}", web::get().to(subscription))
        })
        .workers(1)
        .disable_signals()
        .listen(listener)
        .unwrap()
        .run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { shared, base, handle }
    }

    pub fn base(&self) -> Url {
        self.base.clone()
    }

    /// What is answered from now on for a subscription.
    pub fn answer(&self, subscription: &str, status: u16, body: Value) {
        self.shared
            .answers
            .lock()
            .unwrap()
            .insert(subscription.to_owned(), VecDeque::from([Canned { status, body, gate: None }]));
    }

    /// The subscription as Stripe has it from now on.
    pub fn has(&self, object: &Value) {
        self.answer(object["id"].as_str().unwrap(), 200, object.clone());
    }

    /// An answer that comes after those that were queued before, once its gate is opened.
    pub fn queue_gated(&self, object: &Value) -> Gate {
        let gate = Arc::new(Semaphore::new(0));
        let canned = Canned { status: 200, body: object.clone(), gate: Some(gate.clone()) };
        let id = object["id"].as_str().unwrap().to_owned();
        self.shared.answers.lock().unwrap().entry(id).or_default().push_back(canned);
        Gate(gate)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Waits until this many requests have come in all.
    pub async fn wait_until_asked(&self, times: usize) {
        for _ in 0..500 {
            if self.asked().len() >= times {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("asked {} times, not {times}", self.asked().len());
    }
}

impl Drop for StripeApi {
    fn drop(&mut self) {
        // The future that it returns need not be awaited for the stop to happen.
        drop(self.handle.stop(false));
    }
}

async fn subscription(request: HttpRequest, id: Path<String>, shared: Data<Shared>) -> HttpResponse {
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    shared.asked.lock().unwrap().push(Asked {
        subscription: id.clone(),
        authorization: header("authorization"),
        connect_account: header("stripe-account"),
    });
    let canned = {
        let mut answers = shared.answers.lock().unwrap();
        match answers.get_mut(id.as_str()) {
            Some(queue) if queue.len() > 1 => queue.pop_front(),
            Some(queue) => queue.front().cloned(),
            None => None,
        }
    };
    let Some(canned) = canned else {
        return HttpResponse::NotFound()
            .json(json!({"error": {"code": "resource_missing", "type": "invalid_request_error"}}));
    };
    if let Some(gate) = canned.gate {
        gate.acquire().await.unwrap().forget();
    }
    HttpResponse::build(StatusCode::from_u16(canned.status).unwrap()).json(canned.body)
}
