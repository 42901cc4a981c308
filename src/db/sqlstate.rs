//! The SQLSTATE of a session's errors, read from the protocol as it passes.
//!
//! An error's text is translated by the server (`lc_messages`), and diesel-async passes on neither the SQLSTATE nor the
//! error that has it. So the stream between tokio-postgres and the server is watched for `ErrorResponse` messages.
//! Source: <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

/// The length of a message's type and length.
const HEADER: usize = 5;

/// The most that is kept of one `ErrorResponse`; the SQLSTATE is the third of its fields.
const MAX_ERROR: usize = 4_096;

/// The five characters of a SQLSTATE.
/// Source: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// The code, such as `40P01`.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("?????")
    }

    /// The class, such as `40`.
    pub fn class(&self) -> &str {
        self.as_str().get(..2).unwrap_or("??")
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error as the server reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// What kind of error it is.
    pub state: SqlState,
    /// What the server says of it, in the server's language.
    pub message: String,
}

/// The first error of a session since it was last taken. Later ones of the same transaction are its consequences.
#[derive(Clone, Debug, Default)]
pub struct FirstError {
    error: Arc<Mutex<Option<ServerError>>>,
    received: Received,
    is_open: Arc<AtomicBool>,
}

/// Counts what all sessions receive from the server: while it grows, the server is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    by_all: Arc<AtomicU64>,
    /// Without sessions that are being opened: those may be told that the server serves nobody.
    by_open: Arc<AtomicU64>,
}

impl Received {
    /// Waits for `period`; returns whether no session has received anything meanwhile.
    pub(super) async fn are_all_silent_for(&self, period: Duration) -> bool {
        is_unchanged_for(&self.by_all, period).await
    }

    /// Waits for `period`; returns whether no open session has received anything meanwhile.
    pub(super) async fn are_open_silent_for(&self, period: Duration) -> bool {
        is_unchanged_for(&self.by_open, period).await
    }
}

async fn is_unchanged_for(count: &AtomicU64, period: Duration) -> bool {
    // In steps, so that a runtime that lags behind has read what is there before the last of them.
    const STEPS: u32 = 5;
    let before = count.load(Ordering::Relaxed);
    for _ in 0..STEPS {
        tokio::time::sleep(period / STEPS).await;
    }
    count.load(Ordering::Relaxed) == before
}

/// Ends the task that drives a connection when it is dropped, and so closes the connection at once. By itself the task
/// would wait for the answer to a statement that nobody waits for any more.
#[derive(Debug)]
pub struct Driver(pub(super) AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl FirstError {
    /// Takes the error; `None` if the server reported none.
    pub fn take(&self) -> Option<ServerError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, error: ServerError) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// For a session that is about to be opened, and counts in `received` what it receives.
    pub(super) fn counting(received: &Received) -> Self {
        Self { received: received.clone(), ..Self::default() }
    }

    /// From now on the session counts as open.
    pub(super) fn note_open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    fn note_received(&self) {
        self.received.by_all.fetch_add(1, Ordering::Relaxed);
        if self.is_open.load(Ordering::Relaxed) {
            self.received.by_open.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A stream from the server whose errors are noted.
pub(super) struct Watched<S> {
    stream: S,
    parser: Parser,
    error: FirstError,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, error: FirstError) -> Self {
        Self { stream, parser: Parser::default(), error }
    }
}

/// Finds the messages in the bytes of a stream, in whatever pieces these come.
#[derive(Default)]
struct Parser {
    header: Vec<u8>,
    /// How much of the message's body is still to come.
    left: usize,
    /// The body of an `ErrorResponse` so far.
    body: Option<Vec<u8>>,
}

impl Parser {
    fn read(&mut self, mut bytes: &[u8], error: &FirstError) {
        while !bytes.is_empty() {
            if self.header.len() < HEADER {
                let (now, later) = bytes.split_at(bytes.len().min(HEADER - self.header.len()));
                self.header.extend_from_slice(now);
                bytes = later;
                let [kind, length @ ..] = self.header.as_slice() else { continue };
                let Ok(length) = <[u8; 4]>::try_from(length) else { continue };
                // The length counts itself.
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX).saturating_sub(4);
                self.body = (*kind == b'E').then(Vec::new);
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.left));
            bytes = later;
            self.left -= now.len();
            if let Some(body) = &mut self.body {
                body.extend_from_slice(now.get(..now.len().min(MAX_ERROR - body.len())).unwrap_or_default());
            }
            if self.left == 0 {
                self.header.clear();
                if let Some(reported) = self.body.take().as_deref().and_then(server_error) {
                    error.note(reported);
                }
            }
        }
    }
}

