//! A client's connection beside its requests: its socket, and closing it when nothing happens on it.
//!
//! actix bounds the time of a connection's first head, and of waiting for the next request to begin. It does not bound
//! a second head that comes a byte at a time, a body that nobody reads, or a client that does not read its answers.

use std::any::Any;
use std::cell::Cell;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::rt::task::JoinHandle;

/// Since when no request has been under way; `None` while one is.
type IdleSince = Rc<Cell<Option<Instant>>>;

/// What is known of a request's connection.
pub struct Connection {
    /// A second handle on the socket, to look at and to shut, never to read from.
    pub socket: Rc<TcpStream>,
    idle_since: IdleSince,
    watch: JoinHandle<()>,
}

impl Connection {
    /// The client took a part of an answer that goes on: the time without a request begins anew.
    pub fn touch(&self) {
        self.idle_since.set(Some(Instant::now()));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// For `HttpServer::on_connect`: remembers the connection, and closes it after `limit` without a request under way.
pub fn on_connect(limit: Duration) -> impl Fn(&dyn Any, &mut Extensions) + Send + Sync + 'static {
    move |connection, extensions| {
        if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>()
            && let Ok(fd) = stream.as_fd().try_clone_to_owned()
        {
            let socket = Rc::new(TcpStream::from(fd));
            let idle_since: IdleSince = Rc::new(Cell::new(Some(Instant::now())));
            let watch = actix_web::rt::spawn(close_when_idle(Rc::clone(&socket), Rc::clone(&idle_since), limit));
            extensions.insert(Connection { socket, idle_since, watch });
        }
    }
}

async fn close_when_idle(socket: Rc<TcpStream>, idle_since: IdleSince, limit: Duration) {
    loop {
        let left = idle_since.get().map_or(limit, |since| limit.saturating_sub(since.elapsed()));
        if left.is_zero() {
            break;
        }
        actix_web::rt::time::sleep(left).await;
    }
    // Fails where the client has gone already.
    socket.shutdown(Shutdown::Both).ok();
}

/// Middleware: a connection with a request under way is not idle.
///
/// # Errors
/// Only those of the service that it wraps.
pub async fn mark_busy<B: MessageBody>(request: ServiceRequest, next: Next<B>) -> Result<ServiceResponse<B>, Error> {
    let _busy = request.conn_data::<Connection>().map(|connection| Busy::new(&connection.idle_since));
    next.call(request).await
}

struct Busy(IdleSince);

impl Busy {
    fn new(idle_since: &IdleSince) -> Self {
        idle_since.set(None);
        Self(Rc::clone(idle_since))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(Some(Instant::now()));
    }
}
