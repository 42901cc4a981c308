//! Who delivers now, and who waits: group commit. Under load whoever has a connection takes along what waits, so that
//! one commit is that of many.
//!
//! Each delivery is either on its way or waits. A few are on their way at once; when one of them ends, the first that
//! waits follows, and takes along the others that wait by then. What waits grows with the load, and with it what is
//! taken along; without load, nobody waits.
//!
//! Deliveries of one name (a subscription) are on their way together or after each other, in the order in which they
//! came. PostgreSQL would line them up as well, at the subscription's row; but each would hold a connection while it
//! waits, and those that wait for a row are let go in no order.
//!
//! Nothing depends on any of it: between replicas, and for what goes the long way, the database's own locks decide.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How many are on their way at once, each with those that it took along. The fewer, the more go together; but while
/// one waits for the disk, others have to keep PostgreSQL busy.
const LANES: usize = 3;

/// How many go together at most: their rows are locked until the last of them is done.
const MOST: usize = 32;

/// How long one that is on its way counts. That it takes longer means that it waits for somebody's lock, which is not
/// to hold up all others.
const PATIENCE: Duration = Duration::from_millis(100);

/// The deliveries of one service. `T` is what is to be delivered, `R` what came of it.
#[derive(Debug)]
pub(super) struct Queue<T, R>(Mutex<State<T, R>>);

#[derive(Debug)]
struct State<T, R> {
    /// Who is on the way, and since when.
    on_their_way: Vec<(u64, Instant)>,
    /// The names of those that are on their way.
    taken: HashSet<String>,
    waiting: VecDeque<Waiting<T, R>>,
    next_id: u64,
}

#[derive(Debug)]
struct Waiting<T, R> {
    id: u64,
    name: Option<String>,
    item: T,
    is_alone: bool,
    word: oneshot::Sender<Word<T, R>>,
}

/// Who waits holds it.
#[derive(Debug)]
struct Ticket<T, R> {
    id: u64,
    told: oneshot::Receiver<Word<T, R>>,
}

/// What one that waited is told.
#[derive(Debug)]
pub(super) enum Word<T, R> {
    /// Go, and take along who waits.
    Go(Place<T, R>),
    /// Somebody took it along, and this came of it.
    Done(R),
}

/// The wait took too long.
#[derive(Debug)]
pub(super) struct TooLong;

/// One that was taken along. Dropped without a word, it goes again, alone.
#[derive(Debug)]
pub(super) struct Follower<T, R> {
    pub(super) item: T,
    word: oneshot::Sender<Word<T, R>>,
}

/// A place on the way. At its end the next one follows.
#[derive(Debug)]
pub(super) struct Place<T, R> {
    queue: Arc<Queue<T, R>>,
    id: u64,
    /// Its own, and then those of the ones that it took along.
    names: Vec<String>,
    /// How many of these are its own: one, or none.
    own: usize,
    /// It takes nobody along.
    is_alone: bool,
}

impl<T, R> Default for Queue<T, R> {
    fn default() -> Self {
        Self(Mutex::new(State {
            on_their_way: Vec::new(),
            taken: HashSet::new(),
            waiting: VecDeque::new(),
            next_id: 0,
        }))
    }
}

impl<T: Clone, R> Queue<T, R> {
    /// Waits for a place on the way, or until somebody took `item` along. `limit` is for the wait alone; it begins anew
    /// where that somebody failed.
    ///
    /// # Errors
    /// [`TooLong`]: it waited for so long, and nothing came of it.
    pub(super) async fn join(
        self: &Arc<Self>,
        name: Option<&str>,
        item: T,
        limit: Duration,
    ) -> Result<Word<T, R>, TooLong> {
        let mut is_alone = false;
        loop {
            let word = match self.enter(name, &item, is_alone) {
                Ok(place) => Some(Word::Go(place)),
                Err(ticket) => self.told(ticket, Instant::now() + limit).await?,
            };
            match word {
                Some(word) => return Ok(word),
                // Whoever took it along failed, for a reason that may be another's.
                None => is_alone = true,
            }
        }
    }

