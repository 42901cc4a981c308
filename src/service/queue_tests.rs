use std::cell::RefCell;

use futures_util::FutureExt;

use super::*;

const LIMIT: Duration = Duration::from_secs(1);

type Names = Arc<Queue<&'static str, usize>>;
type NameLane = Lane<&'static str, usize>;

/// The lanes that were started, for the test to run.
#[derive(Default)]
struct Lanes(RefCell<Vec<NameLane>>);

impl Lanes {
    /// Has somebody of this name join.
    fn join<'a>(
        &'a self,
        queue: &'a Names,
        name: &'static str,
        limit: Duration,
    ) -> impl Future<Output = Result<usize, QueueError>> + 'a {
        queue.join(Some(name), name, limit, |lane| self.start(lane))
    }

    fn start(&self, lane: NameLane) {
        self.0.borrow_mut().push(lane);
    }

    fn started(&self) -> Vec<NameLane> {
        self.0.take()
    }
}

/// What the lane takes next, by itself and together with others.
fn take(lane: &mut NameLane) -> Vec<Waiting<&'static str, usize>> {
    let first = lane.next().unwrap();
    lane.take_along(first)
}

fn items(taken: &[Waiting<&'static str, usize>]) -> Vec<&'static str> {
    taken.iter().map(|waiting| waiting.item).collect()
}

fn assert_is_empty(queue: &Names) {
    let state = queue.state();
    assert!(state.lanes.is_empty() && state.taken.is_empty() && state.waiting.is_empty(), "{state:?}");
}

/// As many lanes as there may be, busy with `lane 0` and so on. The callers wait as long as the vector is there.
macro_rules! all_lanes {
    ($queue:expr, $lanes:expr) => {{
        let names = ["lane 0", "lane 1"];
        assert_eq!(names.len(), LANES);
        let (mut callers, mut busy, mut taken) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            // So many that a further lane starts. Those that it did not take go.
            let mut many: Vec<_> =
                std::iter::repeat_with(|| Box::pin($lanes.join(&$queue, name, LIMIT))).take(FEW).collect();
            while busy.len() == taken.len() {
                callers.push(many.remove(0));
                assert!(callers.last_mut().unwrap().now_or_never().is_none());
                busy.extend($lanes.started());
            }
            taken.push(busy.last_mut().unwrap().next().unwrap());
        }
        assert_eq!(items(&taken), names);
        assert_eq!(callers.len(), 1 + FEW);
        callers.drain(2..);
        (callers, busy, taken)
    }};
}

#[tokio::test(start_paused = true)]
async fn few_wait_for_the_lane_that_is_busy_and_many_take_another() {
    let (queue, lanes) = (Names::default(), Lanes::default());
    let join = |name| {
        let mut caller = Box::pin(lanes.join(&queue, name, LIMIT));
        assert!((&mut caller).now_or_never().is_none());
        caller
    };
    let _first = join("first");
    let mut lane = lanes.started().remove(0);
    assert_eq!(items(&take(&mut lane)), ["first"]);
    let few: Vec<_> = (1..FEW).map(|_| join("few")).collect();
    assert!(lanes.started().is_empty());
    assert_eq!(take(&mut lane).len(), few.len(), "they go when it ends");
    let many: Vec<_> = (0..FEW).map(|_| join("many")).collect();
    assert_eq!(take(&mut lanes.started()[0]).len(), many.len());
}

#[tokio::test(start_paused = true)]
async fn few_do_not_wait_long_for_a_lane_that_is_stuck_or_died() {
    for is_stuck in [true, false] {
        let (queue, lanes) = (Names::default(), Lanes::default());
        let mut first = Box::pin(lanes.join(&queue, "first", LIMIT));
        assert!((&mut first).now_or_never().is_none());
        let mut lane = lanes.started().remove(0);
        let taken = take(&mut lane);
        let begun = Instant::now();
        let start = |mut lane: NameLane| lane.next().unwrap().caller.tell(7);
        let mut other = Box::pin(queue.join(Some("other"), "other", LIMIT, start));
        assert!((&mut other).now_or_never().is_none());
        let _stuck = is_stuck.then_some((lane, taken));
        assert_eq!(other.await, Ok(7));
        assert!(begun.elapsed() < FEW_WAIT * 2, "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn without_load_nobody_waits_and_under_load_those_that_wait_go_together() {
    let (queue, lanes) = (Names::default(), Lanes::default());
    let (_callers, mut busy, taken) = all_lanes!(queue, lanes);
    assert!(busy.iter_mut().zip(taken).all(|(lane, first)| lane.take_along(first).len() == 1));
    let mut waiting: Vec<_> =
        ["a", "b", "a", "c", "lane 1", "d"].map(|name| Box::pin(lanes.join(&queue, name, LIMIT))).into();
    assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
    assert!(lanes.started().is_empty(), "there are as many as there may be");
    let taken = take(&mut busy[0]);
    assert_eq!(items(&taken), ["a", "b", "a", "c", "d"], "all but the one whose name is on its way");
    for (number, one) in taken.into_iter().enumerate() {
        one.caller.tell(number);
    }
    for (number, waiting) in waiting[..4].iter_mut().enumerate() {
        assert_eq!(waiting.now_or_never(), Some(Ok(number)));
    }
    assert!(busy[0].next().is_none(), "its name is on its way still");
    assert_eq!(busy[1].next().unwrap().item, "lane 1");
    assert!(busy[1].next().is_none());
    assert_is_empty(&queue);
}

#[tokio::test(start_paused = true)]
async fn those_of_one_name_keep_their_order_and_go_alone_after_a_failure_together() {
    let (queue, lanes) = (Names::default(), Lanes::default());
    let mut waiting: Vec<_> = ["a", "a", "b", "a"].map(|name| Box::pin(lanes.join(&queue, name, LIMIT))).into();
    assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
    let mut lane = lanes.started().remove(0);
    let taken = take(&mut lane);
    assert_eq!(items(&taken), ["a", "a", "b", "a"]);
    lane.again_alone(taken, |lane| lanes.start(lane));
    let mut started = lanes.started();
    assert_eq!(started.len(), 2, "one for each name");
    let (mut other, mut lane) = (started.remove(1), started.remove(0));
    assert_eq!(other.next().unwrap().item, "b");
    for number in 0..3 {
        let mut taken = take(&mut lane);
        assert_eq!(taken.len(), 1, "who is alone takes nobody along");
        assert!(other.next().is_none(), "and goes with nobody, nor beside one of its name");
        taken.remove(0).caller.tell(number);
    }
    assert!(lane.next().is_none());
    for (number, caller) in [0, 1, 3].into_iter().enumerate() {
        assert_eq!((&mut waiting[caller]).now_or_never(), Some(Ok(number)), "in order");
    }
    assert_is_empty(&queue);
}

#[tokio::test(start_paused = true)]
async fn those_that_go_again_alone_do_not_wait_for_each_other() {
    let (queue, lanes) = (Names::default(), Lanes::default());
    let (_callers, mut busy, _taken) = all_lanes!(queue, lanes);
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut waiting: Vec<_> = names.map(|name| Box::pin(lanes.join(&queue, name, LIMIT))).into();
    assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
    let taken = take(&mut busy[0]);
    assert_eq!(items(&taken), names);
    busy[0].again_alone(taken, |lane| lanes.start(lane));
    let mut started = lanes.started();
    assert_eq!(started[0].next().unwrap().item, "a");
    assert!(started.len() == 1 && busy[0].next().is_none(), "there are as many as there may be");
    // Before the first is done.
    assert_eq!(busy[1].next().unwrap().item, "b");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_gone_is_passed_over() {
    let (queue, lanes) = (Names::default(), Lanes::default());
    let (_callers, mut busy, _taken) = all_lanes!(queue, lanes);
    let mut waiting: Vec<_> = ["a", "b", "c"].map(|name| Box::pin(lanes.join(&queue, name, LIMIT))).into();
    assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
    drop(waiting.remove(0));
    busy.truncate(1);
    let mut taken = busy[0].next().unwrap();
    assert_eq!(taken.item, "b");
    assert!(taken.caller.gone().now_or_never().is_none());
    drop(waiting.remove(0));
    assert!(taken.caller.gone().now_or_never().is_some());
    drop(waiting);
    assert!(busy[0].take_along(taken).len() == 1 && busy[0].next().is_none());
}

#[tokio::test(start_paused = true)]
async fn one_whose_lane_dies_hears_of_it_and_its_name_is_free_again() {
    let (queue, lanes) = (Names::default(), Lanes::default());
    let mut dies = Box::pin(lanes.join(&queue, "a", LIMIT));
    assert!((&mut dies).now_or_never().is_none());
    drop(lanes.started());
    assert_eq!(dies.await, Err(QueueError::Died));
    assert_is_empty(&queue);
}

#[tokio::test(start_paused = true)]
async fn one_that_takes_long_holds_up_nobody_but_those_of_its_name_and_those_not_for_ever() {
    let (queue, lanes) = (Names::default(), Lanes::default());
    let (_callers, busy, _taken) = all_lanes!(queue, lanes);
    let (started, limit) = (Instant::now(), PATIENCE * 3);
    let other = async {
        let start = |mut lane: NameLane| lane.next().unwrap().caller.tell(7);
        assert_eq!(queue.join(Some("a"), "a", limit, start).await, Ok(7));
        started.elapsed()
    };
    let same = async {
        assert_eq!(lanes.join(&queue, "lane 0", limit).await, Err(QueueError::TooLong));
        started.elapsed()
    };
    let (other, same) = tokio::join!(other, same);
    assert!(other < PATIENCE * 2 && same >= limit, "{other:?}, {same:?}");
    drop(busy);
    assert_is_empty(&queue);
}

#[tokio::test(start_paused = true)]
async fn one_that_goes_again_has_its_whole_time_again() {
    let (queue, lanes) = (Names::default(), Lanes::default());
    let limit = PATIENCE * 2;
    let caller = lanes.join(&queue, "a", limit);
    let work = async {
        tokio::task::yield_now().await;
        let mut lane = lanes.started().remove(0);
        let taken = take(&mut lane);
        // It failed late: had it waited for so long, it would have left.
        tokio::time::sleep(limit * 2).await;
        lane.again_alone(taken, |lane| lanes.start(lane));
        tokio::time::sleep(PATIENCE + PATIENCE / 2).await;
        take(&mut lanes.started()[0]).remove(0).caller.tell(7);
    };
    let (result, ()) = tokio::join!(caller, work);
    assert_eq!(result, Ok(7));
}
