//! Sessions of admins: random ids, of which the database knows only hashes, so that all replicas accept a session and
//! logout ends it everywhere.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::error::AttemptError;
use super::{HEALTH_LIMIT, Service, ServiceError};
use crate::db::pool::Pooled;
use crate::db::sessions;
use crate::secret::Secret;

/// The random id of a session. It is what the cookie holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionId([u8; 32]);

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionId(…)")
    }
}

impl SessionId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The id that was written as hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// As hexadecimal digits.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// HMAC-SHA256 of `text`, keyed with the id: nobody without the id can compute it.
    pub fn hmac(self, text: &[u8]) -> [u8; 32] {
        let mut mac = match Hmac::<Sha256>::new_from_slice(&self.0) {
            Ok(mac) => mac,
            Err(_) => unreachable!("HMAC takes a key of any length"),
        };
        mac.update(text);
        mac.finalize().into_bytes().into()
    }

    /// What the database stores. A session belongs to one admin token and ends when the token is changed.
    fn hash(self, admin_token: &Secret) -> [u8; 32] {
        self.hmac(admin_token.expose().as_bytes())
    }
}

impl Service {
    /// Starts a session that lasts for `lifetime`.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer.
    pub async fn start_session(&self, admin_token: &Secret, lifetime: Duration) -> Result<SessionId, ServiceError> {
        let (service, id) = (self.clone(), SessionId::random());
        let hash = id.hash(admin_token);
        let lifetime_secs = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        self.read(HEALTH_LIMIT, async move {
            let mut conn = service.reserve_connection().await?;
            sessions::delete_expired(&mut conn).await?;
            sessions::insert(&mut conn, &hash, lifetime_secs).await?;
            Ok(id)
        })
        .await
    }

    /// The first of these sessions that was started, and neither ended nor expired.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer.
    pub async fn find_session(
        &self,
        admin_token: &Secret,
        ids: Vec<SessionId>,
    ) -> Result<Option<SessionId>, ServiceError> {
        let service = self.clone();
        let hashes: Vec<_> = ids.iter().map(|id| id.hash(admin_token)).collect();
        self.read(HEALTH_LIMIT, async move {
            let mut conn = service.reserve_connection().await?;
            let slices: Vec<_> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
            let found = sessions::find(&mut conn, &slices).await?;
            Ok(ids
                .into_iter()
                .zip(&hashes)
                .find(|(_, hash)| found.as_deref() == Some(hash.as_slice()))
                .map(|(id, _)| id))
        })
        .await
    }

    /// Ends a session, on every replica.
    ///
    /// # Errors
    /// [`ServiceError`] if the database does not answer: then the session may go on.
    pub async fn end_session(&self, admin_token: &Secret, id: SessionId) -> Result<(), ServiceError> {
        let (service, hash) = (self.clone(), id.hash(admin_token));
        self.read(HEALTH_LIMIT, async move {
            let mut conn = service.reserve_connection().await?;
            sessions::delete(&mut conn, &hash).await?;
            Ok(())
        })
        .await
    }

    /// A connection beside the pool that serves deliveries.
    pub(super) async fn reserve_connection(&self) -> Result<Pooled, AttemptError> {
        self.parts().pool.get_reserve().await.map_err(AttemptError::Pool)
    }
}
