//! How much of all bodies together is in memory at once. It counts; what is done where there is no room is its user's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What every body gets without asking: room for an ordinary event, so that large bodies, whoever sends them, cannot
/// keep ordinary ones out. The number of connections bounds it.
const FREE: usize = 32 << 10;

/// Bytes that bodies may still take. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Budget(Arc<AtomicUsize>);

/// What one body has taken. Given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// Room for this many bytes.
    pub fn of(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// A body that has taken nothing yet.
    pub fn share(&self) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }

    fn take(&self, bytes: usize) -> bool {
        let left = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_ok()
    }
}

impl Share {
    /// Makes room for a body that has grown to `length` bytes; false where there is none, and then nothing is taken.
    ///
    /// By what has come, not by what was announced: an announcement costs its sender nothing.
    pub fn cover(&mut self, length: usize) -> bool {
        let more = length.saturating_sub(FREE).saturating_sub(self.bytes);
        let has_room = more == 0 || self.budget.take(more);
        if has_room {
            self.bytes += more;
        }
        has_room
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_bounded_and_comes_back() {
        let budget = Budget::of(100);
        let (mut first, mut second) = (budget.share(), budget.share());
        assert!(first.cover(FREE + 60) && first.cover(FREE + 10), "it has the room already");
        assert!(!second.cover(FREE + 41) && second.cover(FREE + 40));
        assert!(!first.cover(FREE + 61));
        drop(first);
        assert!(second.cover(FREE + 100) && !second.cover(FREE + 101));
    }

    #[test]
    fn an_ordinary_body_is_let_in_when_all_is_taken() {
        let budget = Budget::of(0);
        let mut share = budget.share();
        assert!(share.cover(FREE) && !share.cover(FREE + 1));
    }
}
