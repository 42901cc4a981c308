//! A stand-in for Stripe's API: answers reads of single objects and the lists of events and subscriptions as a test
//! says, and remembers every request.

use std::collections::{HashMap, VecDeque};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::web::{Data, Path};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use reqwest::Url;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::Event;
use super::stripe_endpoints::{self, Endpoints};

/// One answer; the last one that a test gave is repeated.
#[derive(Clone, Default)]
struct Canned {
    status: u16,
    /// The body as it is sent.
    body: String,
    headers: Vec<(&'static str, String)>,
    /// Held back until the test lets it go.
    gate: Option<Arc<Semaphore>>,
    delay: Option<Duration>,
}

#[derive(Default)]
struct Shared {
    /// By path.
    answers: Mutex<HashMap<String, VecDeque<Canned>>>,
    asked: Mutex<Vec<Asked>>,
    /// By path, newest first.
    lists: Mutex<HashMap<&'static str, Vec<Value>>>,
    listed: Mutex<Vec<Listed>>,
    /// What the next list requests are answered instead: a status and a `Retry-After`.
    refusals: Mutex<VecDeque<(u16, Option<u32>)>>,
    /// Lists that are refused whenever they are asked for, by path, with a status.
    refused_lists: Mutex<HashMap<&'static str, u16>>,
    /// The `Date` of answers about subscriptions; actix's own where there is none.
    date: Mutex<Option<String>>,
    /// Whole answers to the next list requests.
    pages: Mutex<VecDeque<Value>>,
    /// The status of every answer about these connected accounts.
    refused_accounts: Mutex<HashMap<String, u16>>,
    /// How many single objects may be read in a second; more are answered 429.
    rate: Mutex<Option<usize>>,
    /// When those of the current second were read.
    reads: Mutex<VecDeque<Instant>>,
}

/// A request for a page of a list that came.
#[derive(Clone, Debug)]
pub struct Listed {
    pub path: String,
    pub query: Vec<(String, String)>,
    pub connect_account: Option<String>,
    pub context: Option<String>,
    pub version: Option<String>,
    pub at: Instant,
}

impl Listed {
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A request for a single object that came.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub path: String,
    /// The path's last segment.
    pub subscription: String,
    pub authorization: Option<String>,
    pub connect_account: Option<String>,
    pub context: Option<String>,
    pub version: Option<String>,
    /// What was answered.
    pub status: u16,
}

pub struct StripeApi {
    shared: Arc<Shared>,
    pub endpoints: Arc<Endpoints>,
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
        let endpoints = Arc::new(Endpoints::default());
        let theirs = endpoints.clone();
        let server = HttpServer::new(move || {
            App::new()
                .app_data(data.clone())
                .configure(stripe_endpoints::routes(theirs.clone()))
                .route("/v1/entitlements/{list}", web::get().to(list))
                .route("/v1/{list}", web::get().to(list))
                .default_service(web::route().to(object))
        })
        .workers(1)
        .disable_signals()
        .listen(listener)
        .unwrap()
        .run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { shared, endpoints, base, handle }
    }

    pub fn base(&self) -> Url {
        self.base.clone()
    }

    /// What is answered from now on for a subscription.
    pub fn answer(&self, subscription: &str, status: u16, body: Value) {
        self.answer_path(&format!("/v1/subscriptions/{subscription}"), status, &[], &body.to_string());
    }

