//! A TCP proxy between a server and its PostgreSQL that delays, stalls, and cuts connections at chosen moments. It
//! knows nothing of the other tests, and nothing of TLS.
//!
//! Each direction of a connection has two threads: one reads and notes when, the other writes once the delay has
//! passed. So bytes come later, not more slowly, however many are on the way; and a thread sleeps more exactly than an
//! async runtime's timer.

// Named in full, so that the benchmarks can take this file with a `#[path]` of their own.
#[path = "proxy/answers.rs"]
mod answers;
#[path = "proxy/upstream.rs"]
mod upstream;

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;

use answers::Answers;
use upstream::{Socket, Upstream, url_through};

/// The proxy. Dropped, it cuts every connection and takes no more.
pub struct Proxy {
    url: String,
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Upstream,
    state: Mutex<State>,
    changed: Condvar,
    commits_lost: AtomicU64,
    cuts: AtomicU64,
    round_trips: AtomicU64,
}

/// What is to happen to connections.
#[derive(Default)]
struct State {
    links: Vec<Arc<Link>>,
    to_server: Duration,
    to_client: Duration,
    stalls_new: bool,
    /// A connection is cut after a random number of bytes, at most this many.
    cut_within: Option<u64>,
    commits_to_lose: u64,
    /// Of so many commits about one loses its answer.
    lose_one_in: Option<u64>,
    is_closed: bool,
}

/// One connection, both ways.
struct Link {
    client: Socket,
    server: Socket,
    is_cut: AtomicBool,
    is_stalled: AtomicBool,
    /// Bytes until it is cut.
    bytes_left: AtomicU64,
    /// Who spoke last.
    is_clients_turn: AtomicBool,
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    ToServer,
    ToClient,
}

/// Bytes on their way.
struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    then_cut: bool,
}

impl Proxy {
    /// A proxy before the server that `url` names, over TCP or a unix socket.
    pub fn start(url: &str) -> io::Result<Self> {
        let upstream = Upstream::of(url)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            state: Mutex::default(),
            changed: Condvar::new(),
            commits_lost: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        thread::spawn(move || accepting.accept(&listener));
        Ok(Self { url: url_through(url, address), address, shared })
    }

    /// The URL that leads through the proxy, without TLS.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Delays what is sent from now on.
    pub fn delay(&self, to_server: Duration, to_client: Duration) {
        let mut state = self.shared.state();
        (state.to_server, state.to_client) = (to_server, to_client);
    }

    /// Cuts every connection. New ones are served.
    pub fn cut_all(&self) {
        let links = std::mem::take(&mut self.shared.state().links);
        links.iter().for_each(|link| self.shared.cut(link));
    }

    /// From now on each new connection is cut after a random number of bytes both ways, mostly few, at most `bytes`; with `None`
    /// no longer, not even those that are open.
    pub fn cut_within(&self, bytes: Option<u64>) {
        let mut state = self.shared.state();
        state.cut_within = bytes;
        if bytes.is_none() {
            state.links.iter().for_each(|link| link.bytes_left.store(u64::MAX, Ordering::Relaxed));
        }
    }

    /// Cuts the connection of each of the next `count` transactions that commit: once the server has committed, and
    /// before a byte of its answer is passed on.
    pub fn lose_next_commits(&self, count: u64) {
        self.shared.state().commits_to_lose = count;
    }

    /// The same for about one in `count` transactions, drawn at random; with `None` no longer.
    pub fn lose_one_commit_in(&self, count: Option<u64>) {
        self.shared.state().lose_one_in = count;
    }

    /// Passes nothing on, closes nothing, and takes new connections, for which the same holds.
    pub fn stall(&self) {
        let mut state = self.shared.state();
        state.stalls_new = true;
        state.links.iter().for_each(|link| link.is_stalled.store(true, Ordering::Relaxed));
    }

    /// Serves new connections again. Those that were stalled stay so.
    pub fn serve_new(&self) {
        self.shared.state().stalls_new = false;
    }

    /// Ends the stall: passes on what was held back.
    pub fn resume(&self) {
        let mut state = self.shared.state();
        state.stalls_new = false;
        state.links.iter().for_each(|link| link.is_stalled.store(false, Ordering::Relaxed));
        self.shared.changed.notify_all();
    }

    /// Transactions that committed and whose answer was lost.
    pub fn commits_lost(&self) -> u64 {
        self.shared.commits_lost.load(Ordering::Relaxed)
    }

