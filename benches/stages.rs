//! What each pure stage of an event's way takes: time, by criterion, and what it allocates, counted once and printed
//! before it.
//!
//! `cargo bench --bench stages`. With `-- --test`, or without `cargo bench`, each runs once and nothing is timed. The
//! way through HTTP and the database is `benches/webhook`.

use std::hint::black_box;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use criterion::Criterion;
use serde_json::{Value, json};
use subledger::handlers::ordering::{self, Peer, Version};
use subledger::secret::Secret;
use subledger::stripe::signature::{Verified, sign, verify};
use subledger::stripe::{Event, PricePlans, Subscription};

const FIXTURE: &str = include_str!("../tests/fixtures/basil/customer.subscription.updated.active.json");

const TOLERANCE_SECS: u64 = 300;

/// How many events of one second a chain of previous values leads through.
const CHAIN: usize = 4;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    // Without the white space, as Stripe sends it.
    let body = Bytes::from(serde_json::from_str::<Value>(FIXTURE)?.to_string());
    println!("an event of {} bytes\n", body.len());
    let verified = verifying(&mut criterion, &body)?;
    let event = Event::parse(&verified)?;
    stage(&mut criterion, "parse", || Event::parse(black_box(&verified)));
    let data = event.data();
    let price = data.pointer("/object/items/data/0/price/id").and_then(Value::as_str).context("no price")?;
    let plans: PricePlans = [(price.to_owned(), "team".to_owned())].into_iter().collect();
    stage(&mut criterion, "project", || Subscription::project(black_box(event.object()), &plans));
    deciding(&mut criterion, &event)?;
    criterion.final_summary();
    Ok(())
}

fn verifying(criterion: &mut Criterion, body: &Bytes) -> Result<Verified> {
    let (secrets, now) = ([Secret::new("whsec_bench")], Utc::now());
    let header = sign(body, &secrets[0], now.timestamp());
    let check = || verify(Some(header.as_bytes()), black_box(body).clone(), &secrets, TOLERANCE_SECS, now);
    stage(criterion, "verify", check);
    Ok(check()?)
}

fn deciding(criterion: &mut Criterion, event: &Event) -> Result<()> {
    let created = event.created.context("no created")?;
    let version = |created: DateTime<Utc>| Version { created, is_final: false, is_birth: false };
    let (stored, newcomer) = (version(created - chrono::Duration::seconds(1)), version(created));
    stage(criterion, "decide", || ordering::compare(black_box(stored), black_box(newcomer)));
    let states: Vec<_> = (1..=CHAIN).map(|step| change(&event.data()["object"], step)).collect();
    let peers: Vec<_> = states.iter().map(|(object, previous)| Peer { object, previous: Some(previous) }).collect();
    // The state that is stored is the last one's, and the first arrives after all others.
    let decide = || ordering::newest_of(black_box(&peers), Some(CHAIN - 1), 0);
    let verdict = decide();
    if verdict.newest != CHAIN - 1 || !verdict.is_decided {
        return Err(anyhow!("the chain does not lead to its end: {verdict:?}"));
    }
    stage(criterion, "decide a tie of four events", decide);
    Ok(())
}

/// A state, and the values that its change replaced.
fn change(object: &Value, step: usize) -> (Value, Value) {
    let mut changed = object.clone();
    changed["metadata"] = json!({"step": step.to_string()});
    (changed, json!({"metadata": {"step": (step - 1).to_string()}}))
}

fn stage<T>(criterion: &mut Criterion, name: &str, mut run: impl FnMut() -> T) {
    // What is made but once is not for every event.
    drop(black_box(run()));
    let used = allocation_counter::measure(|| drop(black_box(run())));
    println!(
        "{name}: {} allocations, {} bytes, at most {} at once",
        used.count_total, used.bytes_total, used.bytes_max
    );
    criterion.bench_function(name, |bencher| bencher.iter(&mut run));
}
