//! Tells what connections begin to send, so that one can be sure that something is sent behind something else.
//!
//! A statement that is not prepared yet on its connection waits for that, and whatever is sent meanwhile overtakes it.

use std::cell::Cell;

use diesel::connection::InstrumentationEvent;
use diesel_async::AsyncConnection;

use super::Conn;

/// What connections have begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    /// Statements, prepared or not.
    pub statements: usize,
    /// Preparations of statements that are kept prepared (`cached`). Others are prepared in silence.
    pub preparations: usize,
    /// Statements that came to their end, perhaps before anything was sent.
    pub ends: usize,
}

thread_local! {
    static BEGUN: Cell<Begun> = const { Cell::new(Begun { statements: 0, preparations: 0, ends: 0 }) };
}

/// Has it told what this connection begins.
pub fn watch(conn: &mut Conn) {
    conn.set_instrumentation(|event: InstrumentationEvent<'_>| {
        let mut begun = BEGUN.get();
        match event {
            InstrumentationEvent::StartQuery { .. } => begun.statements += 1,
            InstrumentationEvent::CacheQuery { .. } => begun.preparations += 1,
            InstrumentationEvent::FinishQuery { .. } => begun.ends += 1,
            _ => {}
        }
        BEGUN.set(begun);
    });
}

/// What watched connections have begun on this thread so far. What polling a future once adds to it, it has begun.
pub fn begun_on_this_thread() -> Begun {
    BEGUN.get()
}
