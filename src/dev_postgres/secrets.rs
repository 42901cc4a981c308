//! `./.subledger`: where a server with nothing configured keeps its database and its secrets.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::RngExt;

use super::home;
use crate::secret::Secret;

const WEBHOOK_SECRET: &str = "webhook_secret";
const ADMIN_TOKEN: &str = "admin_token";

/// What the name of a file begins with that keeps the secret that the running server was configured with.
const CONFIGURED: &str = "configured_";

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
    /// If it cannot be made, is a symbolic link, or belongs to another user.
    pub fn create(&self) -> Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("cannot make the folder {}", self.0.display()))
            }
            _ => home::ensure_own_if_present(&self.0),
        }
    }

    /// The webhook secret of the server that runs here: the configured one, else the one that was made up.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn webhook_secret(&self) -> Result<Secret> {
        self.read(self.name_in_use(WEBHOOK_SECRET))
    }

    /// The admin token of the server that runs here: the configured one, else the one that was made up.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn admin_token(&self) -> Result<Secret> {
        self.read(self.name_in_use(ADMIN_TOKEN))
    }

    /// Keeps the secrets that the server was configured with, so that other commands in this folder use the same.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn keep_configured(&self, webhook_secret: Option<&Secret>, admin_token: Option<&Secret>) -> Result<()> {
        for (name, secret) in [(WEBHOOK_SECRET, webhook_secret), (ADMIN_TOKEN, admin_token)] {
            let name = format!("{CONFIGURED}{name}");
            match secret {
                Some(secret) => self.write(&name, secret.expose())?,
                None => match fs::remove_file(self.0.join(&name)) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("cannot remove {name}"));
                    }
                    _ => {}
                },
            }
        }
        Ok(())
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

    /// The file with the admin token of the server that runs here.
    pub fn admin_token_path(&self) -> PathBuf {
        self.0.join(self.name_in_use(ADMIN_TOKEN))
    }

    fn name_in_use(&self, name: &str) -> String {
        let configured = format!("{CONFIGURED}{name}");
        if self.0.join(&configured).exists() { configured } else { name.to_owned() }
    }

    fn read(&self, name: impl AsRef<Path>) -> Result<Secret> {
        home::ensure_own_if_present(&self.0)?;
        let path = self.0.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::ensure!(!text.trim().is_empty(), "{} is empty; delete it to have a new one made", path.display());
        Ok(Secret::new(text.trim()))
    }

    fn read_or_make(&self, name: &str, prefix: &str) -> Result<Secret> {
        if !self.0.join(name).exists() {
            self.write(name, &format!("{prefix}{}", hex::encode(rand::rng().random::<[u8; 24]>())))?;
        }
        self.read(name)
    }

    /// Written to another file and renamed, so that a crash leaves no half of a secret.
    fn write(&self, name: &str, secret: &str) -> Result<()> {
        let path = self.0.join(name);
        let new = self.0.join(format!("{name}.new"));
        let failed = || format!("cannot write {}", path.display());
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new).with_context(failed)?;
        file.write_all(secret.as_bytes()).with_context(failed)?;
        file.sync_all().with_context(failed)?;
        fs::rename(&new, &path).with_context(failed)
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

    #[test]
    fn the_configured_secret_is_used_while_it_is_configured() {
        let parent = tempfile::tempdir().unwrap();
        let home = Home::at(parent.path());
        home.create().unwrap();
        let made = home.webhook_secret_or_new().unwrap();
        home.keep_configured(Some(&Secret::new("whsec_configured")), None).unwrap();
        assert_eq!(home.webhook_secret().unwrap().expose(), "whsec_configured");
        home.keep_configured(None, Some(&Secret::new("token"))).unwrap();
        assert_eq!(home.webhook_secret().unwrap().expose(), made.expose());
        assert_eq!(home.admin_token().unwrap().expose(), "token");
        let mode = fs::metadata(home.admin_token_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_link_in_place_of_the_folder_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join(ADMIN_TOKEN), "token").unwrap();
        let home = Home::at(parent.path());
        std::os::unix::fs::symlink(other.path(), home.path()).unwrap();
        for error in [home.create().unwrap_err(), home.admin_token().unwrap_err()] {
            assert!(error.to_string().contains("is a symbolic link"), "{error:#}");
        }
    }
}
