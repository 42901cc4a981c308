//! `simulate`: a load of whole subscription lives, sent as Stripe sends them; then the tables are compared with the
//! truth. It writes to the database as an application does (a local trial), and otherwise through the server alone.

mod billing;
mod chain;
mod compare;
mod deliver;
mod ids;
mod life;
mod model;
mod objects;
mod payload;
mod previous;
mod progress;
mod queue;
mod server;
mod steps;
mod stripe;
mod tables;
mod tally;
#[cfg(test)]
mod tests;
mod thin;
mod truth;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::DateTime;
use diesel_async::SimpleAsyncConnection;
use rand::RngExt;
use reqwest::Client;

use crate::cli::Outcome;
use crate::cli::target::{self, Database, Target};
use crate::config::Options;
use crate::db::{Conn, events, subscriptions};
use crate::stripe::PricePlans;
use compare::{Comparison, Expected};
use deliver::Sender;
use ids::Ids;
use model::{Account, Life};
use progress::Progress;
use server::Server;
use stripe::Happened;
use tally::{Tally, listed};
use thin::{Form, Forms};

/// How long events may stay parked that the last delivery should have released, without any of them being applied.
const SWEEP_PATIENCE: Duration = Duration::from_secs(60);

/// How many differences are shown.
const SHOWN: usize = 40;

/// The load, and where it goes. Everything is drawn from the seed: the same seed gives the same lives in the same
/// order. Ids carry the seed and the run's tag, which is a new one each time, so that runs never meet in a database.
#[derive(clap::Args, Debug)]
pub(crate) struct Simulate {
    /// Customers whose lives are sent
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    customers: u32,
    /// How many of a hundred events come again
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=90))]
    duplicates: u32,
    /// Deliveries at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    parallel: u32,
    /// What everything is drawn from [default: a random one, which is printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The tag that sets the ids of this run apart [default: a random one]; one that was used is refused
    #[arg(long, value_name = "TAG", value_parser = tag)]
    run: Option<String>,
    /// How long one event is tried before it is given up
    #[arg(long, value_name = "SECS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    give_up_after: u32,
    /// Serve a stand-in for Stripe's API here; the server has to be started with STRIPE_SECRET_KEY set and
    /// STRIPE_API_BASE=http://ADDR
    #[arg(long, value_name = "ADDR")]
    stripe_api: Option<std::net::SocketAddr>,
    /// The form of the events: snapshots, thin notifications, or each event both ways
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Forms::Snapshot)]
    #[arg(requires_ifs([("thin", "stripe_api"), ("both", "stripe_api")]))]
    forms: Forms,
    /// The same as --forms thin
    #[arg(long, conflicts_with = "forms", requires = "stripe_api")]
    thin: bool,
    #[command(flatten)]
    target: Target,
}

