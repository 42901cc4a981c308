//! The events of a job in flight: many at a time, so that the group commit takes them together, and those of one
//! subscription one after the other.

use std::collections::HashMap;

use anyhow::Result;
use futures_util::{Stream, TryStreamExt};
use tokio::sync::oneshot;

/// How many events of a job are in flight: as many as both workers of the group commit take at a time.
pub const IN_FLIGHT: usize = 64;

/// Does `work` for each item, up to [`IN_FLIGHT`] at a time; items with the same key take turns, in their order. The
/// results are in the order of the items. Ends at the first error, and drops what is in flight then.
pub fn in_order<T, R, F>(
    items: impl Stream<Item = Result<(String, T)>>,
    mut work: impl FnMut(T) -> F,
) -> impl Stream<Item = Result<R>>
where
    F: Future<Output = Result<R>>,
{
    let mut turns = Turns::default();
    let started = items.map_ok(move |(key, item)| {
        let (turn, result) = (turns.take(key), work(item));
        async move {
            let _turn = turn.wait().await;
            result.await
        }
    });
    started.try_buffered(IN_FLIGHT)
}

/// For each key the end of the last turn that was taken.
#[derive(Default)]
struct Turns(HashMap<String, oneshot::Receiver<()>>);

/// A place behind the earlier items with the same key.
struct Turn {
    before: Option<oneshot::Receiver<()>>,
    /// Dropped at the end of the turn, which begins the next one.
    done: oneshot::Sender<()>,
}

impl Turns {
    fn take(&mut self, key: String) -> Turn {
        if self.0.len() >= 2 * IN_FLIGHT {
            self.0.retain(|_, turn| turn.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        }
        let (done, end) = oneshot::channel();
        Turn { before: self.0.insert(key, end), done }
    }
}

impl Turn {
    /// Waits for the turn; it lasts as long as the returned value.
    async fn wait(self) -> oneshot::Sender<()> {
        if let Some(before) = self.before {
            // Nothing is ever sent: the sender is dropped.
            before.await.ok();
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::time::Duration;

    use futures_util::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn items_of_one_key_take_turns_and_others_go_together() {
        let items = (0..1_000_u64).map(|n| Ok((format!("key {}", n % 100), n)));
        let (running, most, ended) = (Cell::new(0), Cell::new(0), RefCell::new(HashMap::<u64, Option<u64>>::new()));
        let work = async |n: u64| {
            running.set(running.get() + 1);
            most.set(most.get().max(running.get()));
            let before = ended.borrow_mut().insert(n % 100, None);
            assert_ne!(before, Some(None), "two of one key at a time");
            // The later an item is, the sooner it would be done.
            tokio::time::sleep(Duration::from_millis(1_000 - n)).await;
            running.set(running.get() - 1);
            ended.borrow_mut().insert(n % 100, Some(n));
            Ok(n)
        };
        let results: Vec<_> = in_order(stream::iter(items), work).try_collect().await.unwrap();
        assert_eq!(results, (0..1_000).collect::<Vec<_>>());
        assert_eq!(most.get(), IN_FLIGHT);
    }

    #[test]
    fn turns_that_have_ended_are_forgotten() {
        let mut turns = Turns::default();
        for n in 0..10_000 {
            drop(turns.take(n.to_string()));
        }
        assert!(turns.0.len() <= 2 * IN_FLIGHT, "{}", turns.0.len());
    }
}