    /// A place on the way, where there is one; else one among those that wait.
    fn enter(self: &Arc<Self>, name: Option<&str>, item: &T, is_alone: bool) -> Result<Place<T, R>, Ticket<T, R>> {
        let mut state = self.state();
        if state.has_room() && state.is_free(name) && !state.is_waited_for(name) {
            let name = name.map(str::to_owned);
            return Ok(self.place(&mut state, name, is_alone));
        }
        let (word, told) = oneshot::channel();
        let id = state.id();
        state.waiting.push_back(Waiting { id, name: name.map(str::to_owned), item: item.clone(), is_alone, word });
        drop(state);
        // There may be room, for one of this name that has waited for longer.
        self.go_on();
        Err(Ticket { id, told })
    }
}

impl<T, R> Queue<T, R> {
    fn state(&self) -> MutexGuard<'_, State<T, R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(self: &Arc<Self>, state: &mut State<T, R>, name: Option<String>, is_alone: bool) -> Place<T, R> {
        let id = state.id();
        state.on_their_way.push((id, Instant::now()));
        let names: Vec<_> = name.into_iter().collect();
        state.taken.extend(names.iter().cloned());
        Place { queue: self.clone(), id, own: names.len(), names, is_alone }
    }

    /// Waits for the word; `None` where whoever took it along brings none.
    async fn told(
        self: &Arc<Self>,
        mut ticket: Ticket<T, R>,
        deadline: Instant,
    ) -> Result<Option<Word<T, R>>, TooLong> {
        loop {
            let patience = PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
            if let Ok(told) = tokio::time::timeout(patience, &mut ticket.told).await {
                return Ok(told.ok());
            }
            // By now those on their way may count no longer; one that looks is enough.
            if self.state().is_first(ticket.id) {
                self.go_on();
            }
            if Instant::now() >= deadline {
                return if self.leave(ticket.id) { Err(TooLong) } else { Ok(ticket.told.await.ok()) };
            }
        }
    }

    /// Whether it waited still, which it does no longer.
    fn leave(&self, id: u64) -> bool {
        let mut state = self.state();
        let before = state.waiting.len();
        state.waiting.retain(|waiting| waiting.id != id);
        state.waiting.len() < before
    }

    /// Gives places to those that wait, as long as there are any.
    fn go_on(self: &Arc<Self>) {
        loop {
            let (word, place) = {
                let mut state = self.state();
                if !state.has_room() {
                    return;
                }
                state.waiting.retain(|waiting| !waiting.word.is_closed());
                let is_free = |waiting: &Waiting<T, R>| state.is_free(waiting.name.as_deref());
                let Some(next) = state.waiting.iter().position(is_free).and_then(|next| state.waiting.remove(next))
                else {
                    return;
                };
                (next.word, self.place(&mut state, next.name, next.is_alone))
            };
            // Nobody there any longer: the place comes back, and its end is the next one's beginning.
            word.send(Word::Go(place)).ok();
        }
    }
}

impl<T, R> State<T, R> {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn has_room(&self) -> bool {
        self.on_their_way.iter().filter(|(_, since)| since.elapsed() < PATIENCE).count() < LANES
    }

    /// Whether somebody of this name waits, who has to go before.
    fn is_waited_for(&self, name: Option<&str>) -> bool {
        name.is_some() && self.waiting.iter().any(|waiting| waiting.name.as_deref() == name)
    }

    /// Whether it is the first of those that wait.
    fn is_first(&self, id: u64) -> bool {
        self.waiting.iter().find(|waiting| !waiting.word.is_closed()).is_some_and(|first| first.id == id)
    }

    fn is_free(&self, name: Option<&str>) -> bool {
        name.is_none_or(|name| !self.taken.contains(name))
    }
}

