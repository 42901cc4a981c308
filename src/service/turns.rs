//! Turns of the events that go alone: events of one customer take one after the other, and all of them together leave some
//! connections of the pool to the batches. Nothing depends on it; the database's locks decide.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use crate::stripe::Event;

/// Customers whose ids have the same hash modulo this number take turns with each other.
const SLOTS: usize = 1_024;

/// How many connections are left to the batches, one for each worker.
const LEFT_TO_BATCHES: u32 = 2;

/// The turns.
#[derive(Debug)]
pub(super) struct Turns {
    slots: Vec<Mutex<()>>,
    connections: Semaphore,
}

impl Turns {
    /// For a pool of so many connections.
    pub(super) fn new(pool_size: u32) -> Self {
        let connections = pool_size.saturating_sub(LEFT_TO_BATCHES).max(1);
        Self {
            slots: std::iter::repeat_with(Mutex::default).take(SLOTS).collect(),
            connections: Semaphore::new(usize::try_from(connections).unwrap_or(1)),
        }
    }

    /// Waits for the event's turn, which ends when the guard is dropped.
    pub(super) async fn take(&self, event: &Event) -> Option<MutexGuard<'_, ()>> {
        let mut hasher = DefaultHasher::new();
        event.customer_id.as_ref().or(event.subscription_id.as_ref()).unwrap_or(&event.id).hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % SLOTS as u64).unwrap_or_default();
        match self.slots.get(index) {
            Some(slot) => Some(slot.lock().await),
            None => None,
        }
    }

    /// Waits until one more attempt may take a connection. Not held while Stripe is asked.
    pub(super) async fn connection(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.connections.acquire().await.ok()
    }
}
