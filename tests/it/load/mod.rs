//! More than the server can take: of senders, of slow clients, of bytes. It says so in time, and stays as it is.

mod descriptors;
mod memory;
mod pool;
mod slow;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::Event;
use crate::support::app::signature;
use crate::support::events::subscription;

/// A connection of which a test writes and reads every byte.
struct Client(TcpStream);

impl Client {
    async fn connect(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// One answer, whole.
    async fn answer(&mut self) -> String {
        let mut text = String::new();
        let mut buffer = [0; 4096];
        loop {
            let count = self.0.read(&mut buffer).await.unwrap();
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            let length = text.split_once("\r\n\r\n").and_then(|(head, body)| {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                length.map(|length| (length.parse::<usize>().unwrap(), body.len()))
            });
            if count == 0 || length.is_some_and(|(announced, came)| came >= announced) {
                return text;
            }
        }
    }

    /// Delivers an event and says how long the answer took.
    async fn deliver(&mut self, event: &Event) -> (String, Duration) {
        let started = Instant::now();
        let body = event.to_string();
        let signature = signature(body.as_bytes());
        self.send(format!("{}{body}", head(body.len(), &signature))).await;
        (self.answer().await, started.elapsed())
    }
}

/// The head of a delivery.
fn head(length: usize, signature: &str) -> String {
    format!(
        "POST /api/v1/webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\
         Stripe-Signature: {signature}\r\n\r\n"
    )
}

/// The event number `n`, of a customer that is linked to nobody unless the test does so.
fn event(n: usize) -> Event {
    let object = subscription(&format!("sub_{n}"), &format!("cus_{n}"), "active", 1);
    Event::new(&format!("evt_{n}"), "customer.subscription.updated", 1_760_000_000, object)
}
