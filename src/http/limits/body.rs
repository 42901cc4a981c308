//! Reads request bodies, bounded in size, time, and memory: of one body, of all bodies of one peer, and of all.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::header::CONTENT_LENGTH;
use actix_web::web::{Bytes, BytesMut, Data, Payload};
use actix_web::{HttpMessage, HttpRequest};
use futures_util::StreamExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::connections::Reading;
use crate::http::{ApiError, State};

/// Every body gets this much without asking: room for an ordinary event, so that large bodies, whoever sends them, cannot
/// keep ordinary ones out. The number of connections bounds it.
const FREE: usize = 32 << 10;

/// A body that has been arriving for this long gives way if a newcomer needs its room. Stripe's arrive in milliseconds.
const SLOW: Duration = Duration::from_secs(1);

/// Reads the whole body, exactly as it was sent.
///
/// # Errors
/// `PayloadTooLarge`, `RequestTimeout`, `Unavailable` if other bodies have taken the memory, or `InvalidRequest` if the
/// body breaks off.
pub async fn read(request: &HttpRequest, payload: Payload, limit: usize, timeout: Duration) -> Result<Bytes, ApiError> {
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::PayloadTooLarge(limit));
    }
    let _reading = Reading::of(request);
    tokio::time::timeout(timeout, buffer(request, payload, limit)).await.unwrap_or(Err(ApiError::RequestTimeout))
}

async fn buffer(request: &HttpRequest, mut payload: Payload, limit: usize) -> Result<Bytes, ApiError> {
    let state = request.app_data::<Data<State>>().ok_or(ApiError::Internal)?;
    let mut share = state.body_budget.share(peer(request));
    let mut body = BytesMut::new();
    loop {
        let chunk = tokio::select! {
            chunk = payload.next() => chunk,
            () = share.evicted.notified() => return Err(ApiError::Unavailable),
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| ApiError::InvalidRequest(format!("the body cannot be read: {error}")))?;
        let length = body.len() + chunk.len();
        if length > limit {
            return Err(ApiError::PayloadTooLarge(limit));
        }
        if !share.cover(length) {
            return Err(ApiError::Unavailable);
        }
        body.extend_from_slice(&chunk);
    }
    share.complete();
    // Kept until the request is answered: what is made of the body takes memory, too.
    request.extensions_mut().insert(share);
    Ok(body.freeze())
}

/// The address of the other end of the connection: the client's, or that of the proxy in between. Of an IPv6 address the
/// first 64 bits, since one host can have all the rest.
fn peer(request: &HttpRequest) -> IpAddr {
    match request.peer_addr().map(|address| address.ip()) {
        None => Ipv6Addr::UNSPECIFIED.into(),
        Some(IpAddr::V6(address)) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        Some(address) => address,
    }
}

/// The bytes that all bodies together may take of the memory, of which one peer may have half. Cheap to clone; all clones
/// are one.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Mutex<Shares>>);

#[derive(Debug)]
struct Shares {
    left: usize,
    left_to_a_peer: usize,
    taken: HashMap<u64, Taken>,
    next_id: u64,
}

/// The room that one body has taken.
#[derive(Debug)]
struct Taken {
    bytes: usize,
    peer: IpAddr,
    /// Since when the body has been arriving; `None` once it is complete.
    arriving_since: Option<Instant>,
    evicted: Arc<Notify>,
}

/// The share of one body. Given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    id: u64,
    evicted: Arc<Notify>,
}

impl Budget {
    /// Room for this many bytes.
    pub fn of(bytes: usize) -> Self {
        let shares = Shares { left: bytes, left_to_a_peer: bytes / 2, taken: HashMap::new(), next_id: 0 };
        Self(Arc::new(Mutex::new(shares)))
    }

    /// The share of a body that begins to arrive.
    fn share(&self, peer: IpAddr) -> Share {
        let evicted = Arc::<Notify>::default();
        let mut shares = self.lock();
        let id = shares.next_id;
        shares.next_id += 1;
        let taken = Taken { bytes: 0, peer, arriving_since: Some(Instant::now()), evicted: Arc::clone(&evicted) };
        shares.taken.insert(id, taken);
        Share { budget: self.clone(), id, evicted }
    }

    fn lock(&self) -> MutexGuard<'_, Shares> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shares {
    /// Takes `bytes` more for a body; evicts slow ones if there is no room.
    fn take(&mut self, id: u64, bytes: usize) -> bool {
        let Some(peer) = self.taken.get(&id).map(|taken| taken.peer) else { return false };
        loop {
            let of_peer: usize = self.taken.values().filter(|taken| taken.peer == peer).map(|taken| taken.bytes).sum();
            let peer_has_room = of_peer + bytes <= self.left_to_a_peer;
            if peer_has_room && bytes <= self.left {
                break;
            }
            let is_evictable = |taken: &&Taken| {
                taken.bytes > 0
                    && (peer_has_room || taken.peer == peer)
                    && taken.arriving_since.is_some_and(|since| since.elapsed() >= SLOW)
            };
            let candidates = self.taken.iter().filter(|(other, taken)| **other != id && is_evictable(taken));
            let Some(slowest) = candidates.min_by_key(|(_, taken)| taken.arriving_since).map(|(id, _)| *id) else {
                return false;
            };
            if let Some(taken) = self.give_back(slowest) {
                taken.evicted.notify_one();
            }
        }
        self.left -= bytes;
        if let Some(taken) = self.taken.get_mut(&id) {
            taken.bytes += bytes;
        }
        true
    }

