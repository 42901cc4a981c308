//! Whether the database takes writes. One that is read-only, or whose disk is full, answers questions as ever; so the
//! want of room is remembered, and the question of how the database is tries to write again.

use std::sync::atomic::{AtomicBool, Ordering};

use diesel::result::Error as DieselError;
use diesel_async::AsyncConnection;

use super::{Service, ServiceError};
use crate::db::{Conn, writes};

/// Whether the last write was refused for want of room.
#[derive(Debug, Default)]
pub(super) struct Room(AtomicBool);

impl Room {
    pub(super) fn is_wanting(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn note(&self, is_wanting: bool) {
        self.0.store(is_wanting, Ordering::Relaxed);
    }
}

impl Service {
    /// Whether an event could be recorded now.
    ///
    /// # Errors
    /// [`ServiceError`] where the database does not answer.
    pub(super) async fn takes_writes(&self, conn: &mut Conn) -> Result<bool, ServiceError> {
        if writes::is_read_only(conn).await? {
            log::warn!("health: the database is read-only");
            // The next question gets a session that knows whether it still is; that this one is gone is the aim.
            writes::end_session(conn).await.ok();
            return Ok(false);
        }
        // Only then: a health check is no reason to write.
        if self.inner.room.is_wanting() {
            let probe = conn.transaction(async |conn| {
                writes::try_insert(conn).await?;
                Err::<(), _>(DieselError::RollbackTransaction)
            });
            match probe.await {
                Err(DieselError::RollbackTransaction) => self.inner.room.note(false),
                result => {
                    log::warn!("health: the database takes no writes: {result:?}");
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}
