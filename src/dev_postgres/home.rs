//! The directory in which a private PostgreSQL lives, and who owns it.
//!
//! It must not look inside the cluster, other than for its major version.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::Uid;

/// A former owner that was just killed may need a moment to be gone.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// The directory, ours alone for as long as this value lives.
#[derive(Debug)]
pub(super) struct Home {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Home {
    /// Creates `dir` when it is absent and makes this process its one owner.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        create(dir).with_context(|| format!("cannot create the directory {}", dir.display()))?;
        let handle = open_own(dir)?;
        make_private(dir, &handle)?;
        let path = fs::canonicalize(dir).with_context(|| format!("cannot enter the directory {}", dir.display()))?;
        ensure_same(&path, &handle)?;
        let lock = lock(&path)?;
        Ok(Self { dir: path, _lock: lock })
    }

    /// Its absolute path, without symbolic links.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the cluster is, or will be.
    pub(super) fn data_path(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the server writes its log.
    pub(super) fn log_path(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// The major version that made the cluster; none when there is none yet.
    pub(super) fn cluster_major(&self) -> Result<Option<u32>> {
        let data = self.data_path();
        if fs::symlink_metadata(&data).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            return Ok(None);
        }
        let file = data.join("PG_VERSION");
        let unusable =
            || format!("{} is not a PostgreSQL data directory; move it away to start afresh", data.display());
        let text = fs::read_to_string(&file).with_context(unusable)?;
        let major = text.trim().parse().with_context(unusable)?;
        Ok(Some(major))
    }
}

fn create(dir: &Path) -> std::io::Result<()> {
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Opens `dir` if it is a directory of this user's, and no symbolic link to one: whoever may write to the directory
/// above could put a link there, and have us write to a directory of their choice.
fn open_own(dir: &Path) -> Result<File> {
    let shown = dir.display();
    if fs::symlink_metadata(dir).is_ok_and(|metadata| metadata.is_symlink()) {
        bail!("{shown} is a symbolic link, which is not followed; remove it, or run subledger in another directory");
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(dir);
    let handle = match opened {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(not_ours_or(dir, error)),
        result => result.with_context(|| format!("cannot open the directory {shown}"))?,
    };
    let owner = handle.metadata().with_context(|| format!("cannot read {shown}"))?.uid();
    ensure_owner(dir, owner)?;
    Ok(handle)
}

/// A directory that cannot be opened is most often somebody else's.
fn not_ours_or(dir: &Path, error: std::io::Error) -> anyhow::Error {
    let owner = fs::symlink_metadata(dir).map(|metadata| ensure_owner(dir, metadata.uid()));
    match owner {
        Ok(Err(not_ours)) => not_ours,
        _ => anyhow::Error::from(error).context(format!("cannot open the directory {}", dir.display())),
    }
}

fn ensure_owner(dir: &Path, owner: u32) -> Result<()> {
    let us = Uid::effective().as_raw();
    if owner != us {
        bail!(
            "{} belongs to user {owner}, but this is user {us}: run subledger as its owner, or in another directory",
            dir.display()
        );
    }
    Ok(())
}

/// Refuses a symbolic link and a directory of another user.
pub(super) fn ensure_own_if_present(dir: &Path) -> Result<()> {
    match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        _ => open_own(dir).map(drop),
    }
}

/// Refuses a path at which another directory stands than the one that was checked.
fn ensure_same(path: &Path, handle: &File) -> Result<()> {
    let opened = handle.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    let found = fs::symlink_metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if (opened.dev(), opened.ino()) != (found.dev(), found.ino()) {
        bail!("{} was replaced while it was opened", path.display());
    }
    Ok(())
}

fn make_private(dir: &Path, handle: &File) -> Result<()> {
    let mode = handle.metadata().with_context(|| format!("cannot read {}", dir.display()))?.mode();
    if mode & 0o077 != 0 {
        handle
            .set_permissions(Permissions::from_mode(0o700))
            .with_context(|| format!("cannot make {} private", dir.display()))?;
    }
    Ok(())
}

/// The kernel gives the lock up when its holder is gone, so it is never stale.
fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join("lock");
    let failed = || format!("cannot lock {}", path.display());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(&path)
        .with_context(failed)?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0).with_context(failed)?;
                writeln!(lock, "{}", std::process::id()).with_context(failed)?;
                return Ok(lock);
            }
            Err((file, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => {
                return Err(taken(dir, file));
            }
            Err((again, Errno::EWOULDBLOCK)) => file = again,
            Err((_, error)) => return Err(error).with_context(failed),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn taken(dir: &Path, mut lock: File) -> anyhow::Error {
    let mut owner = String::new();
    let who = match lock.read_to_string(&mut owner) {
        Ok(_) if !owner.trim().is_empty() => format!(" (process {})", owner.trim()),
        _ => String::new(),
    };
    anyhow!("another subledger{who} already runs its PostgreSQL in {}", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creates_a_private_directory_and_its_parents() {
        let tmp = tempfile::tempdir().unwrap();
        let home = Home::open(&tmp.path().join("a/b/home")).unwrap();
        assert_eq!(fs::metadata(home.dir()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(home.cluster_major().unwrap(), None);
    }

    #[test]
    fn makes_an_open_directory_private() {
        let tmp = tempfile::tempdir().unwrap();
        fs::set_permissions(tmp.path(), Permissions::from_mode(0o755)).unwrap();
        Home::open(tmp.path()).unwrap();
        assert_eq!(fs::metadata(tmp.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn refuses_a_second_owner_until_the_first_is_gone() {
        let tmp = tempfile::tempdir().unwrap();
        let first = Home::open(tmp.path()).unwrap();
        let message = Home::open(tmp.path()).unwrap_err().to_string();
        let us = format!("another subledger (process {}) already", std::process::id());
        assert!(message.starts_with(&us), "{message}");
        drop(first);
        Home::open(tmp.path()).unwrap();
    }

    #[test]
    fn refuses_a_directory_of_someone_else() {
        if !Uid::effective().is_root() {
            return; // only root can make one
        }
        let tmp = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(tmp.path(), Some(65_534), None).unwrap();
        let message = Home::open(tmp.path()).unwrap_err().to_string();
        assert!(message.contains("belongs to user 65534"), "{message}");
    }

    #[test]
    fn refuses_a_link_and_leaves_its_target_as_it_is() {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("target");
        fs::create_dir(&target).unwrap();
        fs::set_permissions(&target, Permissions::from_mode(0o755)).unwrap();
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        for message in [Home::open(&link).unwrap_err(), ensure_own_if_present(&link).unwrap_err()] {
            assert!(message.to_string().contains("is a symbolic link"), "{message}");
        }
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        ensure_own_if_present(&tmp.path().join("absent")).unwrap();
    }

    #[test]
    fn refuses_a_directory_that_is_no_cluster() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("data")).unwrap();
        let home = Home::open(tmp.path()).unwrap();
        let message = home.cluster_major().unwrap_err().to_string();
        assert!(message.contains("is not a PostgreSQL data directory"), "{message}");
    }
}
