//! The load: one thread a connection, each sending the next request as soon as the last one is answered.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::process::{Totals, Usage};
use crate::support::server::Server;

/// The most that one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one measurement showed.
#[derive(Clone, Debug)]
pub struct Load {
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    /// What the server used, where this system tells.
    pub usage: Option<Usage>,
    /// What the load itself took, where this system tells.
    pub client_cpu_micros: Option<f64>,
    /// How many answers had each of the outcomes that were expected.
    pub outcomes: Vec<usize>,
    /// All other answers.
    pub errors: Vec<String>,
}

impl Load {
    /// Sums up latencies, of which there must be some.
    pub fn new(per_second: f64, mut latencies: Vec<Duration>) -> Result<Self> {
        latencies.sort_unstable();
        let at = |percent| latencies.get(latencies.len() * percent / 100).copied().context("nothing was measured");
        let (p50, p99) = (at(50)?, at(99)?);
        Ok(Self { per_second, p50, p99, usage: None, client_cpu_micros: None, outcomes: vec![], errors: vec![] })
    }

    /// Fails where an answer was not as expected.
    pub fn without_errors(self) -> Result<Self> {
        ensure!(self.errors.is_empty(), "{} answers as not expected: {}", self.errors.len(), self.errors[0]);
        Ok(self)
    }
}

/// What one connection saw.
#[derive(Default)]
struct Seen {
    latencies: Vec<Duration>,
    outcomes: Vec<usize>,
    errors: Vec<String>,
}

/// [`run`] against `server`, with what the server used for it.
pub fn deliver(server: &Server, connections: usize, requests: &[Vec<u8>], outcomes: &[&str]) -> Result<Load> {
    let before = Totals::of(server.id());
    let mut load = run(server.address(), connections, requests, outcomes)?;
    load.usage = Totals::of(server.id()).zip(before).map(|(now, before)| now.since(before, requests.len()));
    Ok(load)
}

/// Sends every request once. Each should be answered with 200 and one of these outcomes.
fn run(server: SocketAddr, connections: usize, requests: &[Vec<u8>], outcomes: &[&str]) -> Result<Load> {
    let outcomes: Vec<_> = outcomes.iter().map(|outcome| format!("\"outcome\":\"{outcome}\"")).collect();
    let next = AtomicUsize::new(0);
    let start = Barrier::new(connections + 1);
    let work = || {
        let connection = Connection::open(server);
        start.wait();
        send_in_turn(connection?, &next, requests, &outcomes)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..connections).map(|_| scope.spawn(work)).collect();
        let before = Totals::own();
        start.wait();
        let started = Instant::now();
        let mut all = Seen { outcomes: vec![0; outcomes.len()], ..Seen::default() };
        for worker in workers {
            let seen = worker.join().map_err(|_| anyhow!("a connection's thread panicked"))??;
            all.latencies.extend(seen.latencies);
            all.errors.extend(seen.errors);
            all.outcomes.iter_mut().zip(seen.outcomes).for_each(|(all, seen)| *all += seen);
        }
        let per_second = requests.len() as f64 / started.elapsed().as_secs_f64();
        let used = Totals::own().zip(before).map(|(now, before)| now.since(before, requests.len()));
        Ok(Load {
            client_cpu_micros: used.map(|used| used.cpu_micros_per_event),
            outcomes: all.outcomes,
            errors: all.errors,
            ..Load::new(per_second, all.latencies)?
        })
    })
}

fn send_in_turn(
    mut connection: Connection,
    next: &AtomicUsize,
    requests: &[Vec<u8>],
    outcomes: &[String],
) -> Result<Seen> {
    let mut seen = Seen { outcomes: vec![0; outcomes.len()], ..Seen::default() };
    while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
        let sent = Instant::now();
        let answer = connection.ask(request)?;
        seen.latencies.push(sent.elapsed());
        let outcome = outcomes.iter().position(|outcome| answer.contains(outcome));
        match outcome.filter(|_| answer.starts_with("HTTP/1.1 200 ")) {
            Some(outcome) => seen.outcomes[outcome] += 1,
            None => seen.errors.push(answer.to_owned()),
        }
    }
    Ok(seen)
}

/// A keep-alive connection.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server).context("cannot connect to the server")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: vec![0; 16 << 10] })
    }

    /// Sends a request and reads the whole answer, head and body.
    fn ask(&mut self, request: &[u8]) -> Result<&str> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        loop {
            match self.stream.read(&mut self.buffer[filled..]) {
                Ok(0) => bail!("the server closed the connection, or its answer is too long"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("no answer"),
            }
            if length_of_answer(&self.buffer[..filled])?.is_some_and(|length| filled >= length) {
                return Ok(std::str::from_utf8(&self.buffer[..filled])?);
            }
        }
    }
}

/// How long the answer that begins like this is; `None` before its head has come.
fn length_of_answer(bytes: &[u8]) -> Result<Option<usize>> {
    let text = std::str::from_utf8(bytes)?;
    let Some(head) = text.find("\r\n\r\n") else {
        return Ok(None);
    };
    let length = text[..head]
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without Content-Length")?
        .1;
    Ok(Some(head + 4 + length.trim().parse::<usize>()?))
}