    fn give_back(&mut self, id: u64) -> Option<Taken> {
        let taken = self.taken.remove(&id)?;
        self.left += taken.bytes;
        Some(taken)
    }
}

impl Share {
    /// Makes room for a body that has grown to `length` bytes; false if there is none, and then nothing is taken.
    ///
    /// Counts the bytes that have arrived, not those that were announced: an announcement costs its sender nothing.
    fn cover(&mut self, length: usize) -> bool {
        let mut shares = self.budget.lock();
        // Evicted while its last bytes arrived.
        let Some(taken) = shares.taken.get(&self.id) else { return false };
        let more = length.saturating_sub(FREE).saturating_sub(taken.bytes);
        more == 0 || shares.take(self.id, more)
    }

    /// The body is complete, so that it is no longer a slow one.
    fn complete(&self) {
        if let Some(taken) = self.budget.lock().taken.get_mut(&self.id) {
            taken.arriving_since = None;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.lock().give_back(self.id);
    }
}

/// Bounds the memory that parsed bodies take: an event of many small parts takes thirty times its bytes.
#[derive(Clone, Debug)]
pub struct ParsingBudget {
    bytes: Arc<Semaphore>,
    timeout: Duration,
}

/// Room for one parsed body. Given back when it is dropped.
pub struct ParsingShare(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl ParsingBudget {
    /// Room for parsed bodies of this many bytes; each waits at most `timeout` for it.
    pub fn of(bytes: usize, timeout: Duration) -> Self {
        Self { bytes: Arc::new(Semaphore::new(bytes)), timeout }
    }

    /// Waits until there is room for a body of `length` bytes, an ordinary one not at all.
    ///
    /// # Errors
    /// `Unavailable` if there is none in time.
    pub async fn share(&self, length: usize) -> Result<ParsingShare, ApiError> {
        if length <= FREE {
            return Ok(ParsingShare(None));
        }
        let length = u32::try_from(length).map_err(|_| ApiError::Unavailable)?;
        let permit = Arc::clone(&self.bytes).acquire_many_owned(length);
        let permit = tokio::time::timeout(self.timeout, permit).await.map_err(|_| ApiError::Unavailable)?;
        Ok(ParsingShare(Some(permit.map_err(|_| ApiError::Unavailable)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn make_slow(share: &Share) {
        let mut shares = share.budget.lock();
        shares.taken.get_mut(&share.id).unwrap().arriving_since = Instant::now().checked_sub(SLOW);
    }

    #[test]
    fn what_is_taken_is_bounded_and_comes_back() {
        let budget = Budget::of(200);
        let (mut first, mut second) = (budget.share(ONE), budget.share(ONE));
        assert!(first.cover(FREE + 60) && first.cover(FREE + 10), "it has the room already");
        assert!(!second.cover(FREE + 41) && second.cover(FREE + 40), "a peer may have half");
        assert!(!first.cover(FREE + 61));
        let (mut third, mut fourth) = (budget.share(OTHER), budget.share(Ipv6Addr::LOCALHOST.into()));
        assert!(third.cover(FREE + 100) && !fourth.cover(FREE + 1), "and all together no more than the whole");
        drop(first);
        assert!(second.cover(FREE + 100) && !second.cover(FREE + 101));
    }

    #[test]
    fn an_ordinary_body_is_let_in_when_all_is_taken() {
        let budget = Budget::of(0);
        let mut share = budget.share(ONE);
        assert!(share.cover(FREE) && !share.cover(FREE + 1));
    }

    #[test]
    fn a_slow_body_gives_way_and_a_complete_one_does_not() {
        let budget = Budget::of(200);
        let (mut slow, mut complete, mut newcomer) = (budget.share(ONE), budget.share(ONE), budget.share(ONE));
        assert!(slow.cover(FREE + 50) && complete.cover(FREE + 50));
        assert!(!newcomer.cover(FREE + 50), "neither is slow yet");
        make_slow(&slow);
        make_slow(&complete);
        complete.complete();
        assert!(newcomer.cover(FREE + 50) && !slow.cover(FREE + 51));
        assert!(!newcomer.cover(FREE + 51), "the complete one stays");
        drop(slow);
        assert!(!newcomer.cover(FREE + 51), "what was evicted is given back once");
    }
}
