//! A database that is stopped, or falls silent: after the first moment every call is refused at once, and the first answer of
//! the database ends it. The log names the cause once.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::support::app::{ADMIN_TOKEN, signature};
use crate::support::binary::Server;
use crate::support::cluster::{Cluster, USER};
use crate::support::database::Database;
use crate::support::proxy::Proxy;
use crate::support::simulation::serve;
use crate::support::{Event, Settings, TestApp};

/// The program, with some of its routes called as clients do.
struct Program {
    server: Server,
    http: reqwest::Client,
}

/// The status of an answer, whether it names a time to come again, and how long it took.
#[derive(Debug)]
struct Told {
    status: u16,
    retries_later: bool,
    after: Duration,
}

impl Program {
    fn start(database_url: &str) -> Self {
        rustls::crypto::ring::default_provider().install_default().ok();
        Self { server: serve(database_url), http: reqwest::Client::new() }
    }

    async fn deliver(&self, id: &str) -> Told {
        let body = Event::new(id, "some.thing", 100, json!({"id": "thing_1"})).to_string();
        let request = self.http.post(self.server.url("/api/v1/webhooks/stripe"));
        told(request.header("Stripe-Signature", signature(body.as_bytes())).body(body)).await
    }

    async fn call(&self, method: Method, path: &str) -> Told {
        let request = self.http.request(method, self.server.url(path)).bearer_auth(ADMIN_TOKEN);
        told(request.json(&json!({"name": "Acme"}))).await
    }

    /// One call of each kind; they share the circuit breaker.
    async fn call_each(&self, number: usize) -> Vec<Told> {
        vec![
            self.deliver(&format!("evt_refused_{number}")).await,
            self.call(Method::GET, "/events").await,
            self.call(Method::POST, "/api/v1/accounts").await,
            self.call(Method::GET, "/health").await,
        ]
    }

    /// How long it takes until a delivery is taken.
    async fn taken_after(&self, id: &str) -> Duration {
        let started = Instant::now();
        while self.deliver(id).await.status != 200 {
            assert!(started.elapsed() < Duration::from_secs(30), "no delivery is taken");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        started.elapsed()
    }

    /// Ends the program; the log names the beginning and the end of one outage, its cause, and no single call.
    fn check_log(mut self, cause: &str) {
        self.server.child.kill().unwrap();
        let log = self.server.log_to_the_end();
        let of_outage: Vec<_> = log.iter().filter(|line| line.contains(cause)).collect();
        assert!(
            matches!(of_outage.as_slice(), [begun, ended]
                if begun.contains("is out of reach") && ended.contains("answers again")),
            "{log:#?}"
        );
        let problems = log.iter().filter(|line| line.contains("ERROR") || line.contains("WARN")).count();
        assert_eq!(problems, 1, "{log:#?}");
    }
}

async fn told(request: reqwest::RequestBuilder) -> Told {
    let started = Instant::now();
    let response = request.send().await.unwrap();
    let retries_later = response.headers().contains_key("retry-after");
    Told { status: response.status().as_u16(), retries_later, after: started.elapsed() }
}

/// Every call is answered 503 at once: after the moment in which the outage may end, 200 ms.
async fn check_refused_at_once(program: &Program) {
    for number in 0..5 {
        let calls = program.call_each(number).await;
        assert!(calls.iter().all(|told| told.status == 503 && told.after < Duration::from_millis(800)), "{calls:?}");
        assert!(calls.iter().take(3).all(|told| told.retries_later), "{calls:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_stopped_is_noticed_at_once_and_used_again_within_a_second_of_its_start() {
    let mut cluster = Cluster::start().await;
    let program = Program::start(&format!("postgres://{USER}@{}/app", cluster.host()));
    assert_eq!(program.deliver("evt_1").await.status, 200);
    cluster.stop();
    // Measured: 0.2 s, in which no other session receives anything.
    let first = program.deliver("evt_2").await;
    assert!(first.status == 503 && first.retries_later && first.after < Duration::from_millis(1_500), "{first:?}");
    check_refused_at_once(&program).await;
    cluster.start_on_same_port();
    // Measured: 0.4 s.
    let after = program.taken_after("evt_2").await;
    assert!(after < Duration::from_millis(1_500), "{after:?}");
    program.check_log("Connection refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_falls_silent_is_noticed_before_calls_time_out_and_used_again_once_it_answers() {
    let database = Database::migrated();
    let proxy = Proxy::start(&database.url()).unwrap();
    let program = Program::start(proxy.url());
    assert_eq!(program.deliver("evt_1").await.status, 200);
    proxy.stall();
    // Measured: 1.9 s for all of them: 0.4 s until it is suspected, 1.5 s for an answer.
    let ids: Vec<_> = (0..20).map(|number| format!("evt_held_{number}")).collect();
    for told in join_all(ids.iter().map(|id| program.deliver(id))).await {
        assert!(told.status == 503 && told.retries_later && told.after < Duration::from_millis(4_500), "{told:?}");
    }
    check_refused_at_once(&program).await;
    proxy.resume();
    // Measured: 0.4 s.
    let after = program.taken_after("evt_2").await;
    assert!(after < Duration::from_millis(1_500), "{after:?}");
    program.check_log("the server does not answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_connections_wait_for_locks_is_not_out_of_reach() {
    let app = TestApp::start_with(Settings { pool_size: 4, ..Settings::default() }, None).await;
    let locker = app.database.client().await;
    locker.batch_execute("BEGIN; LOCK TABLE stripe_events IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let delivery = app.deliver(Event::new("evt_1", "some.thing", 100, json!({"id": "thing_1"})));
    let calls = async {
        // Longer than it takes to notice that a server has fallen silent, shorter than the delivery waits for the lock.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        assert_eq!(app.get("/api/v1/accounts").await.status, 200);
        assert_eq!(app.get("/health").await.status, 200);
        locker.batch_execute("ROLLBACK").await.unwrap();
    };
    let (delivered, ()) = tokio::join!(delivery, calls);
    assert_eq!((delivered.status, delivered.outcome()), (200, "ignored"), "{delivered:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_new_connections_is_used_over_those_that_it_has() {
    let cluster = Cluster::start().await;
    let program = Program::start(&format!("postgres://{USER}@{}/app", cluster.host()));
    let deliver_some = async |round: usize| {
        let ids: Vec<_> = (0..16).map(|number| format!("evt_{round}_{number}")).collect();
        join_all(ids.iter().map(|id| program.deliver(id))).await
    };
    deliver_some(0).await;
    // A smart shutdown: the server waits until all sessions have ended, and tells others 57P03.
    let terminate = "COPY (SELECT) TO PROGRAM 'kill -TERM $(head -n 1 postmaster.pid)'";
    cluster.client("app").await.batch_execute(terminate).await.unwrap();
    // It needs a connection of those in reserve, of which none is open yet.
    let mut health = std::pin::pin!(program.call(Method::GET, "/health"));
    for round in 1.. {
        let told = tokio::select! {
            told = &mut health => {
                assert!(told.status == 503 && round > 1, "{round}: {told:?}");
                break;
            }
            told = deliver_some(round) => told,
        };
        assert!(told.iter().all(|told| told.status == 200), "{round}: {told:?}");
    }
}
