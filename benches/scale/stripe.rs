//! A stand-in for Stripe's API that has as many subscriptions, and events of them, as it is told to.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use actix_web::dev::ServerHandle;
use actix_web::http::header::ContentType;
use actix_web::web::{self, Data, Path};
use actix_web::{App, HttpResponse, HttpServer};
use anyhow::{Context, Result};
use chrono::Utc;
use serde_json::{Value, json};

use crate::support::events::Events;

/// All events are of this many seconds before now, and spread over them.
const SPAN: u64 = 2 * 86_400;

type Query = web::Query<Vec<(String, String)>>;

/// What the lists hold. Subscriptions can be read one by one whether or not they are listed.
pub struct Lists {
    pub subscriptions: u64,
    pub events: u64,
    /// Events are of the subscriptions with the numbers from 1 to this one.
    pub concerned: u64,
}

pub struct Stripe {
    address: SocketAddr,
    handle: ServerHandle,
}

struct Shared {
    lists: Lists,
    events: Events,
    /// When the first event is of, in Unix seconds.
    first: u64,
}

impl Stripe {
    /// Serves on a free port of loopback, from a thread of its own.
    pub fn start(lists: Lists) -> Result<Self> {
        let first = u64::try_from(Utc::now().timestamp())? - SPAN;
        let shared = Data::new(Shared { lists, events: Events::new(1)?, first });
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let app = move || {
            App::new()
                .app_data(shared.clone())
                .route("/v1/events", web::get().to(events))
                .route("/v1/subscriptions", web::get().to(subscriptions))
                .route("/v1/subscriptions/{id}", web::get().to(subscription))
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(app).workers(1).disable_signals().listen(listener)?.run();
                // The receiver waits for it.
                sender.send(server.handle()).ok();
                server.await
            })
        });
        let handle = receiver.recv().context("the stand-in for Stripe does not start")?;
        Ok(Self { address, handle })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Stripe {
    fn drop(&mut self) {
        // The future that it returns need not be awaited for the stop to happen.
        drop(self.handle.stop(false));
    }
}

impl Shared {
    fn created(&self, n: u64) -> u64 {
        self.first + n * SPAN / (self.lists.events + 1)
    }

    /// Event number `n`.
    fn event(&self, n: u64) -> Value {
        let mut event: Value = serde_json::from_str(&self.events.payload(n)).unwrap_or_default();
        event["id"] = event_id(n).into();
        event["created"] = self.created(n).into();
        event["data"]["object"] = self.subscription((n - 1) % self.lists.concerned + 1);
        event
    }

    fn subscription(&self, n: u64) -> Value {
        let mut event: Value = serde_json::from_str(&self.events.payload(1)).unwrap_or_default();
        let mut subscription = event["data"]["object"].take();
        subscription["id"] = subscription_id(n).into();
        subscription["customer"] = customer_id(n).into();
        subscription
    }

    /// A page of what has the numbers `count` to 1, in this order, as far as `is_asked_for` says.
    fn page(
        &self,
        query: &Query,
        count: u64,
        is_asked_for: impl Fn(u64) -> bool,
        object: impl Fn(&Self, u64) -> Value,
    ) -> HttpResponse {
        let limit = param(query, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(10);
        let after = param(query, "starting_after").and_then(number).unwrap_or(count + 1);
        let mut numbers = (1..after).rev().filter(|&n| is_asked_for(n)).peekable();
        let page: Vec<_> = numbers.by_ref().take(limit).map(|n| object(self, n)).collect();
        json_answer(&json!({"object": "list", "data": page, "has_more": numbers.peek().is_some()}))
    }
}

pub fn customer_id(n: u64) -> String {
    format!("cus_{n:014}")
}

fn subscription_id(n: u64) -> String {
    format!("sub_{n:024}")
}

fn event_id(n: u64) -> String {
    format!("evt_{n:024}")
}

/// The number that an id of ours ends in.
fn number(id: &str) -> Option<u64> {
    id.split_once('_')?.1.parse().ok()
}

fn param<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

async fn events(query: Query, shared: Data<Shared>) -> HttpResponse {
    let bound = |name| param(&query, name).and_then(|bound| bound.parse::<u64>().ok());
    let (since, until) = (bound("created[gte]").unwrap_or(0), bound("created[lte]").unwrap_or(u64::MAX));
    let is_asked_for = |n| (since..=until).contains(&shared.created(n));
    shared.page(&query, shared.lists.events, is_asked_for, Shared::event)
}

async fn subscriptions(query: Query, shared: Data<Shared>) -> HttpResponse {
    shared.page(&query, shared.lists.subscriptions, |_| true, Shared::subscription)
}

async fn subscription(id: Path<String>, shared: Data<Shared>) -> HttpResponse {
    number(&id).map_or_else(|| HttpResponse::NotFound().finish(), |n| json_answer(&shared.subscription(n)))
}

fn json_answer(body: &Value) -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(body.to_string())
}