    /// Connections that were cut, for whatever reason.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::Relaxed)
    }

    /// How often a client spoke after the server had spoken, over all connections.
    pub fn round_trips(&self) -> u64 {
        self.shared.round_trips.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state().is_closed = true;
        // Wakes the thread that accepts; where it has ended already there is nothing to wake.
        TcpStream::connect(self.address).ok();
        self.cut_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.state().is_closed {
                return;
            }
            // A server that is away: the client sees its connection closed.
            if let Ok(client) = client
                && let Ok(server) = self.upstream.connect()
                && client.set_nodelay(true).is_ok()
            {
                self.link(Socket::Tcp(client), server);
            }
        }
    }

    fn link(self: &Arc<Self>, client: Socket, server: Socket) {
        let link = {
            let mut state = self.state();
            let bytes_left = state.cut_within.map_or(u64::MAX, drawn);
            let link = Arc::new(Link {
                client,
                server,
                is_cut: AtomicBool::new(false),
                is_stalled: AtomicBool::new(state.stalls_new),
                bytes_left: AtomicU64::new(bytes_left),
                is_clients_turn: AtomicBool::new(true),
            });
            state.links.retain(|link| !link.is_cut.load(Ordering::Relaxed));
            state.links.push(link.clone());
            link
        };
        for direction in [Direction::ToServer, Direction::ToClient] {
            let (pieces, queue) = channel();
            let (shared, reading) = (self.clone(), link.clone());
            thread::spawn(move || shared.read(&reading, direction, &pieces));
            let (shared, writing) = (self.clone(), link.clone());
            thread::spawn(move || shared.write(&writing, direction, queue));
        }
    }

    fn read(&self, link: &Link, direction: Direction, pieces: &Sender<Piece>) {
        let (mut buffer, mut answers) = (vec![0; 1 << 16], Answers::default());
        loop {
            let Ok(count @ 1..) = link.from(direction).read(&mut buffer) else { return };
            let arrived = Instant::now();
            let is_first_word = link.is_clients_turn.swap(direction == Direction::ToClient, Ordering::Relaxed);
            let mut bytes = &buffer[..count];
            let mut then_cut = false;
            if direction == Direction::ToClient && answers.show_a_commit(bytes) && self.loses_commit() {
                (bytes, then_cut) = (&[], true);
            }
            if direction == Direction::ToServer && is_first_word {
                self.round_trips.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(left) = link.spend(bytes.len()) {
                (bytes, then_cut) = (&bytes[..left], true);
            }
            let due = arrived + self.delay_of(direction);
            if pieces.send(Piece { due, bytes: bytes.to_vec(), then_cut }).is_err() || then_cut {
                return;
            }
        }
    }

    fn write(&self, link: &Link, direction: Direction, queue: Receiver<Piece>) {
        for piece in queue {
            thread::sleep(piece.due.saturating_duration_since(Instant::now()));
            self.wait_while_stalled(link);
            if link.to(direction).write_all(&piece.bytes).is_err() || piece.then_cut {
                return self.cut(link);
            }
        }
        // The reader met the end: pass that on too. What cannot be shut down has ended already.
        link.to(direction).shutdown(Shutdown::Write).ok();
        if direction == Direction::ToClient {
            link.is_cut.store(true, Ordering::Relaxed);
        }
    }

    fn wait_while_stalled(&self, link: &Link) {
        if !link.is_stalled.load(Ordering::Relaxed) {
            return;
        }
        let is_held = |_: &mut State| link.is_stalled.load(Ordering::Relaxed) && !link.is_cut.load(Ordering::Relaxed);
        drop(self.changed.wait_while(self.state(), is_held));
    }

    fn delay_of(&self, direction: Direction) -> Duration {
        let state = self.state();
        if direction == Direction::ToServer { state.to_server } else { state.to_client }
    }

    /// Whether this commit's answer is one to lose.
    fn loses_commit(&self) -> bool {
        let mut state = self.state();
        let is_next = state.commits_to_lose > 0;
        state.commits_to_lose = state.commits_to_lose.saturating_sub(1);
        let is_lost = is_next || state.lose_one_in.is_some_and(|count| rand::rng().random_range(0..count.max(1)) == 0);
        self.commits_lost.fetch_add(is_lost.into(), Ordering::Relaxed);
        is_lost
    }

    fn cut(&self, link: &Link) {
        if !link.is_cut.swap(true, Ordering::Relaxed) {
            self.cuts.fetch_add(1, Ordering::Relaxed);
        }
        for socket in [&link.client, &link.server] {
            // What cannot be shut down has ended already.
            socket.shutdown(Shutdown::Both).ok();
        }
        // Nobody may be between looking and waiting.
        let _state = self.state();
        self.changed.notify_all();
    }
}

/// A number of bytes at most, as often a tenth of another as not: some connections end before they are open, and some
/// last long enough for any transaction.
fn drawn(most: u64) -> u64 {
    (most as f64).powf(rand::rng().random_range(0.4..=1.0)) as u64
}

impl Link {
    fn from(&self, direction: Direction) -> &Socket {
        if direction == Direction::ToServer { &self.client } else { &self.server }
    }

    fn to(&self, direction: Direction) -> &Socket {
        if direction == Direction::ToServer { &self.server } else { &self.client }
    }

    /// Counts bytes; how many of them may still pass, where it is to be cut among them.
    fn spend(&self, count: usize) -> Option<usize> {
        let spend = |left: u64| (left != u64::MAX).then(|| left.saturating_sub(count as u64));
        let left = self.bytes_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).ok()?;
        usize::try_from(left).ok().filter(|left| *left <= count)
    }
}
