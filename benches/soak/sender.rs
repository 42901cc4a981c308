//! One client of the soak: what it sends, in which mix, and what it expects to be told.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::support::client::Client;
use crate::support::events::{Events, id};
use crate::support::server::Server;

/// What all clients have sent, by what came of it.
#[derive(Debug, Default)]
pub struct Sent {
    /// Told 200 for the first time.
    pub acknowledged: AtomicU64,
    duplicates: AtomicU64,
    /// Told 503, as on a machine that has too much to do: nothing is recorded, and a later repeat may be.
    turned_away: AtomicU64,
    refused: AtomicU64,
    reads: AtomicU64,
    /// Sent whole, and not waited for: recorded or not.
    unknown: AtomicU64,
    broken_off: AtomicU64,
}

impl Sent {
    /// Holds what is recorded against what was acknowledged.
    pub fn compare_with(&self, recorded: u64) -> Result<()> {
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        let most = acknowledged + self.unknown.load(Ordering::Relaxed);
        ensure!(recorded >= acknowledged, "{acknowledged} were acknowledged, and only {recorded} are recorded");
        ensure!(recorded <= most, "only {most} were sent, and {recorded} are recorded");
        Ok(())
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} first deliveries, {} duplicates, {} turned away, {} bad signatures, {} reads, {} not waited for, {} broken off",
            of(&self.acknowledged),
            of(&self.duplicates),
            of(&self.turned_away),
            of(&self.refused),
            of(&self.reads),
            of(&self.unknown),
            of(&self.broken_off),
        )
    }
}

pub struct Sender<'a> {
    client: Client,
    events: &'a Events,
    server: &'a Server,
    sent: &'a Sent,
    /// The next event's number; those of all clients are distinct.
    next: u64,
    step: u64,
}

impl<'a> Sender<'a> {
    pub fn new(number: u32, of: u32, events: &'a Events, server: &'a Server, sent: &'a Sent) -> Result<Self> {
        let client = Client::open(server.address())?;
        Ok(Self { client, events, server, sent, next: number.into(), step: of.into() })
    }

    /// Sends one after the other until the time has come.
    pub fn run(mut self, deadline: Instant) -> Result<()> {
        let mut turn = self.next * 7;
        while Instant::now() < deadline {
            turn += 1;
            match turn % 100 {
                0..70 => self.first_delivery()?,
                70..84 => self.duplicate()?,
                84..90 => self.bad_signature()?,
                90..96 => self.read(turn)?,
                96 | 97 => self.leave_without_the_answer()?,
                _ => self.break_off()?,
            }
        }
        Ok(())
    }

    fn take(&mut self) -> u64 {
        self.next += self.step;
        self.next
    }

    fn first_delivery(&mut self) -> Result<()> {
        let n = self.take();
        let answer = self.client.ask(&self.events.request(n, self.server.secret()))?;
        if answer.status == 503 {
            count(&self.sent.turned_away);
            return Ok(());
        }
        ensure!(answer.status == 200 && answer.body.contains("\"applied\":true"), "{}: {}", answer.status, answer.body);
        count(&self.sent.acknowledged);
        Ok(())
    }

    /// The last event again, which may be one that was broken off or not waited for, and then is a first delivery.
    fn duplicate(&mut self) -> Result<()> {
        let request = self.events.request(self.next, self.server.secret());
        let answer = self.client.ask(&request)?;
        if answer.status == 503 {
            count(&self.sent.turned_away);
            return Ok(());
        }
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.body);
        let is_first = answer.body.contains("\"applied\":true");
        count(if is_first { &self.sent.acknowledged } else { &self.sent.duplicates });
        Ok(())
    }

    fn bad_signature(&mut self) -> Result<()> {
        let mut request = self.events.request(self.next, self.server.secret());
        // The end of the payload, within its last braces' space.
        request.pop();
        request.push(b' ');
        let answer = self.client.ask(&request)?;
        ensure!(answer.status == 400 && answer.body.contains("invalid_signature"), "{}", answer.body);
        count(&self.sent.refused);
        Ok(())
    }

    fn read(&mut self, turn: u64) -> Result<()> {
        let event = id(self.next);
        let path = match turn / 100 % 200 {
            // The overview counts the whole day; nobody asks for it a hundred times a second.
            0 => "/admin".to_owned(),
            n if n % 4 == 1 => "/events?limit=20".to_owned(),
            n if n % 4 == 2 => "/metrics".to_owned(),
            n if n % 4 == 3 => "/health".to_owned(),
            _ => format!("/events/{event}"),
        };
        let answer = self.client.get(&path)?;
        // An event that was not waited for may not be there.
        ensure!(answer.status == 200 || answer.status == 404 && path.ends_with(&event), "{path}: {}", answer.status);
        count(&self.sent.reads);
        Ok(())
    }

    fn leave_without_the_answer(&mut self) -> Result<()> {
        let n = self.take();
        self.client.send(&self.events.request(n, self.server.secret()))?;
        count(&self.sent.unknown);
        self.client.abort()
    }

    fn break_off(&mut self) -> Result<()> {
        let request = self.events.request(self.next, self.server.secret());
        self.client.send(&request[..request.len() / 2])?;
        count(&self.sent.broken_off);
        self.client.abort()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