    /// What is answered from now on for a path.
    pub fn answer_path(&self, path: &str, status: u16, headers: &[(&'static str, &str)], body: &str) {
        let headers = headers.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        let canned = Canned { status, body: body.to_owned(), headers, ..Canned::default() };
        self.shared.answers.lock().unwrap().insert(path.to_owned(), VecDeque::from([canned]));
    }

    /// Has every answer for a path take so long.
    pub fn delay(&self, path: &str, delay: Duration) {
        let mut answers = self.shared.answers.lock().unwrap();
        answers.get_mut(path).unwrap().iter_mut().for_each(|canned| canned.delay = Some(delay));
    }

    /// Has every request for a connected account fail, or none any more with a status of 200.
    pub fn refuses_account(&self, account: &str, status: u16) {
        self.shared.refused_accounts.lock().unwrap().insert(account.to_owned(), status);
    }

    /// Answers 429 to reads of single objects beyond so many a second.
    pub fn allow_per_second(&self, reads: usize) {
        *self.shared.rate.lock().unwrap() = Some(reads);
    }

    /// The object as Stripe has it from now on.
    pub fn has(&self, object: &Value) {
        self.answer_path(&path_of(object), 200, &[], &object.to_string());
    }

    /// Stripe has no such object any more.
    pub fn has_not(&self, object: &Value) {
        self.shared.answers.lock().unwrap().remove(&path_of(object));
    }

    /// An answer that comes after those that were queued before, once its gate is opened.
    pub fn queue_gated(&self, object: &Value) -> Gate {
        let gate = Arc::new(Semaphore::new(0));
        let canned = Canned { status: 200, body: object.to_string(), gate: Some(gate.clone()), ..Canned::default() };
        self.shared.answers.lock().unwrap().entry(path_of(object)).or_default().push_back(canned);
        Gate(gate)
    }

    /// The object as Stripe has it after the answers that were queued before.
    pub fn has_second(&self, object: &Value) {
        let canned = Canned { status: 200, body: object.to_string(), ..Canned::default() };
        self.shared.answers.lock().unwrap().entry(path_of(object)).or_default().push_back(canned);
    }

    /// The events that Stripe lists from now on, given in any order; of one second, the later in the slice is newer.
    pub fn lists_events(&self, events: &[Event]) {
        let mut events: Vec<_> = events.iter().rev().map(|event| event.0.clone()).collect();
        events.sort_by_key(|event| std::cmp::Reverse(event["created"].as_i64()));
        self.shared.lists.lock().unwrap().insert("events", events);
    }

    /// The events that Stripe could not deliver, from now on.
    pub fn could_not_deliver(&self, events: &[Event]) {
        let events = events.iter().rev().map(|event| event.0.clone()).collect();
        self.shared.lists.lock().unwrap().insert("undelivered", events);
    }

    /// Answers about subscriptions are of this time, from now on.
    pub fn says_it_is(&self, time: chrono::DateTime<chrono::Utc>) {
        let date = time.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        *self.shared.date.lock().unwrap() = Some(date);
    }

    /// The subscriptions that Stripe has from now on, newest first; each can be fetched alone, too.
    pub fn lists_subscriptions(&self, subscriptions: &[Value]) {
        subscriptions.iter().for_each(|subscription| self.has(subscription));
        self.shared.lists.lock().unwrap().insert("subscriptions", subscriptions.to_vec());
    }

    /// The active entitlements of every customer from now on.
    pub fn lists_active_entitlements(&self, entitlements: Vec<Value>) {
        self.shared.lists.lock().unwrap().insert("active_entitlements", entitlements);
    }

    /// The items of every subscription from now on.
    pub fn lists_subscription_items(&self, items: Vec<Value>) {
        self.shared.lists.lock().unwrap().insert("subscription_items", items);
    }

    /// Has the next request for a list fail.
    pub fn refuse_once(&self, status: u16, retry_after: Option<u32>) {
        self.shared.refusals.lock().unwrap().push_back((status, retry_after));
    }

    /// Has every request for this list fail.
    pub fn refuse_list(&self, list: &'static str, status: u16) {
        self.shared.refused_lists.lock().unwrap().insert(list, status);
    }

    /// Turns the next read of an object away, and has the object after that.
    pub fn turns_away_once(&self, object: &Value, retry_after: &str) {
        self.answer_path(&path_of(object), 429, &[("Retry-After", retry_after)], "{}");
        self.has_second(object);
    }

    /// Whole answers to the next requests for a list.
    pub fn queue_pages(&self, pages: &[Value]) {
        self.shared.pages.lock().unwrap().extend(pages.iter().cloned());
    }

    pub fn listed(&self) -> Vec<Listed> {
        self.shared.listed.lock().unwrap().clone()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Waits until a path has been read.
    pub async fn wait_until_read(&self, path: &str) {
        for _ in 0..500 {
            if self.asked().iter().any(|asked| asked.path == path) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{path} was not read");
    }

    /// Forgets every answer and request.
    pub fn forget(&self) {
        self.shared.answers.lock().unwrap().clear();
        self.shared.asked.lock().unwrap().clear();
    }

    /// Waits until this many requests have come in all.
    pub async fn wait_until_asked(&self, times: usize) {
        for _ in 0..500 {
            if self.asked().len() >= times {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
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

/// Where Stripe has an object of this type.
fn path_of(object: &Value) -> String {
    let id = object["id"].as_str().unwrap();
    match object["object"].as_str().unwrap() {
        "checkout.session" => format!("/v1/checkout/sessions/{id}"),
        "v2.core.event" => format!("/v2/core/events/{id}"),
        other => format!("/v1/{other}s/{id}"),
    }
}

fn header(request: &HttpRequest, name: &str) -> Option<String> {
    request.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
}

/// The status with which requests for a connected account are refused, if they are.
fn refusal(shared: &Shared, account: Option<&str>) -> Option<u16> {
    shared.refused_accounts.lock().unwrap().get(account?).copied().filter(|status| *status != 200)
}

async fn object(request: HttpRequest, shared: Data<Shared>) -> HttpResponse {
    let path = request.path().to_owned();
    let canned = if let Some(status) = refusal(&shared, header(&request, "stripe-account").as_deref()) {
        Canned { status, body: json!({"error": {"code": "account_invalid"}}).to_string(), ..Canned::default() }
    } else if is_over_the_rate(&shared) {
        let body = json!({"error": {"code": "rate_limit", "type": "invalid_request_error"}}).to_string();
        Canned { status: 429, body, ..Canned::default() }
    } else {
        let mut answers = shared.answers.lock().unwrap();
        let queued = match answers.get_mut(&path) {
            Some(queue) if queue.len() > 1 => queue.pop_front(),
            Some(queue) => queue.front().cloned(),
            None => None,
        };
        let body = json!({"error": {"code": "resource_missing", "type": "invalid_request_error"}}).to_string();
        queued.unwrap_or(Canned { status: 404, body, ..Canned::default() })
    };
    shared.asked.lock().unwrap().push(Asked {
        subscription: path.rsplit('/').next().unwrap().to_owned(),
        path,
        authorization: header(&request, "authorization"),
        connect_account: header(&request, "stripe-account"),
        context: header(&request, "stripe-context"),
        version: header(&request, "stripe-version"),
        status: canned.status,
    });
    if let Some(gate) = canned.gate {
        gate.acquire().await.unwrap().forget();
    }
    if let Some(delay) = canned.delay {
        tokio::time::sleep(delay).await;
    }
    let mut response = HttpResponse::build(StatusCode::from_u16(canned.status).unwrap());
    if let Some(date) = shared.date.lock().unwrap().clone() {
        response.insert_header(("Date", date));
    }
    for (name, value) in canned.headers {
        response.insert_header((name, value));
    }
    response.body(canned.body)
}

fn is_over_the_rate(shared: &Shared) -> bool {
    let Some(rate) = *shared.rate.lock().unwrap() else { return false };
    let mut reads = shared.reads.lock().unwrap();
    while reads.front().is_some_and(|read| read.elapsed() > Duration::from_secs(1)) {
        reads.pop_front();
    }
    let is_over = reads.len() >= rate;
    if !is_over {
        reads.push_back(Instant::now());
    }
    is_over
}

async fn list(
    request: HttpRequest,
    path: Path<String>,
    web::Query(query): web::Query<Vec<(String, String)>>,
    shared: Data<Shared>,
) -> HttpResponse {
    let listed = Listed {
        path: path.into_inner(),
        query,
        connect_account: header(&request, "stripe-account"),
        context: header(&request, "stripe-context"),
        version: header(&request, "stripe-version"),
        at: Instant::now(),
    };
    shared.listed.lock().unwrap().push(listed.clone());
    if let Some(status) = refusal(&shared, listed.connect_account.as_deref()) {
        let status = StatusCode::from_u16(status).unwrap();
        return HttpResponse::build(status).json(json!({"error": {"code": "account_invalid"}}));
    }
    if let Some(status) = shared.refused_lists.lock().unwrap().get(listed.path.as_str()) {
        let status = StatusCode::from_u16(*status).unwrap();
        return HttpResponse::build(status).json(json!({"error": {"type": "invalid_request_error"}}));
    }
    if let Some((status, retry_after)) = shared.refusals.lock().unwrap().pop_front() {
        let mut response = HttpResponse::build(StatusCode::from_u16(status).unwrap());
        if let Some(seconds) = retry_after {
            response.insert_header(("Retry-After", seconds.to_string()));
        }
        return response.json(json!({"error": {"type": "api_error"}}));
    }
    if let Some(page) = shared.pages.lock().unwrap().pop_front() {
        return HttpResponse::Ok().json(page);
    }
    let lists = shared.lists.lock().unwrap();
    let is_undelivered = listed.param("delivery_success") == Some("false");
    let name = if is_undelivered { "undelivered" } else { listed.path.as_str() };
    let none = Vec::new();
    let Some(objects) = lists.get(name).or(is_undelivered.then_some(&none)) else {
        return HttpResponse::NotFound().json(json!({"error": {"type": "invalid_request_error"}}));
    };
    let number = |name: &str| listed.param(name).map(|value| value.parse::<i64>().unwrap());
    let types: Vec<_> = listed.query.iter().filter(|(name, _)| name == "types[]").map(|(_, value)| value).collect();
    assert!(types.len() <= 20, "Stripe takes at most 20 types");
    let limit = usize::try_from(number("limit").unwrap_or(10)).unwrap();
    assert!((1..=100).contains(&limit), "Stripe gives at most 100 at once");
    let mut rest: &[Value] = objects;
    if let Some(after) = listed.param("starting_after") {
        let at = objects.iter().position(|object| object["id"] == after).expect("a listed id");
        rest = &objects[at + 1..];
    }
    let matching: Vec<_> = rest
        .iter()
        // The list of an account holds no events of another one.
        .filter(|object| object["account"].as_str().is_none_or(|own| Some(own) == listed.connect_account.as_deref()))
        .filter(|object| types.is_empty() || types.iter().any(|name| object["type"] == **name))
        .filter(|object| number("created[gte]").is_none_or(|since| object["created"].as_i64().unwrap() >= since))
        .filter(|object| number("created[lte]").is_none_or(|until| object["created"].as_i64().unwrap() <= until))
        .collect();
    let page: Vec<_> = matching.iter().take(limit).collect();
    HttpResponse::Ok().json(json!({
        "object": "list", "url": format!("/v1/{}", listed.path), "has_more": matching.len() > limit, "data": page,
    }))
}
