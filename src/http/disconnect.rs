//! Noticing that a client has gone while its request is under way.
//!
//! actix drops a request when the connection is reset, but not when the client merely closes it. An event that waits
//! for a lock would then hold its database connection for nobody.

use std::time::Duration;

use actix_web::HttpRequest;

use super::connection::Connection;

const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Ends when the client has closed its side of the connection, and never otherwise.
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
