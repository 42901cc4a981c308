//! Who is delivered now, and who waits: group commit. Under load what waits goes together, so that one commit is that of
//! many.
//!
//! Deliveries wait in a queue, and a few lanes empty it. A lane takes the first that may go, and with it the others that
//! wait by then; when they are done it takes the next, until nobody waits. What waits grows with the load, and with it
//! what goes together; who comes alone does not wait, and few wait for the lane that is busy.
//!
//! Deliveries of one name (a subscription) go together or after each other, taken in the order in which they came.
//! PostgreSQL would line them up as well, at the subscription's row; but each would hold a connection while it waits, and
//! those that wait for a row are let go in no order.
//!
//! Nothing depends on any of it: between replicas, and for what goes the long way, the database's own locks decide.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// How many lanes there are at most. The fewer, the more go together; but while one waits for the disk, another has to
/// keep PostgreSQL busy.
const LANES: usize = 2;

/// How many have to wait for a lane to take them while another is busy; fewer wait for that one's end. Else, where a lane
/// ends, the first of those whose turn comes then would go without the others, who come a moment later.
const FEW: usize = 6;

/// How long few wait for a busy lane's end. It takes longer than a batch does, by far.
const FEW_WAIT: Duration = Duration::from_millis(20);

/// How many go together at most: their rows are locked until the last of them is done.
const MOST: usize = 32;

/// How long a lane that took something counts as one of [`LANES`]. That it takes longer means that it waits for
/// somebody's lock, which is not to hold up all others.
const PATIENCE: Duration = Duration::from_millis(100);

/// The deliveries of one service. `T` is what is to be delivered, `R` what came of it.
#[derive(Debug)]
pub(super) struct Queue<T, R>(Mutex<State<T, R>>);

#[derive(Debug)]
struct State<T, R> {
    /// The lanes that are there, and since when each is busy with what it took.
    lanes: Vec<(u64, Instant)>,
    /// The names of those that are on their way.
    taken: HashSet<String>,
    waiting: VecDeque<Waiting<T, R>>,
    next_id: u64,
}

/// One that waits, or that a lane took.
#[derive(Debug)]
pub(super) struct Waiting<T, R> {
    id: u64,
    name: Option<String>,
    /// Since when it waits.
    since: Instant,
    is_alone: bool,
    pub(super) item: T,
    pub(super) caller: Caller<R>,
}

/// Who waits for what comes of it.
#[derive(Debug)]
pub(super) struct Caller<R>(oneshot::Sender<R>);

/// Takes one delivery after the other, with those that may go with it. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Lane<T, R> {
    queue: Arc<Queue<T, R>>,
    id: u64,
    /// The first that it has to take.
    first: Option<Waiting<T, R>>,
    /// The names of those that it took.
    names: Vec<String>,
}

/// Why nothing came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueError {
    /// It waited for too long, and nobody took it.
    TooLong,
    /// Whoever took it died.
    Died,
}

impl<T, R> Default for Queue<T, R> {
    fn default() -> Self {
        Self(Mutex::new(State { lanes: Vec::new(), taken: HashSet::new(), waiting: VecDeque::new(), next_id: 0 }))
    }
}

