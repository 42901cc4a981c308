//! Connections of clients: closes those on which nothing happens, makes room when there are many, and notices clients
//! that are gone.
//!
//! actix bounds the time of a connection's first head, and of waiting for the next request to begin. It does not bound
//! a second head that comes a byte at a time, a body that nobody reads, or a client that does not read its answers.

use std::any::Any;
use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::body::MessageBody;
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::rt::task::JoinHandle;
use actix_web::{Error, HttpRequest};

/// How often a client is looked for that has gone.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A connection on which the server has waited for its client for this long gives way to newcomers.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a newcomer looks for a connection that gives way.
const EVICTION_INTERVAL: Duration = Duration::from_millis(100);

/// All connections of clients. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Connections {
    entries: Arc<Mutex<HashMap<u64, Entry>>>,
    next_id: Arc<AtomicU64>,
    /// With more connections than this, one gives way to each newcomer.
    crowd: usize,
}

#[derive(Debug)]
struct Entry {
    /// A second handle on the socket, to look at and to shut, never to read from.
    socket: Arc<TcpStream>,
    /// Since when the server has waited for the client: for a request, or for the rest of a body. `None` while the
    /// server works for the client.
    waiting_since: Option<Instant>,
    is_reading: bool,
    /// Whether a request on it was signed by Stripe or authorized by an admin.
    is_trusted: bool,
}

/// The connection of a request.
struct Connection {
    handle: Handle,
    socket: Arc<TcpStream>,
    watch: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.watch.abort();
        self.handle.connections.lock().remove(&self.handle.id);
    }
}

/// Refers to a connection; what it refers to may be closed already.
#[derive(Clone)]
struct Handle {
    id: u64,
    connections: Connections,
}

impl Handle {
    fn of(request: &HttpRequest) -> Option<Self> {
        request.conn_data::<Connection>().map(|connection| connection.handle.clone())
    }

    fn update(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.connections.lock().get_mut(&self.id) {
            change(entry);
        }
    }
}

/// The client took a part of an answer that goes on: the time without a request begins anew.
pub fn touch(request: &HttpRequest) {
    if let Some(handle) = Handle::of(request) {
        handle.update(|entry| entry.waiting_since = Some(Instant::now()));
    }
}

impl Connections {
    /// For a server that serves at most `limit` connections at once.
    pub fn new(limit: usize) -> Self {
        Self { entries: Arc::default(), next_id: Arc::default(), crowd: limit - limit / 4 }
    }

    /// For `HttpServer::on_connect`: remembers each connection, and closes it if no request is under way for `limit`.
    pub fn on_connect(&self, limit: Duration) -> impl Fn(&dyn Any, &mut Extensions) + Send + Sync + 'static {
        let connections = self.clone();
        move |connection, extensions| {
            if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>()
                && let Ok(fd) = stream.as_fd().try_clone_to_owned()
            {
                extensions.insert(connections.add(Arc::new(TcpStream::from(fd)), limit));
            }
        }
    }

    fn add(&self, socket: Arc<TcpStream>, limit: Duration) -> Connection {
        let mut entries = self.lock();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let waiting_since = Some(Instant::now());
        let entry = Entry { socket: Arc::clone(&socket), waiting_since, is_reading: false, is_trusted: false };
        entries.insert(id, entry);
        if entries.len() > self.crowd {
            actix_web::rt::spawn(self.clone().make_room());
        }
        let watch = actix_web::rt::spawn(self.clone().close_when_idle(id, limit));
        Connection { handle: Handle { id, connections: self.clone() }, socket, watch }
    }

    async fn close_when_idle(self, id: u64, limit: Duration) {
        loop {
            let left = match self.lock().get(&id) {
                None => return,
                Some(Entry { waiting_since: Some(since), is_reading: false, .. }) => {
                    limit.saturating_sub(since.elapsed())
                }
                Some(_) => limit,
            };
            if left.is_zero() {
                break;
            }
            actix_web::rt::time::sleep(left).await;
        }
        self.shut(id);
    }

    /// Closes one connection, as soon as there is one on which the server has waited long enough.
    async fn make_room(self) {
        while self.lock().len() > self.crowd && !self.evict() {
            actix_web::rt::time::sleep(EVICTION_INTERVAL).await;
        }
    }

    /// Closes the connection on which the server has waited longest. A trusted one that is merely idle stays: Stripe may
    /// be about to use it, and the keep-alive bounds it.
    fn evict(&self) -> bool {
        let slowest = {
            let entries = self.lock();
            let may_go = entries.iter().filter(|(_, entry)| !entry.is_trusted || entry.is_reading);
            let waiting = may_go.filter_map(|(id, entry)| Some((entry.is_trusted, entry.waiting_since?, *id)));
            waiting.filter(|(_, since, _)| since.elapsed() >= PATIENCE).min()
        };
        slowest.is_some_and(|(_, _, id)| {
            self.shut(id);
            true
        })
    }

    /// Forgets a connection and closes it.
    fn shut(&self, id: u64) {
        if let Some(entry) = self.lock().remove(&id) {
            // Fails if the client has closed it already.
            entry.socket.shutdown(Shutdown::Both).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Middleware: a connection with a request under way is not idle.
///
/// # Errors
/// Only those of the service that it wraps.
pub async fn mark_busy<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    let _busy = Busy::of(request.request());
    next.call(request).await
}

struct Busy(Option<Handle>);

impl Busy {
    fn of(request: &HttpRequest) -> Self {
        let handle = Handle::of(request);
        if let Some(handle) = &handle {
            handle.update(|entry| entry.waiting_since = None);
        }
        Self(handle)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.update(|entry| entry.waiting_since = Some(Instant::now()));
        }
    }
}

/// Marks a connection on which the server waits for the rest of a body.
pub struct Reading(Option<Handle>);

impl Reading {
    pub fn of(request: &HttpRequest) -> Self {
        let handle = Handle::of(request);
        if let Some(handle) = &handle {
            handle.update(|entry| (entry.waiting_since, entry.is_reading) = (Some(Instant::now()), true));
        }
        Self(handle)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.update(|entry| (entry.waiting_since, entry.is_reading) = (None, false));
        }
    }
}

/// Notes that a request was signed by Stripe or authorized by an admin: its connection is the last to give way.
pub fn trust(request: &HttpRequest) {
    if let Some(handle) = Handle::of(request) {
        handle.update(|entry| entry.is_trusted = true);
    }
}

/// Ends when the client has closed its side of the connection, and never otherwise.
///
/// actix drops a request when the connection is reset, but not when the client merely closes it. An event that waits
/// for a lock would then hold its database connection for nobody.
pub async fn client_gone(request: &HttpRequest) {
    let Some(connection) = request.conn_data::<Connection>() else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        // The socket does not block; nothing to read is an error, the end of the stream is zero bytes.
        if let Ok(0) = connection.socket.peek(&mut [0]) {
            return;
        }
    }
}
