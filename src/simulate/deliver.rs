//! Sends a queue of jobs as Stripe and the application would: in parallel, at least once, again after anything but a
//! 2xx. It does not judge what comes of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use rand::RngExt;
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;

use super::model::{Account, Life, Link};
use super::payload;
use super::progress::Progress;
use super::queue::{Delivery, Job};
use super::server::Server;
use super::stripe::Happened;
use super::tally::Tally;
use super::thin::{self, Form};
use crate::stripe::signature::sign;

/// The first pause before a retry; each one is twice as long as the one before.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What the webhook answers.
#[derive(Deserialize)]
struct Answer {
    applied: bool,
    outcome: String,
}

/// Sends everything.
pub(super) struct Sender {
    pub(super) client: Client,
    pub(super) server: Server,
    pub(super) lives: Arc<Vec<Life>>,
    pub(super) happened: Arc<Happened>,
    /// How long one thing is tried.
    pub(super) give_up_after: Duration,
    pub(super) tally: Mutex<Tally>,
    /// Nothing went through for so long that the rest is not tried.
    pub(super) is_abandoned: AtomicBool,
}

impl Sender {
    /// Works through `jobs`, `parallel` at a time.
    pub(super) async fn run(self: &Arc<Self>, jobs: Vec<Job>, parallel: usize, progress: &Arc<Progress>) {
        let (jobs, next) = (Arc::new(jobs), Arc::new(AtomicUsize::new(0)));
        let mut workers = JoinSet::new();
        for _ in 0..parallel {
            let (sender, jobs, next, progress) = (self.clone(), jobs.clone(), next.clone(), progress.clone());
            workers.spawn(async move {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if sender.is_abandoned.load(Ordering::Relaxed) {
                        return;
                    }
                    sender.work(job).await;
                    progress.advance();
                }
            });
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                self.tally(|tally| tally.problems.push(format!("a worker died: {error}")));
            }
        }
    }

    async fn work(&self, job: &Job) {
        match job {
            Job::Deliver(delivery) => self.deliver(*delivery).await,
            Job::CreateAccount { account } => self.create_account(account).await,
            Job::LinkCustomer { account } => self.link_customer(account).await,
        }
    }

    /// Delivers an event until it is taken.
    async fn deliver(&self, delivery: Delivery) {
        let Some(life) = self.lives.get(delivery.life) else { return };
        let event = match delivery.form {
            Form::Snapshot => payload::event(life, delivery.occurrence),
            form => thin::notification(life, delivery.occurrence, form),
        };
        let Some(event) = event else { return };
        let occurrence = &life.occurrences[delivery.occurrence];
        let event_type = occurrence.what.event_type();
        self.happened.reach(delivery.life, delivery.occurrence + delivery.lead);
        let body = bytes::Bytes::from(event.to_string());
        // All forms of one event are one event.
        let name = &thin::recorded_id(occurrence, delivery.form);
        let taken = self.persist(name, || async {
            let started = Instant::now();
            let answer = self.post_event(body.clone()).await?;
            Ok((answer, started.elapsed()))
        });
        if let Some((answer, latency)) = taken.await {
            self.tally(|tally| tally.taken(name, event_type, answer.applied, &answer.outcome, latency));
        }
    }

    /// One attempt; the signature is made anew each time, as Stripe does.
    async fn post_event(&self, body: bytes::Bytes) -> Result<Answer, String> {
        let request = self
            .client
            .post(self.server.webhook.clone())
            .header("Stripe-Signature", sign(&body, &self.server.secret, Utc::now().timestamp()))
            .header("Content-Type", "application/json");
        let response = request.body(body).send().await.map_err(|error| lost(&error))?;
        match response.status() {
            status if status.is_success() => {
                response.json().await.map_err(|error| format!("200 with an answer that cannot be read: {error}"))
            }
            _ => Err(refusal(response).await),
        }
    }

    /// Makes an account, with its customer where that is how they come together.
    pub(super) async fn create_account(&self, account: &Account) {
        let customer = matches!(account.link, Link::CustomerBefore | Link::CustomerDuring);
        let mut body = json!({"id": account.id, "name": format!("Account of {}", account.customer_id)});
        if customer {
            body["stripe_customer_id"] = account.customer_id.clone().into();
        }
        let name = format!("account {}", account.id);
        let made = self.persist(&name, || async {
            let request = self.client.post(self.server.accounts.clone()).json(&body);
            // A conflict: it was made, and the answer was lost. Were it somebody else's, the comparison would tell.
            self.send_as_admin(request, &[StatusCode::CONFLICT]).await
        });
        if made.await.is_some() {
            self.tally(|tally| tally.accounts += 1);
        }
    }

    async fn link_customer(&self, account: &Account) {
        let url = format!("{}/{}", self.server.accounts, account.id);
        let body = json!({"stripe_customer_id": account.customer_id});
        let name = format!("link of account {}", account.id);
        self.persist(&name, || self.send_as_admin(self.client.patch(&url).json(&body), &[])).await;
    }

    async fn send_as_admin(&self, request: reqwest::RequestBuilder, also_fine: &[StatusCode]) -> Result<(), String> {
        let request = request.bearer_auth(self.server.admin_token.expose());
        let response = request.send().await.map_err(|error| lost(&error))?;
        if response.status().is_success() || also_fine.contains(&response.status()) {
            return Ok(());
        }
        Err(refusal(response).await)
    }

    /// Tries again, with growing pauses, until it succeeds or has been tried for too long.
    async fn persist<T, F>(&self, name: &str, mut attempt: impl FnMut() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, String>>,
    {
        let started = Instant::now();
        let mut pause = SHORTEST_PAUSE;
        loop {
            let reason = match attempt().await {
                Ok(done) => {
                    self.tally(|tally| tally.last_success = Some(Instant::now()));
                    return Some(done);
                }
                Err(reason) => reason,
            };
            if started.elapsed() >= self.give_up_after || self.is_abandoned.load(Ordering::Relaxed) {
                self.give_up(name, &reason, started);
                return None;
            }
            self.tally(|tally| *tally.retries.entry(reason).or_default() += 1);
            // Not seeded: it makes up for what the network does, which is not either.
            let jitter = rand::rng().random_range(0.5..1.5);
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn give_up(&self, name: &str, reason: &str, started: Instant) {
        self.tally(|tally| {
            tally.problems.push(format!("{name} was given up: {reason}"));
            if tally.last_success.is_none_or(|success| success < started) {
                self.is_abandoned.store(true, Ordering::Relaxed);
            }
        });
    }

    fn tally(&self, change: impl FnOnce(&mut Tally)) {
        // A tally is whole after each change, whoever died after it.
        change(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// In few words, so that equal ones can be counted.
fn lost(error: &reqwest::Error) -> String {
    let what = if error.is_connect() {
        "no connection"
    } else if error.is_timeout() {
        "no answer in time"
    } else {
        "connection lost"
    };
    what.to_owned()
}

async fn refusal(response: Response) -> String {
    let status = response.status().as_u16();
    let body: Option<serde_json::Value> = response.json().await.ok();
    let code = body.as_ref().and_then(|body| body.pointer("/error/code")?.as_str());
    format!("{status} {}", code.unwrap_or("without a code"))
}