impl<T, R> Queue<T, R> {
    /// Waits until a lane took `item`, and for what came of it. `limit` is for each time that it has to wait for a lane.
    /// `start` sets a lane going.
    ///
    /// # Errors
    /// [`QueueError`]
    pub(super) async fn join(
        self: &Arc<Self>,
        name: Option<&str>,
        item: T,
        limit: Duration,
        start: impl Fn(Lane<T, R>),
    ) -> Result<R, QueueError> {
        let since = Instant::now();
        let deadline = since + limit;
        let (caller, mut result) = oneshot::channel();
        let id = self.enter(name, item, since, Caller(caller));
        self.go_on(&start);
        let mut patience = FEW_WAIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = if left.is_zero() { PATIENCE } else { patience.min(left) };
            if let Ok(result) = tokio::time::timeout(wait, &mut result).await {
                return result.map_err(|_| QueueError::Died);
            }
            patience = PATIENCE;
            // By now some lane may count no longer; that the first of those that wait looks is enough.
            if self.state().is_first(id) {
                self.go_on(&start);
            }
            if self.leave(id, limit) {
                return Err(QueueError::TooLong);
            }
        }
    }

    /// Starts lanes, as long as there is room for one and somebody whom it may take.
    pub(super) fn go_on(self: &Arc<Self>, start: impl Fn(Lane<T, R>)) {
        while let Some(lane) = self.lane() {
            start(lane);
        }
    }

    fn enter(&self, name: Option<&str>, item: T, since: Instant, caller: Caller<R>) -> u64 {
        let mut state = self.state();
        let id = state.id();
        state.waiting.push_back(Waiting { id, name: name.map(str::to_owned), since, is_alone: false, item, caller });
        id
    }

    fn lane(self: &Arc<Self>) -> Option<Lane<T, R>> {
        let id = self.state().id();
        let mut lane = Lane { queue: self.clone(), id, first: None, names: Vec::new() };
        lane.first = Some(lane.next()?);
        Some(lane)
    }

    /// Whether it waits still, and has for so long; then it does no longer.
    fn leave(&self, id: u64, limit: Duration) -> bool {
        let mut state = self.state();
        let before = state.waiting.len();
        state.waiting.retain(|waiting| waiting.id != id || waiting.since.elapsed() < limit);
        state.waiting.len() < before
    }

    fn state(&self) -> MutexGuard<'_, State<T, R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, R> State<T, R> {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Whether it is the first of those that wait.
    fn is_first(&self, id: u64) -> bool {
        self.waiting.iter().find(|waiting| !waiting.caller.is_gone()).is_some_and(|first| first.id == id)
    }

    /// The first that may go, for this lane; if there is one, room for the lane, and [`FEW`] or nobody to wait for.
    fn take_first(&mut self, lane: u64) -> Option<Waiting<T, R>> {
        let busy_for_less_than = |limit| self.lanes.iter().filter(|(_, since)| since.elapsed() < limit).count();
        if busy_for_less_than(PATIENCE) >= LANES {
            return None;
        }
        let is_beside_another = busy_for_less_than(FEW_WAIT) > 0;
        self.waiting.retain(|waiting| !waiting.caller.is_gone());
        // One that goes alone has nobody to wait for.
        let is_few = self.waiting.len() < FEW && !self.waiting.front().is_some_and(|first| first.is_alone);
        if is_beside_another && is_few {
            return None;
        }
        let is_free = |waiting: &Waiting<T, R>| waiting.name.as_ref().is_none_or(|name| !self.taken.contains(name));
        let first = self.waiting.iter().position(is_free)?;
        let first = self.waiting.remove(first)?;
        self.taken.extend(first.name.clone());
        self.lanes.push((lane, Instant::now()));
        Some(first)
    }

    /// Ends what a lane took.
    fn give_back(&mut self, lane: u64, names: &mut Vec<String>) {
        for name in names.drain(..) {
            self.taken.remove(&name);
        }
        self.lanes.retain(|(id, _)| *id != lane);
    }
}

impl<T, R> Lane<T, R> {
    /// The next one. What was taken before it is done. `None`, where there is nobody for this lane, is its end.
    pub(super) fn next(&mut self) -> Option<Waiting<T, R>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let mut state = self.queue.state();
        state.give_back(self.id, &mut self.names);
        let next = state.take_first(self.id)?;
        self.names.extend(next.name.clone());
        Some(next)
    }

    /// The one that it took, and those that wait and may go along: in order, and nobody whose name is on its way
    /// elsewhere.
    pub(super) fn take_along(&mut self, first: Waiting<T, R>) -> Vec<Waiting<T, R>> {
        let mut state = self.queue.state();
        if first.is_alone || state.waiting.is_empty() {
            return vec![first];
        }
        let mut taken = vec![first];
        let mut passed_over = HashSet::new();
        let mut stays = VecDeque::new();
        while taken.len() < MOST
            && let Some(waiting) = state.waiting.pop_front()
        {
            let may_go = |name: &String| {
                !passed_over.contains(name) && (self.names.contains(name) || !state.taken.contains(name))
            };
            if waiting.caller.is_gone() {
                continue;
            }
            if !waiting.is_alone && waiting.name.as_ref().is_none_or(may_go) {
                if let Some(name) = waiting.name.as_ref().filter(|name| !self.names.contains(name)) {
                    state.taken.insert(name.clone());
                    self.names.push(name.clone());
                }
                taken.push(waiting);
            } else {
                passed_over.extend(waiting.name.clone());
                stays.push_back(waiting);
            }
        }
        stays.append(&mut state.waiting);
        state.waiting = stays;
        taken
    }

    /// Has them wait again, before all others, and each to go alone. `start` sets the lanes going that take them, since
    /// one of them may have to wait for somebody's lock.
    pub(super) fn again_alone(&mut self, taken: Vec<Waiting<T, R>>, start: impl Fn(Self)) {
        let mut state = self.queue.state();
        for waiting in taken.into_iter().rev() {
            state.waiting.push_front(Waiting { since: Instant::now(), is_alone: true, ..waiting });
        }
        state.give_back(self.id, &mut self.names);
        drop(state);
        self.queue.go_on(start);
    }
}

impl<T, R> Drop for Lane<T, R> {
    fn drop(&mut self) {
        self.queue.state().give_back(self.id, &mut self.names);
    }
}

impl<R> Caller<R> {
    /// Says what came of it.
    pub(super) fn tell(self, result: R) {
        self.0.send(result).ok();
    }

    /// Waits until nobody waits for it any longer.
    pub(super) async fn gone(&mut self) {
        self.0.closed().await;
    }

    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