impl<T, R> Place<T, R> {
    /// Takes along who waits: in order, and nobody whose name is on its way elsewhere.
    pub(super) fn take_along(&mut self) -> Vec<Follower<T, R>> {
        let mut followers = Vec::new();
        let mut state = self.queue.state();
        if self.is_alone || state.waiting.is_empty() {
            return followers;
        }
        let mut passed_over = HashSet::new();
        let mut stays = VecDeque::new();
        while followers.len() + 1 < MOST
            && let Some(waiting) = state.waiting.pop_front()
        {
            let may_go = |name: &String| {
                !passed_over.contains(name) && (self.names.contains(name) || !state.taken.contains(name))
            };
            if waiting.word.is_closed() {
                continue;
            }
            if !waiting.is_alone && waiting.name.as_ref().is_none_or(may_go) {
                if let Some(name) = waiting.name.filter(|name| !self.names.contains(name)) {
                    state.taken.insert(name.clone());
                    self.names.push(name);
                }
                followers.push(Follower { item: waiting.item, word: waiting.word });
            } else {
                passed_over.extend(waiting.name.clone());
                stays.push_back(waiting);
            }
        }
        stays.append(&mut state.waiting);
        state.waiting = stays;
        followers
    }

    /// Goes on alone, and lets the followers go again, each alone.
    pub(super) fn part(&mut self, followers: Vec<Follower<T, R>>) {
        self.is_alone = true;
        self.give_back(self.own, false);
        drop(followers);
        self.queue.go_on();
    }

    /// Gives back names from this one on, and the place itself.
    fn give_back(&mut self, from: usize, place: bool) {
        let mut state = self.queue.state();
        for name in self.names.drain(from..) {
            state.taken.remove(&name);
        }
        if place {
            state.on_their_way.retain(|(id, _)| *id != self.id);
        }
    }
}

impl<T, R> Drop for Place<T, R> {
    fn drop(&mut self) {
        self.give_back(0, true);
        self.queue.go_on();
    }
}

