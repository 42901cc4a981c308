//! Notices that a connection prepares a statement, which takes a round trip before the statement itself is sent.

use std::cell::Cell;

use diesel::connection::InstrumentationEvent;
use diesel_async::AsyncConnection;

use super::Conn;

thread_local! {
    static BEGUN: Cell<u64> = const { Cell::new(0) };
}

/// Has it noticed what this connection prepares.
pub fn watch(conn: &mut Conn) {
    conn.set_instrumentation(|event: InstrumentationEvent<'_>| {
        if matches!(event, InstrumentationEvent::CacheQuery { .. }) {
            BEGUN.set(BEGUN.get() + 1);
        }
    });
}

/// How many statements watched connections have begun to prepare on this thread. What is the same before and after a
/// future was polled has prepared none.
pub fn on_this_thread() -> u64 {
    BEGUN.get()
}
