//! Ids of everything that a run makes: they carry its seed and its tag, so that no two runs share one. It draws
//! nothing at random itself.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Makes the ids of one run.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    run: String,
}

impl Ids {
    /// The ids of a run, which `seed` and `tag` name.
    pub(super) fn new(seed: u64, tag: &str) -> Self {
        Self { run: format!("Sim{seed}R{tag}") }
    }

    /// The id of a thing of a life: `kind` is `sub`, `evt` and so on, `number` counts within life and kind. Later
    /// things have greater ids.
    pub(super) fn of(&self, kind: &str, life: usize, number: usize) -> String {
        format!("{kind}_{}L{life:07}N{number:03}", self.run)
    }

    /// The id of an account.
    pub(super) fn account(&self, number: usize) -> Uuid {
        let digest = Sha256::digest(format!("{} account {number}", self.run));
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }
}
