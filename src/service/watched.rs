//! A connection on which statements run outside of a transaction that diesel knows of.

use diesel_async::{AsyncConnection, TransactionManager};

use crate::db::Conn;

/// Keeps a connection out of the pool if its statements are given up, by a client that has gone or by a time limit.
///
/// The server would go on with the statement, and whoever is given the connection next would wait for it, behind locks
/// that it may wait for itself. Of a closed connection the server takes notice and cancels the statement, unless it has
/// committed by then. In a transaction of its own diesel does the same.
pub(super) struct Watched<'a> {
    conn: &'a mut Conn,
    is_in_use: bool,
}

impl<'a> Watched<'a> {
    pub(super) fn of(conn: &'a mut Conn) -> Self {
        Self { conn, is_in_use: true }
    }

    pub(super) fn conn(&mut self) -> &mut Conn {
        self.conn
    }

    /// All that was sent has been answered.
    pub(super) fn release(mut self) {
        self.is_in_use = false;
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if self.is_in_use {
            give_up(self.conn);
        }
    }
}

/// Keeps a connection out of the pool.
pub(super) fn give_up(conn: &mut Conn) {
    <Conn as AsyncConnection>::TransactionManager::transaction_manager_status_mut(conn).set_in_error();
}
