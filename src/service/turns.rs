//! Events of one subscription take turns before they take a connection.
//!
//! PostgreSQL would line them up as well, at the subscription's row; but each would hold a connection while it waits,
//! so that one busy or locked subscription could take the whole pool from all others, and those that wait for a row
//! are let go in no order. Nothing depends on it: between replicas, and for what goes the long way, the database's own
//! locks decide.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// Who holds a turn, by name, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

/// A turn, or a place in the queue for it. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    name: &'a str,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits until all that came before under this name have ended.
    pub(super) async fn take<'a>(&'a self, name: &'a str) -> Turn<'a> {
        // From here on, so that it is tidied up also where nobody waits any longer.
        let mut turn = Turn { turns: self, name, held: None };
        let queue = self.queues().entry(name.to_owned()).or_default().clone();
        turn.held = Some(queue.lock_owned().await);
        turn
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queues = self.turns.queues();
        self.held = None;
        // The map's own is the last: nobody holds the turn or waits for it.
        if queues.get(self.name).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn turns_of_one_name_come_in_order_and_leave_nothing_behind() {
        let turns = Turns::default();
        let first = turns.take("sub_1").await;
        let other = turns.take("sub_2").now_or_never().expect("another name does not wait");
        let (mut second, mut third) = (Box::pin(turns.take("sub_1")), Box::pin(turns.take("sub_1")));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        drop(first);
        assert!((&mut third).now_or_never().is_none(), "it came later");
        let second = second.now_or_never().expect("its turn");
        // One that is given up while it waits is not waited for.
        let fourth = timeout(Duration::from_millis(1), turns.take("sub_1")).await;
        assert!(fourth.is_err());
        drop(second);
        let third = third.now_or_never().expect("its turn");
        assert_eq!(turns.queues().len(), 2);
        drop((third, other));
        assert_eq!(turns.queues().len(), 0);
    }
}
