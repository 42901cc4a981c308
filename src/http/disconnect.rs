//! Noticing that a client has gone while its request is under way.
//!
//! actix drops a request when the connection is reset, but not when the client merely closes it. An event that waits
//! for a lock would then hold its database connection for nobody.

use std::any::Any;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::dev::Extensions;

const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A second handle on a connection's socket, to look at, never to read from.
struct Socket(TcpStream);

/// For `HttpServer::on_connect`: keeps a handle on the connection's socket.
pub fn remember_socket(connection: &dyn Any, extensions: &mut Extensions) {
    if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>()
        && let Ok(fd) = stream.as_fd().try_clone_to_owned()
    {
        extensions.insert(Socket(TcpStream::from(fd)));
    }
}

/// Ends when the client has closed its side of the connection, and never otherwise.
pub async fn client_gone(request: &HttpRequest) {
    let Some(Socket(stream)) = request.conn_data::<Socket>() else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        // The socket does not block; nothing to read is an error, the end of the stream is zero bytes.
        if let Ok(0) = stream.peek(&mut [0]) {
            return;
        }
    }
}
