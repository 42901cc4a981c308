//! A stand-in for Stripe's API: answers reads of events, subscriptions, invoices, checkout sessions and features as of what
//! has happened so far. It knows nothing of what was delivered to whom.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_web::dev::ServerHandle;
use actix_web::http::header::AUTHORIZATION;
use actix_web::web::{self, Data, Query};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::model::{Life, Occurrence, Shape, What};
use super::thin::{self, Form};
use super::{objects, payload};

/// How far each life has come.
#[derive(Debug)]
pub(super) struct Happened {
    lives: Arc<Vec<Life>>,
    /// The lives in which a subscription, an invoice, a checkout session or a customer occurs, oldest first.
    by_id: HashMap<String, Vec<usize>>,
    /// Life and occurrence of each event.
    events: HashMap<String, (usize, usize)>,
    /// Occurrences of each life that have happened.
    counts: Vec<AtomicUsize>,
    questions: AtomicUsize,
}

impl Happened {
    /// Nothing has, yet.
    pub(super) fn nothing(lives: Arc<Vec<Life>>) -> Self {
        let mut by_id: HashMap<String, Vec<usize>> = HashMap::new();
        let mut events = HashMap::new();
        for (at, life) in lives.iter().enumerate() {
            let invoices = life.occurrences.iter().filter_map(|it| Some(it.what.invoice()?.id.clone()));
            let own = [life.subscription_id.clone(), life.customer_id.clone(), objects::checkout_id(life)];
            for id in own.into_iter().chain(invoices) {
                let found = by_id.entry(id).or_default();
                if found.last() != Some(&at) {
                    found.push(at);
                }
            }
            let numbered = life.occurrences.iter().enumerate();
            events.extend(numbered.map(|(index, occurrence)| (occurrence.event_id.clone(), (at, index))));
        }
        let counts = lives.iter().map(|_| AtomicUsize::new(0)).collect();
        Self { by_id, events, counts, questions: AtomicUsize::new(0), lives }
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

    /// What has happened so far in the lives in which `id` occurs, oldest first.
    fn told_of(&self, id: &str) -> Vec<(&Life, &[Occurrence])> {
        let lives = self.by_id.get(id).map(Vec::as_slice).unwrap_or_default();
        lives.iter().filter_map(|&at| Some((self.lives.get(at)?, self.occurred(at)?))).collect()
    }

    fn occurred(&self, life: usize) -> Option<&[Occurrence]> {
        let occurrences = &self.lives.get(life)?.occurrences;
        let count = self.counts.get(life)?.load(Ordering::SeqCst).min(occurrences.len());
        occurrences.get(..count)
    }

    /// The object at a path, as it is now, for a call on behalf of `account`. `None`: there is none, or not yet.
    fn object(&self, path: &str, account: Option<&str>) -> Option<Value> {
        let (resource, id) = path.rsplit_once('/')?;
        match resource {
            "/v1/events" => return self.event(id, account, payload::event),
            "/v2/core/events" => {
                let form = if id.ends_with('F') { Form::Finer } else { Form::Thin };
                return self.event(&id[..id.len().checked_sub(1)?], account, |life, index| {
                    thin::event_at_stripe(life, index, form)
                });
            }
            _ => {}
        }
        let (life, occurred) = self.told_of(id).into_iter().find(|(life, _)| life.connect_account == account)?;
        match resource {
            // A key's API version need not be that of the webhook endpoint.
            "/v1/subscriptions" => Some(payload::subscription(life, &occurred.last()?.state, Shape::Endive)),
            "/v1/invoices" => occurred.iter().rev().find_map(|it| match &it.what {
                What::Invoice { invoice, .. } if invoice.id == id => Some(objects::invoice(life, it, invoice)),
                _ => None,
            }),
            "/v1/checkout/sessions" => {
                Some(objects::checkout(life, occurred.iter().find(|it| it.what == What::Checkout)?))
            }
            _ => None,
        }
    }

    /// An event, once it has happened. Read on behalf of an account it does not name that itself.
    fn event(&self, id: &str, account: Option<&str>, render: impl Fn(&Life, usize) -> Option<Value>) -> Option<Value> {
        let &(life, index) = self.events.get(id)?;
        let happened = index < self.occurred(life)?.len();
        let life = self.lives.get(life).filter(|life| happened && life.connect_account == account)?;
        let mut event = render(life, index)?;
        event.as_object_mut()?.remove("account");
        Some(event)
    }

    /// The features of a customer.
    fn features(&self, customer: &str, account: Option<&str>) -> Vec<&'static str> {
        let told = self.told_of(customer).into_iter().filter(|(life, _)| life.connect_account == account);
        let mut features = told.flat_map(|(_, occurred)| occurred).filter_map(|it| it.what.features());
        features.next_back().map(<[_]>::to_vec).unwrap_or_default()
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
            .route("/v1/entitlements/active_entitlements", web::get().to(features))
            .default_service(web::get().to(object))
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?
    .run();
    let handle = server.handle();
    tokio::spawn(server);
    Ok(handle)
}

async fn object(request: HttpRequest, happened: Data<Happened>) -> HttpResponse {
    answer(&request, &happened, |account| happened.object(request.path(), account))
}

#[derive(Deserialize)]
struct OfCustomer {
    customer: String,
    starting_after: Option<String>,
}

/// How many features are on a page: fewer than a customer may have.
const FEATURES_ON_A_PAGE: usize = 5;

async fn features(request: HttpRequest, query: Query<OfCustomer>, happened: Data<Happened>) -> HttpResponse {
    answer(&request, &happened, |account| {
        let features = happened.features(&query.customer, account);
        let all: Vec<_> = features.into_iter().map(objects::entitlement).collect();
        let after = query.starting_after.as_deref();
        let first = after.and_then(|after| all.iter().position(|it| it["id"] == after)).map_or(0, |at| at + 1);
        let rest = &all[first..];
        let page = &rest[..rest.len().min(FEATURES_ON_A_PAGE)];
        Some(json!({"object": "list", "data": page, "has_more": page.len() < rest.len(), "url": request.path()}))
    })
}

/// Answers what is found for the account on whose behalf the call is made; `None` is its own.
fn answer(
    request: &HttpRequest,
    happened: &Happened,
    find: impl FnOnce(Option<&str>) -> Option<Value>,
) -> HttpResponse {
    happened.questions.fetch_add(1, Ordering::Relaxed);
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if header(AUTHORIZATION.as_str()).is_none() {
        let error = json!({"message": "You did not provide an API key.", "type": "invalid_request_error"});
        return HttpResponse::Unauthorized().json(json!({"error": error}));
    }
    match find(header("Stripe-Context").or(header("Stripe-Account"))) {
        Some(object) => HttpResponse::Ok().json(object),
        None => HttpResponse::NotFound().json(json!({"error": {
            "code": "resource_missing",
            "message": format!("No such object: '{}'", request.path()),
            "type": "invalid_request_error",
        }})),
    }
}
