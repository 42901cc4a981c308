//! The cluster's directory, and how the server and its clients name it.
//!
//! It must not know what is inside.
//!
//! As root the server runs as another user, and that user may not be able to
//! walk down to the directory (a private home above it, say). So on Linux the
//! directory is opened once, the server's programs inherit the descriptor, and
//! they name it `/proc/self/fd/<n>`: following such a link asks for no right on
//! the directories above. It also keeps the socket's name short, which may not
//! be longer than 107 bytes (103 on macOS).

#[cfg(target_os = "linux")]
use std::fs::OpenOptions;
use std::fs::{self, File};
use std::os::unix::{ffi::OsStrExt, fs::MetadataExt};
#[cfg(target_os = "linux")]
use std::os::{fd::AsRawFd, unix::fs::OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

/// Leaves room for `/.s.PGSQL.5432.lock` within the kernel's limit.
const LONGEST_SOCKET_DIR: usize = 80;

/// An opened directory that holds a cluster, or is about to.
#[derive(Debug, Clone)]
pub(super) struct DataDir {
    path: PathBuf,
    handle: Arc<File>,
}

impl DataDir {
    /// Opens the directory at `path`, an absolute one.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let handle = open_dir(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { path, handle: Arc::new(handle) })
    }

    /// Renames the directory; what is open stays open.
    pub(super) fn rename(&mut self, to: PathBuf) -> std::io::Result<()> {
        fs::rename(&self.path, &to)?;
        self.path = to;
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What a child process must inherit for [`server_path`](Self::server_path)
    /// to lead here.
    #[cfg(target_os = "linux")]
    pub(super) fn handle(&self) -> Arc<File> {
        Arc::clone(&self.handle)
    }

    /// The directory's name as the server's programs are told it.
    pub(super) fn server_path(&self) -> PathBuf {
        #[cfg(target_os = "linux")]
        return PathBuf::from(format!("/proc/self/fd/{}", self.handle.as_raw_fd()));
        #[cfg(not(target_os = "linux"))]
        return self.path.clone();
    }

    /// Where the server is told to make its socket.
    pub(super) fn server_socket_dir(&self) -> Result<PathBuf> {
        #[cfg(target_os = "linux")]
        return Ok(self.server_path());
        #[cfg(not(target_os = "linux"))]
        return self.client_socket_dir();
    }

    /// Where clients find the socket: in the directory itself when its path is
    /// fit for a socket's name, else by a shorter way.
    pub(super) fn client_socket_dir(&self) -> Result<PathBuf> {
        // libpq takes a comma for the end of a host's name.
        let bytes = self.path.as_os_str().as_bytes();
        if bytes.len() <= LONGEST_SOCKET_DIR && !bytes.contains(&b',') {
            return Ok(self.path.clone());
        }
        #[cfg(target_os = "linux")]
        return Ok(PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())));
        #[cfg(not(target_os = "linux"))]
        return short_socket_dir(&std::env::temp_dir(), &self.identity()?);
    }

    /// A word that names this very directory on this machine.
    pub(super) fn identity(&self) -> Result<String> {
        let metadata = self.handle.metadata().with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(format!("{:x}-{:x}", metadata.dev(), metadata.ino()))
    }
}

#[cfg(target_os = "linux")]
fn open_dir(path: &Path) -> std::io::Result<File> {
    use nix::fcntl::OFlag;
    // O_PATH: the descriptor stands for the directory and asks for no right to
    // read it.
    OpenOptions::new().read(true).custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits()).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_dir(path: &Path) -> std::io::Result<File> {
    File::open(path)
}

/// A directory in `tmp` with a short name, 0700 and ours. Others can write to
/// `tmp`, so one that they made in advance is refused.
#[cfg(any(test, not(target_os = "linux")))]
fn short_socket_dir(tmp: &Path, identity: &str) -> Result<PathBuf> {
    use anyhow::bail;
    use nix::unistd::Uid;
    use std::io::ErrorKind;
    use std::os::unix::fs::DirBuilderExt;

    let us = Uid::effective();
    let dir = tmp.join(format!("subledger-{us}-{identity}"));
    match fs::DirBuilder::new().mode(0o700).create(&dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            return Err(e).with_context(|| format!("cannot create {}", dir.display()));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    if !metadata.is_dir() || metadata.uid() != us.as_raw() || metadata.mode() & 0o077 != 0 {
        bail!("{} is in the way and not a private directory of ours; remove it", dir.display());
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_short_socket_dir_is_made_once_and_kept() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = short_socket_dir(tmp.path(), "1-2").unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        assert_eq!(short_socket_dir(tmp.path(), "1-2").unwrap(), dir);
    }

    #[test]
    fn a_short_socket_dir_made_by_someone_else_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = short_socket_dir(tmp.path(), "1-2").unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(short_socket_dir(tmp.path(), "1-2").is_err(), "open to all");
        fs::remove_dir(&dir).unwrap();
        symlink(tmp.path(), &dir).unwrap();
        assert!(short_socket_dir(tmp.path(), "1-2").is_err(), "a link");
    }

    #[test]
    fn a_path_unfit_for_a_socket_is_replaced() {
        let tmp = tempfile::tempdir().unwrap();
        for name in ["a".repeat(120), "a,b".to_owned()] {
            let path = tmp.path().join(name);
            fs::create_dir(&path).unwrap();
            let data = DataDir::open(path.clone()).unwrap();
            let socket_dir = data.client_socket_dir().unwrap();
            assert_ne!(socket_dir, path);
            assert!(socket_dir.as_os_str().len() <= LONGEST_SOCKET_DIR);
            assert_eq!(fs::canonicalize(socket_dir).unwrap(), path);
        }
    }
}