impl<T, R> Follower<T, R> {
    /// Says what came of it.
    pub(super) fn tell(self, result: R) {
        self.word.send(Word::Done(result)).ok();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    type Names = Arc<Queue<&'static str, usize>>;

    /// Somebody of this name, at the place on the way that it was given.
    async fn place(queue: &Names, name: &'static str) -> Place<&'static str, usize> {
        match queue.join(Some(name), name, LIMIT).await {
            Ok(Word::Go(place)) => place,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// As many as may be on their way at once, called `lane 0` and so on.
    async fn all_lanes(queue: &Names) -> Vec<Place<&'static str, usize>> {
        let names = ["lane 0", "lane 1", "lane 2"];
        assert_eq!(names.len(), LANES);
        futures_util::future::join_all(names.map(|name| place(queue, name))).await
    }

    fn items(followers: &[Follower<&'static str, usize>]) -> Vec<&'static str> {
        followers.iter().map(|follower| follower.item).collect()
    }

    fn assert_is_empty(queue: &Names) {
        let state = queue.state();
        assert!(state.on_their_way.is_empty() && state.taken.is_empty() && state.waiting.is_empty(), "{state:?}");
    }

    #[tokio::test]
    async fn without_load_nobody_waits_and_under_load_the_next_takes_the_others_along() {
        let queue = Names::default();
        let mut lanes = all_lanes(&queue).await;
        assert!(lanes.iter_mut().all(|place| place.take_along().is_empty()));
        let mut waiting: Vec<_> =
            ["a", "b", "a", "c", "lane 1"].map(|name| Box::pin(queue.join(Some(name), name, LIMIT))).into();
        assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        drop(lanes.remove(0));
        let Some(Ok(Word::Go(mut first))) = (&mut waiting[0]).now_or_never() else { panic!("the first follows") };
        let followers = first.take_along();
        assert_eq!(items(&followers), ["b", "a", "c"], "all but the one whose name is on its way");
        for (number, follower) in followers.into_iter().enumerate() {
            follower.tell(number);
        }
        for (number, waiting) in waiting[1..4].iter_mut().enumerate() {
            assert!(matches!(waiting.now_or_never(), Some(Ok(Word::Done(done))) if done == number));
        }
        drop(first);
        assert!((&mut waiting[4]).now_or_never().is_none(), "its name is on its way still");
        drop(lanes.remove(0));
        assert!(matches!(waiting.remove(4).now_or_never(), Some(Ok(Word::Go(_)))));
        drop(lanes);
        assert_is_empty(&queue);
    }

    #[tokio::test]
    async fn those_of_one_name_keep_their_order_and_go_alone_after_a_failure_together() {
        let queue = Names::default();
        let mut first = place(&queue, "a").await;
        let mut waiting: Vec<_> = ["a", "a", "b"].map(|name| Box::pin(queue.join(Some(name), name, LIMIT))).into();
        let Some(Ok(Word::Go(other))) = (&mut waiting[2]).now_or_never() else { panic!("another name does not wait") };
        assert!(waiting[..2].iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        let followers = first.take_along();
        assert_eq!(items(&followers), ["a", "a"]);
        first.part(followers);
        assert!(waiting[..2].iter_mut().all(|waiting| waiting.now_or_never().is_none()), "the name is on its way");
        assert!(first.take_along().is_empty(), "who is alone takes nobody along, and goes with nobody");
        drop(first);
        let Some(Ok(Word::Go(mut second))) = (&mut waiting[0]).now_or_never() else { panic!("in order") };
        assert!(second.take_along().is_empty() && (&mut waiting[1]).now_or_never().is_none());
        drop(second);
        assert!(matches!((&mut waiting[1]).now_or_never(), Some(Ok(Word::Go(_)))));
        drop(other);
        assert_is_empty(&queue);
    }

    #[tokio::test]
    async fn those_that_part_do_not_wait_for_each_other() {
        let queue = Names::default();
        let mut lanes = all_lanes(&queue).await;
        let mut waiting = Box::pin(queue.join(Some("a"), "a", LIMIT));
        assert!((&mut waiting).now_or_never().is_none());
        let followers = lanes[0].take_along();
        assert_eq!(items(&followers), ["a"]);
        lanes[0].part(followers);
        assert!((&mut waiting).now_or_never().is_none(), "there is no room");
        drop(lanes.remove(1));
        assert!(matches!((&mut waiting).now_or_never(), Some(Ok(Word::Go(_)))));
        drop(lanes);
        assert_is_empty(&queue);
    }

    #[tokio::test]
    async fn one_that_is_gone_is_passed_over() {
        let queue = Names::default();
        let mut lanes = all_lanes(&queue).await;
        let mut waiting: Vec<_> = ["a", "b", "c"].map(|name| Box::pin(queue.join(Some(name), name, LIMIT))).into();
        assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        drop(waiting.remove(0));
        drop(lanes.remove(0));
        // Given its place, and gone before it looked.
        drop(waiting.remove(0));
        assert!(matches!(waiting.remove(0).now_or_never(), Some(Ok(Word::Go(_)))));
        drop(lanes);
        assert_is_empty(&queue);
    }

    #[tokio::test]
    async fn one_that_takes_long_holds_up_nobody_but_those_of_its_name_and_those_not_for_ever() {
        let queue = Names::default();
        let lanes = all_lanes(&queue).await;
        let (started, limit) = (Instant::now(), PATIENCE * 3);
        let other = async {
            assert!(matches!(queue.join(Some("a"), "a", limit).await, Ok(Word::Go(_))));
            started.elapsed()
        };
        let same = async {
            assert!(matches!(queue.join(Some("lane 0"), "lane 0", limit).await, Err(TooLong)));
            started.elapsed()
        };
        let (other, same) = tokio::join!(other, same);
        assert!(other < PATIENCE * 2 && same >= limit, "{other:?}, {same:?}");
        drop(lanes);
        assert_is_empty(&queue);
    }
}
