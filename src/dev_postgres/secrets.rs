//! `./.subledger`: where a server with nothing configured keeps its database and its secrets.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::RngExt;

use crate::secret::Secret;

const WEBHOOK_SECRET: &str = "webhook_secret";
const ADMIN_TOKEN: &str = "admin_token";

/// The folder.
#[derive(Debug)]
pub struct Home(PathBuf);

impl Home {
    /// The folder beneath `parent`; it need not exist.
    pub fn at(parent: &Path) -> Self {
        Self(parent.join(".subledger"))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder, for its owner alone.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn create(&self) -> Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("cannot make the folder {}", self.0.display()))
            }
            _ => Ok(()),
        }
    }

    /// The webhook secret that was made up.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    pub fn webhook_secret(&self) -> Result<Secret> {
        self.read(WEBHOOK_SECRET)
    }

    /// The admin token that was made up.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read.
    pub fn admin_token(&self) -> Result<Secret> {
        self.read(ADMIN_TOKEN)
    }

    /// The webhook secret; made up where there is none yet.
    ///
    /// # Errors
    /// Where it can neither be read nor kept.
    pub fn webhook_secret_or_new(&self) -> Result<Secret> {
        self.read_or_make(WEBHOOK_SECRET, "whsec_")
    }

    /// The admin token; made up where there is none yet.
    ///
    /// # Errors
    /// Where it can neither be read nor kept.
    pub fn admin_token_or_new(&self) -> Result<Secret> {
        self.read_or_make(ADMIN_TOKEN, "")
    }

    /// Where the admin token is kept.
    pub fn admin_token_path(&self) -> PathBuf {
        self.0.join(ADMIN_TOKEN)
    }

    fn read(&self, name: &str) -> Result<Secret> {
        let path = self.0.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::ensure!(!text.trim().is_empty(), "{} is empty; delete it to have a new one made", path.display());
        Ok(Secret::new(text.trim()))
    }

    fn read_or_make(&self, name: &str, prefix: &str) -> Result<Secret> {
        let path = self.0.join(name);
        if !path.exists() {
            let secret = format!("{prefix}{}", hex::encode(rand::rng().random::<[u8; 24]>()));
            // Written aside and renamed: a crash in between leaves no half a secret.
            let new = self.0.join(format!("{name}.new"));
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(secret.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.read(name)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_up_once_and_kept_for_the_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let home = Home::at(parent.path());
        assert!(home.admin_token().is_err());
        home.create().unwrap();
        home.create().unwrap();
        let made = home.webhook_secret_or_new().unwrap();
        assert!(made.expose().starts_with("whsec_") && made.expose().len() > 40);
        assert_eq!(home.webhook_secret_or_new().unwrap().expose(), made.expose());
        assert_ne!(home.admin_token_or_new().unwrap().expose(), made.expose());
        let mode = fs::metadata(home.admin_token_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