/// Reads an `ErrorResponse`: its fields are a letter and text, each ended by a zero byte. `C` is the SQLSTATE, `M` the
/// message.
fn server_error(body: &[u8]) -> Option<ServerError> {
    let field = |letter: u8| {
        let field = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&letter));
        field.and_then(|field| field.get(1..))
    };
    let message = String::from_utf8_lossy(field(b'M').unwrap_or_default()).into_owned();
    Some(ServerError { state: SqlState(field(b'C')?.try_into().ok()?), message })
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Self { parser, error, .. } = &mut *self;
        let bytes = buf.filled().get(before..).unwrap_or_default();
        if !bytes.is_empty() {
            error.note_received();
        }
        parser.read(bytes, error);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Watched<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// Watches the stream inside of TLS, where the messages are in the clear.
#[derive(Clone)]
pub(super) struct WatchTls<T> {
    pub(super) tls: T,
    pub(super) error: FirstError,
}

impl<S, T> MakeTlsConnect<S> for WatchTls<T>
where
    T: MakeTlsConnect<S>,
    T::TlsConnect: Send + 'static,
    T::Stream: Send + 'static,
    <T::TlsConnect as TlsConnect<S>>::Future: Send + 'static,
{
    type Stream = Watched<T::Stream>;
    type TlsConnect = WatchTls<T::TlsConnect>;
    type Error = T::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, Self::Error> {
        Ok(WatchTls { tls: self.tls.make_tls_connect(domain)?, error: self.error.clone() })
    }
}

impl<S, T> TlsConnect<S> for WatchTls<T>
where
    T: TlsConnect<S>,
    T::Future: Send + 'static,
{
    type Stream = Watched<T::Stream>;
    type Error = T::Error;
    type Future = BoxFuture<'static, Result<Self::Stream, Self::Error>>;

    fn connect(self, stream: S) -> Self::Future {
        let error = self.error;
        self.tls.connect(stream).map(|stream| stream.map(|stream| Watched::new(stream, error))).boxed()
    }
}

/// "TLS" that leaves the stream as it is. With `sslnegotiation=direct` tokio-postgres asks the server for nothing and
/// hands over the stream, so that a connection without TLS can be watched as well.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlainText;

/// A stream in plain text.
pub(super) struct PlainStream<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> MakeTlsConnect<S> for PlainText {
    type Stream = PlainStream<S>;
    type TlsConnect = Self;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _: &str) -> Result<Self, io::Error> {
        Ok(Self)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsConnect<S> for PlainText {
    type Stream = PlainStream<S>;
    type Error = io::Error;
    type Future = Ready<io::Result<PlainStream<S>>>;

    fn connect(self, stream: S) -> Self::Future {
        ready(Ok(PlainStream(stream)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for PlainStream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PlainStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PlainStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind], length.to_be_bytes().as_slice(), body].concat()
    }

    #[test]
    fn the_first_error_is_found_in_whatever_pieces_it_comes() {
        let error = b"SFEHLER\0VERROR\0C40P01\0MVerklemmung entdeckt\0\0";
        let later = b"SFEHLER\0C25P02\0Maktuelle Transaktion wurde abgebrochen\0\0";
        let stream =
            [message(b'D', b"E\0\0\0\x09C57014\0"), message(b'E', error), message(b'Z', b"E"), message(b'E', later)];
        let stream = stream.concat();
        for size in 1..=stream.len() {
            let (mut parser, first) = (Parser::default(), FirstError::default());
            stream.chunks(size).for_each(|chunk| parser.read(chunk, &first));
            let error = first.take().unwrap();
            assert_eq!((error.state.as_str(), error.message.as_str()), ("40P01", "Verklemmung entdeckt"), "{size}");
            assert_eq!(first.take(), None);
        }
    }

    #[test]
    fn a_long_error_is_read_up_to_its_sqlstate() {
        let error = [b"SERROR\0C53100\0M".as_slice(), &[b'x'; 3 * MAX_ERROR], b"\0\0"].concat();
        let stream = [message(b'E', &error), message(b'Z', b"I")].concat();
        let (mut parser, first) = (Parser::default(), FirstError::default());
        parser.read(&stream, &first);
        assert_eq!(first.take().unwrap().state.class(), "53");
    }
}
