//! A server of its own for each test: the real application, in this process, on a port of its own.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use chrono::Utc;
use futures_util::{StreamExt, stream};
use reqwest::{Method, Url};
use serde_json::{Value, json};
use subledger::config::Config;
use subledger::db::connect::Target;
use subledger::db::entitlements::Settings as Entitlement;
use subledger::secret::Secret;
use subledger::server::Application;
use subledger::service::Push;
use subledger::stripe::api;
use subledger::stripe::redact::StoredPayloads;
use subledger::stripe::signature::sign;
use subledger::stripe::trust::{ConnectTrust, Mode};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use uuid::Uuid;

use super::database::Database;
use super::{Event, StripeApi};

pub const WEBHOOK_SECRET: &str = "whsec_test";
pub const ADMIN_TOKEN: &str = "admin-token";

/// Within this time a sweep applies what was linked with SQL (contract, "Parking").
pub const SWEPT: Duration = Duration::from_secs(5);

/// What a test wants otherwise than usual.
pub struct Settings {
    pub pool_size: u32,
    pub pool_timeout: Duration,
    pub body_limit: usize,
    pub body_timeout: Duration,
    pub keep_alive: Duration,
    pub price_plans: Vec<(&'static str, &'static str)>,
    pub secrets: Vec<&'static str>,
    pub admin_token: Option<&'static str>,
    pub stripe_timeout: Duration,
    pub push: Option<Push>,
    pub entitled_statuses: Vec<&'static str>,
    pub ignore_unlisted_prices: bool,
    pub overdue_after: Duration,
    pub reconcile_every: Option<Duration>,
    pub stored_payloads: StoredPayloads,
    pub stripe_reads_per_second: u32,
    pub mode: Mode,
    pub trust: ConnectTrust,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool_size: 8,
            pool_timeout: Duration::from_secs(2),
            body_limit: 1_048_576,
            body_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            price_plans: Vec::new(),
            secrets: vec![WEBHOOK_SECRET],
            admin_token: Some(ADMIN_TOKEN),
            stripe_timeout: Duration::from_secs(5),
            push: None,
            entitled_statuses: vec!["active", "trialing", "past_due"],
            ignore_unlisted_prices: false,
            overdue_after: Duration::from_secs(48 * 3_600),
            reconcile_every: None,
            stored_payloads: StoredPayloads::Full,
            stripe_reads_per_second: 10_000,
            mode: Mode::Any,
            trust: ConnectTrust::None,
        }
    }
}

/// A running server, its database, and what a test does with both.
pub struct TestApp {
    pub address: SocketAddr,
    pub http: reqwest::Client,
    pub sql: Client,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    server: Option<JoinHandle<anyhow::Result<()>>>,
    pub database: Database,
}

/// A server's answer.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    pub fn outcome(&self) -> &str {
        self.body["outcome"].as_str().unwrap_or("no outcome")
    }

    /// The code of an error, which has exactly the contract's form.
    #[track_caller]
    pub fn error_code(&self) -> &str {
        let error = self.body["error"].as_object().unwrap_or_else(|| panic!("no error: {self:?}"));
        assert_eq!(self.body.as_object().unwrap().len(), 1, "{self:?}");
        assert_eq!(error.len(), 2, "{self:?}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{self:?}");
        error["code"].as_str().unwrap()
    }
}

impl TestApp {
    pub async fn start() -> Self {
        Self::start_with(Settings::default(), None).await
    }

    pub async fn start_with(settings: Settings, stripe: Option<&StripeApi>) -> Self {
        Self::start_on(Database::migrated(), settings, stripe).await
    }

    pub async fn start_on(database: Database, settings: Settings, stripe: Option<&StripeApi>) -> Self {
        let target = database.target();
        Self::start_at(database, target, settings, stripe).await
    }

    /// Another server on the database of `app`, with an empty database of its own that nothing uses.
    pub async fn start_beside(app: &Self, settings: Settings) -> Self {
        Self::start_at(Database::empty(), app.database.target(), settings, None).await
    }