fn tag(text: &str) -> Result<String, String> {
    let is_fit = (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_fit { Ok(text.to_owned()) } else { Err("a tag is 1 to 20 letters and digits".to_owned()) }
}

/// One run: everything that was drawn, and how to reach what it concerns.
struct Run {
    seed: u64,
    tag: String,
    lives: Arc<Vec<Life>>,
    happened: Arc<Happened>,
    database: Database,
    sender: Arc<Sender>,
    plans: PricePlans,
}

impl Simulate {
    /// Runs the load and compares; any difference is a failure, and says how to repeat it.
    pub(crate) async fn run(&self, options: &Options) -> Outcome {
        let seed = self.seed.unwrap_or_else(|| rand::rng().random::<u32>().into());
        let run = self.prepare(options, seed)?;
        run.sender.server.check(&run.sender.client).await?;
        let stand_in = match self.stripe_api {
            Some(address) => Some(stripe::serve(address, run.happened.clone())?),
            None => None,
        };
        let result = self.simulate(&run).await;
        if let Some(stand_in) = stand_in {
            stand_in.stop(false).await;
        }
        result.map_err(|error| anyhow::anyhow!("{error:#}\nto repeat it: {}", self.command(seed)))
    }

    async fn simulate(&self, run: &Run) -> Outcome {
        self.make_accounts(run).await?;
        let took = self.deliver(run).await;
        self.judge(run, took).await
    }

    fn prepare(&self, options: &Options, seed: u64) -> Result<Run> {
        let tag = self.run.clone().unwrap_or_else(|| hex::encode(rand::rng().random::<[u8; 3]>()));
        let lives = Arc::new(life::lives(seed, self.customers as usize, &Ids::new(seed, &tag)));
        let happened = Arc::new(Happened::nothing(lives.clone()));
        let client = Client::builder().connect_timeout(Duration::from_secs(2)).timeout(Duration::from_secs(40));
        let sender = Sender {
            client: client.build()?,
            server: Server::of(&self.target, options)?,
            lives: lives.clone(),
            happened: happened.clone(),
            give_up_after: Duration::from_secs(self.give_up_after.into()),
            tally: Mutex::new(Tally::default()),
            is_abandoned: AtomicBool::new(false),
        };
        Ok(Run {
            seed,
            tag,
            lives,
            happened,
            database: target::database(options)?,
            sender: Arc::new(sender),
            plans: options.price_plans()?,
        })
    }

    /// The accounts that are there before any event, and the trials that the application gave them.
    async fn make_accounts(&self, run: &Run) -> Outcome {
        let mut conn = run.database.connect().await.context("cannot connect to the database")?;
        let is_used = |ids: Vec<(String, String)>| !ids.is_empty();
        let first = run.lives.first().and_then(|life| life.occurrences.first());
        let ids = first.map(|first| [Form::Snapshot, Form::Thin].map(|form| thin::recorded_id(first, form)));
        let ids: Vec<_> = ids.iter().flatten().map(String::as_str).collect();
        if is_used(events::outcomes(&mut conn, &ids).await.context("cannot read the database")?) {
            bail!("--run: the events of seed {} and run {} are in this database already", run.seed, run.tag);
        }
        let before: Vec<_> = accounts(&run.lives).filter(|account| account.link.has_account_before()).collect();
        for account in &before {
            run.sender.create_account(account).await;
        }
        if let Some(account) = before.first() {
            let found = crate::db::accounts::find(&mut conn, account.id).await?;
            ensure!(found.is_some(), "the server keeps another database than the one that is compared (DATABASE_URL)");
        }
        for account in before {
            if let Some(plan) = account.local_plan {
                let since = DateTime::from_timestamp(account.local_row_since, 0).unwrap_or_default();
                subscriptions::insert_local(&mut conn, account.id, plan, "trialing", since).await?;
            }
        }
        Ok(())
    }

    async fn deliver(&self, run: &Run) -> Duration {
        let jobs = queue::shuffled(run.seed, &run.lives, self.duplicates, self.forms());
        println!(
            "seed {}, run {}: {} customers, {} subscriptions, {} events, {} jobs, {} at a time",
            run.seed,
            run.tag,
            self.customers,
            run.lives.len(),
            run.lives.iter().map(|life| life.occurrences.len()).sum::<usize>(),
            jobs.len(),
            self.parallel,
        );
        let progress = Arc::new(Progress::of(jobs.len(), "sent"));
        let started = Instant::now();
        run.sender.run(jobs, self.parallel as usize, &progress).await;
        progress.finish();
        started.elapsed()
    }

    /// Prints what came of it; a failure where anything is not as it has to be.
    async fn judge(&self, run: &Run, took: Duration) -> Outcome {
        let problems = {
            let mut tally = run.sender.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.print(took);
            std::mem::take(&mut tally.problems)
        };
        for problem in problems.iter().take(SHOWN) {
            println!("problem: {problem}");
        }
        if run.sender.is_abandoned.load(Ordering::Relaxed) {
            bail!("nothing went through for {} s; the rest was not sent and nothing compared", self.give_up_after);
        }
        let comparison = self.compare(run).await?;
        let differences = &comparison.differences;
        for difference in differences.iter().take(SHOWN) {
            println!("difference: {difference}");
        }
        println!(
            "{} subscriptions, {} changes of them and the features of {} customers compared; recorded events: {}",
            comparison.subscriptions,
            comparison.changes,
            comparison.customers,
            listed(&comparison.outcomes)
        );
        if comparison.is_all_lost() {
            println!("is DATABASE_URL the database of this server?");
        }
        self.print_fetches(run, &comparison);
        ensure!(
            differences.is_empty() && problems.is_empty(),
            "{} differences and {} problems",
            differences.len(),
            problems.len()
        );
        println!("the tables show the truth");
        Ok(())
    }

    fn print_fetches(&self, run: &Run, comparison: &Comparison) {
        let undecided = run.lives.iter().filter(|life| life.is_for_stripe_to_decide).count();
        if self.stripe_api.is_none() {
            println!("left out: {} states that only a fetch can decide (see --stripe-api)", comparison.left_out);
            return;
        }
        println!("{undecided} were for a fetch to decide; the stand-in was asked {} times", run.happened.questions());
        if run.happened.questions() == 0 {
            println!("was the server started with STRIPE_SECRET_KEY and STRIPE_API_BASE?");
        }
    }

    /// Compares; a database that is just coming back is waited for.
    async fn compare(&self, run: &Run) -> Result<Comparison> {
        let started = Instant::now();
        let (mut parked, mut last_progress) = (usize::MAX, started);
        let (lives, plans, can_fetch) = (&run.lives, &run.plans, self.stripe_api.is_some());
        let expected = Expected { lives, forms: self.forms(), plans, can_fetch };
        loop {
            let attempt = async {
                let mut conn: Conn = run.database.connect_read_only().await?;
                // One snapshot of all tables: a sweep may just be applying what was parked.
                conn.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
                anyhow::Ok(expected.compare(&mut conn).await?)
            };
            match attempt.await {
                // What a lost connection kept from being applied, the server's next sweep applies.
                Ok(comparison) if comparison.parked() > 0 && last_progress.elapsed() < SWEEP_PATIENCE => {
                    if comparison.parked() < parked {
                        (parked, last_progress) = (comparison.parked(), Instant::now());
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok(comparison) => return Ok(comparison),
                Err(error) if started.elapsed() >= run.sender.give_up_after => {
                    return Err(error.context("cannot read the database"));
                }
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    fn forms(&self) -> Forms {
        if self.thin { Forms::Thin } else { self.forms }
    }

    /// The command that repeats the run; what the environment said is left to it.
    fn command(&self, seed: u64) -> String {
        let Self { customers, duplicates, parallel, give_up_after, .. } = self;
        let mut command = format!(
            "subledger simulate --seed {seed} --customers {customers} --duplicates {duplicates} \
             --parallel {parallel} --give-up-after {give_up_after}"
        );
        if let Some(address) = self.stripe_api {
            command += &format!(" --stripe-api {address}");
        }
        match self.forms() {
            Forms::Snapshot => {}
            Forms::Thin => command += " --forms thin",
            Forms::Both => command += " --forms both",
        }
        if let Some(url) = self.target.given() {
            command += &format!(" --url {url}");
        }
        command
    }
}

/// Each account once.
fn accounts(lives: &[Life]) -> impl Iterator<Item = &Account> {
    let is_new = |index: usize| index == 0 || lives[index - 1].account.id != lives[index].account.id;
    lives.iter().enumerate().filter(move |(index, _)| is_new(*index)).map(|(_, life)| &life.account)
}
