//! HTTP as it stands on the wire: requests that no client would send, and answers to the last header.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer as it came over the wire.
#[derive(Debug)]
pub struct Raw {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Raw {
    /// Sends a request as it stands, and reads until the server closes the connection.
    pub async fn answer(server: SocketAddr, request: &[u8]) -> Self {
        let received = exchange(server, request).await;
        Self::parse(&received).unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(&received)))
    }

    fn parse(received: &[u8]) -> Option<Self> {
        let (head, body) = std::str::from_utf8(received).ok()?.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            headers.append(name.parse::<HeaderName>().ok()?, value.parse().ok()?);
        }
        Some(Self { status, headers, body: body.to_owned() })
    }
}

/// Sends bytes, and returns what comes until the server closes the connection.
pub async fn exchange(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let mut received = Vec::new();
    let talk = async {
        // A server that has answered early may close before all is sent, and before all is read.
        stream.write_all(bytes).await.ok();
        while stream.read_buf(&mut received).await.is_ok_and(|read| read > 0) {}
    };
    tokio::time::timeout(Duration::from_secs(10), talk).await.unwrap();
    received
}
