//! A keep-alive connection that sends a request and waits for its answer, at next to no cost.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The most that one answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the admin routes want.
pub const ADMIN_TOKEN: &str = "bench";

pub struct Client {
    server: SocketAddr,
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer: its status, and its body as text.
pub struct Answer<'a> {
    pub status: u16,
    pub body: &'a str,
}

impl Client {
    pub fn open(server: SocketAddr) -> Result<Self> {
        Ok(Self { server, stream: open(server)?, buffer: vec![0; 64 << 10] })
    }

    /// Drops the connection in the middle of whatever is under way, and opens another.
    pub fn abort(&mut self) -> Result<()> {
        self.stream = open(self.server)?;
        Ok(())
    }

    pub fn send(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).context("cannot send")
    }

    /// GET as an admin.
    pub fn get(&mut self, path: &str) -> Result<Answer<'_>> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\r\n");
        self.ask(head.as_bytes())
    }

    /// Sends a request and reads the whole answer.
    pub fn ask(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.send(request)?;
        let mut filled = 0;
        loop {
            if filled == self.buffer.len() {
                self.buffer.resize(filled * 2, 0);
            }
            match self.stream.read(&mut self.buffer[filled..]) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("no answer"),
            }
            if let Some((head, length)) = lengths(&self.buffer[..filled])?
                && filled >= head + length
            {
                let text = std::str::from_utf8(&self.buffer[..filled])?;
                let status = text.split(' ').nth(1).context("an answer without a status")?.parse()?;
                return Ok(Answer { status, body: &text[head..] });
            }
        }
    }
}

fn open(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(server).context("cannot connect to the server")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// How long head and body of the answer that begins like this are; `None` before its head has come.
fn lengths(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let length = std::str::from_utf8(&bytes[..end])?
        .split("\r\n")
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without Content-Length")?
        .1;
    Ok(Some((end + 4, length.trim().parse()?)))
}