    /// A server that reaches the database in a way of its own.
    pub async fn start_at(database: Database, target: Target, settings: Settings, stripe: Option<&StripeApi>) -> Self {
        let config = config(&settings, stripe);
        let app = Application::build(config, target).await.unwrap();
        let address = app.address();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(app.run_until_stopped(async {
            stopped.await.ok();
        }));
        let sql = database.client().await;
        // The client opens connections that it then keeps unused; after 5 s such a one is told 408, which would be taken
        // for the answer to a request that goes out on it at that moment.
        let http = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(1)).build().unwrap();
        Self { address, http, sql, stop: Mutex::new(Some(stop)), server: Some(server), database }
    }

    pub fn url(&self, path: &str) -> Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    /// Delivers an event, signed now.
    pub async fn deliver(&self, event: impl Into<Event>) -> Answer {
        self.deliver_bytes(event.into().to_string().into_bytes()).await
    }

    /// Delivers events in this order, `at_once` of them at a time; the answers are in the same order.
    pub async fn deliver_all(&self, events: &[&Event], at_once: usize) -> Vec<Answer> {
        stream::iter(events.iter().map(|&event| self.deliver(event))).buffered(at_once).collect().await
    }

    pub async fn deliver_bytes(&self, body: Vec<u8>) -> Answer {
        let signature = signature(&body);
        self.deliver_signed(body, Some(&signature)).await
    }

    pub async fn deliver_signed(&self, body: Vec<u8>, signature: Option<&str>) -> Answer {
        let mut request = self.http.post(self.url("/api/v1/webhooks/stripe")).body(body);
        if let Some(signature) = signature {
            request = request.header("Stripe-Signature", signature);
        }
        answer(request).await
    }

    /// A request of an admin.
    pub async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.http.request(method, self.url(path)).bearer_auth(ADMIN_TOKEN);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.admin(Method::GET, path, None).await
    }

    pub async fn create_account(&self, body: Value) -> Answer {
        self.admin(Method::POST, "/api/v1/accounts", Some(body)).await
    }

    /// An account with a customer, made with plain SQL as an application would.
    pub async fn account_of(&self, customer: &str) -> Uuid {
        let insert = "INSERT INTO accounts (name, stripe_customer_id) VALUES ('Acme', $1) RETURNING id";
        self.sql.query_one(insert, &[&customer]).await.unwrap().get(0)
    }

    /// An account that no customer is linked to yet.
    pub async fn account(&self) -> Uuid {
        self.sql.query_one("INSERT INTO accounts (name) VALUES ('Acme') RETURNING id", &[]).await.unwrap().get(0)
    }

    /// A local trial, made with plain SQL as an application would.
    pub async fn local_trial(&self, account: Uuid) -> Uuid {
        let insert =
            "INSERT INTO subscriptions (account_id, plan, status) VALUES ($1, 'trial', 'trialing') RETURNING id";
        self.sql.query_one(insert, &[&account]).await.unwrap().get(0)
    }

    /// The row of a Stripe subscription, as JSON.
    pub async fn subscription(&self, id: &str) -> Value {
        let rows = self.json("SELECT to_jsonb(s) FROM subscriptions s WHERE stripe_subscription_id = $1", &[&id]).await;
        match <[Value; 1]>::try_from(rows) {
            Ok([row]) => row,
            Err(rows) => panic!("{} rows for {id}", rows.len()),
        }
    }

    /// The idempotency row of an event, as JSON; null where there is none.
    pub async fn event_row(&self, id: &str) -> Value {
        let rows = self.json("SELECT to_jsonb(e) FROM stripe_events e WHERE id = $1", &[&id]).await;
        rows.into_iter().next().unwrap_or(Value::Null)
    }

    /// The first column, which is JSON, of every row.
    pub async fn json(&self, query: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Value> {
        self.sql.query(query, params).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    pub async fn count(&self, from: &str) -> i64 {
        self.one(&format!("SELECT count(*) FROM {from}")).await.get(0)
    }

    /// Waits until so many rows are there.
    pub async fn wait_for_count(&self, from: &str, rows: i64, within: Duration) {
        let started = Instant::now();
        while self.count(from).await != rows {
            assert!(started.elapsed() < within, "not {rows} rows of {from} within {within:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until no event is parked: on a busy machine, answers do not wait for all the events that they release.
    pub async fn wait_until_none_is_parked(&self) {
        self.wait_for_count("stripe_events WHERE outcome = 'parked'", 0, Duration::from_secs(30)).await;
    }

    pub async fn one(&self, query: &str) -> Row {
        self.sql.query_one(query, &[]).await.unwrap()
    }

    pub async fn execute(&self, statements: &str) {
        self.sql.batch_execute(statements).await.unwrap();
    }

    /// Tells the server to stop.
    pub fn tell_to_stop(&self) {
        if let Some(stop) = self.stop.lock().unwrap().take() {
            stop.send(()).ok();
        }
    }

    /// Waits until the server has stopped.
    pub async fn stopped(mut self) {
        self.tell_to_stop();
        self.server.take().unwrap().await.unwrap().unwrap();
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        // Told to stop, it stops by itself; the database is dropped from under whatever is left.
        self.tell_to_stop();
    }
}

/// The header of a body that is signed now.
pub fn signature(body: &[u8]) -> String {
    sign(body, &Secret::new(WEBHOOK_SECRET), Utc::now().timestamp())
}

/// Waits until the database is used again after an outage. Measured: at most 0.2 s after the database takes connections.
pub async fn answers_again(app: &TestApp) {
    let started = Instant::now();
    while app.get("/events").await.status != 200 {
        assert!(started.elapsed() < Duration::from_secs(2), "the database is not used again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until `/health` no longer answers with the result of its last check.
pub async fn next_check() {
    tokio::time::sleep(Duration::from_millis(1_050)).await;
}

pub async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| json!({"not json": text}));
    Answer { status, body }
}

pub fn config(settings: &Settings, stripe: Option<&StripeApi>) -> Config {
    // Fails where it is installed already.
    rustls::crypto::ring::default_provider().install_default().ok();
    let plans = settings.price_plans.iter().map(|(price, plan)| ((*price).to_owned(), (*plan).to_owned()));
    Config {
        bind_addr: "127.0.0.1:0".parse().unwrap(),
        webhook_secrets: settings.secrets.iter().copied().map(Secret::new).collect(),
        stripe: stripe.map(|stripe| {
            let (base, key) = (stripe.base(), Secret::new("sk_test_key"));
            api::Client::with_rate(base, key, settings.stripe_timeout, settings.stripe_reads_per_second).unwrap()
        }),
        mode: settings.mode,
        trust: settings.trust.clone(),
        admin_token: settings.admin_token.map(Secret::new),
        tolerance_secs: 300,
        plans: plans.collect(),
        pool_size: settings.pool_size,
        pool_timeout: settings.pool_timeout,
        entitlement: Entitlement {
            entitled_statuses: settings.entitled_statuses.iter().map(|status| (*status).to_owned()).collect(),
            ignore_unlisted_prices: settings.ignore_unlisted_prices,
            overdue_after: settings.overdue_after,
        },
        push: settings.push.clone(),
        reconcile_every: settings.reconcile_every,
        stored_payloads: settings.stored_payloads,
        body_limit: settings.body_limit,
        body_timeout: settings.body_timeout,
        keep_alive: settings.keep_alive,
    }
}
