//! Child processes: as which user they run, what they inherit, how they end.
//!
//! It must not know what the programs do.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;

use super::data_dir::DataDir;

/// What the programs need of our environment. Anything else, our secrets among
/// it, is none of their business; the `PG…` variables would change what they do.
const INHERITED: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"];

/// As whom the server runs, when we are root: it refuses to run as root.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerUser {
    uid: u32,
    gid: u32,
}

impl ServerUser {
    /// For a new cluster. None when we are not root: then it is ourselves.
    pub(super) fn for_new_cluster() -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name).context("cannot read the users")? {
                return Ok(Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
            }
        }
        Err(anyhow!(
            "PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as; run subledger as another user"
        ))
    }

    /// For a cluster that exists: its owner, because the server insists on it.
    pub(super) fn for_cluster(data: &Path) -> Result<Option<Self>> {
        let metadata = fs::metadata(data).with_context(|| format!("cannot read {}", data.display()))?;
        let us = Uid::effective();
        if us.is_root() && metadata.uid() == 0 {
            bail!(
                "{} belongs to root, as whom PostgreSQL refuses to run; give it to another user (`chown -R postgres {0}`)",
                data.display()
            );
        }
        Ok(us.is_root().then_some(Self { uid: metadata.uid(), gid: metadata.gid() }))
    }

    /// Gives a directory to this user.
    pub(super) fn own(self, dir: &Path) -> io::Result<()> {
        std::os::unix::fs::lchown(dir, Some(self.uid), Some(self.gid))
    }
}

/// A command that runs a program on `data` as `user`. On Linux it gets
/// `at_our_death` when the thread that spawns it ends.
#[expect(clippy::disallowed_methods, reason = "what the programs inherit is no configuration of ours")]
pub(super) fn command(program: &Path, data: &DataDir, user: Option<ServerUser>, at_our_death: Signal) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C");
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // Our working directory may be closed to that user.
    command.current_dir("/").stdin(Stdio::null());
    if let Some(ServerUser { uid, gid }) = user {
        // As root this also drops all supplementary groups.
        command.uid(uid).gid(gid);
    }
    tie_to_us(&mut command, data, at_our_death);
    command
}

#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "only between fork and exec can a child be told to end with its parent and to keep a descriptor"
)]
fn tie_to_us(command: &mut Command, data: &DataDir, at_our_death: Signal) {
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::prctl::set_pdeathsig;
    use nix::unistd::{Pid, getppid};

    let handle = data.handle();
    let parent = Pid::this();
    let before_exec = move || -> io::Result<()> {
        fcntl(&*handle, FcntlArg::F_SETFD(FdFlag::empty()))?;
        // After the change of user, which would have cleared it.
        set_pdeathsig(at_our_death)?;
        // Had the parent died just before, no signal would ever come.
        if getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child between fork and exec, where only
    // async-signal-safe calls are allowed. It makes three plain system calls,
    // and neither allocates nor takes a lock nor frees what it captured.
    unsafe {
        command.pre_exec(before_exec);
    }
}

#[cfg(not(target_os = "linux"))]
fn tie_to_us(_command: &mut Command, _data: &DataDir, _at_our_death: Signal) {}

/// A child process, and the thread that spawned it: the kernel's signal at our
/// death is bound to that thread, so it has to live as long as the child.
#[derive(Debug)]
pub(super) struct KeptChild {
    child: Child,
    life: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl KeptChild {
    pub(super) fn spawn(mut command: Command) -> io::Result<Self> {
        let (spawned, result) = mpsc::channel();
        let (life, ended) = mpsc::channel::<()>();
        let keeper = thread::Builder::new().name("postgres-keeper".to_owned()).spawn(move || {
            if spawned.send(command.spawn()).is_ok() {
                // Nothing is ever sent: this returns when `life` is dropped.
                ended.recv().unwrap_or_default();
            }
        })?;
        let child = result.recv().map_err(io::Error::other)??;
        Ok(Self { child, life: Some(life), keeper: Some(keeper) })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; none while it runs.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends a signal, unless it has ended.
    pub(super) fn signal(&mut self, signal: Signal) -> Result<()> {
        // Until the child is waited for nobody else can have its number.
        if self.try_wait()?.is_none() {
            let pid = nix::unistd::Pid::from_raw(self.id().try_into()?);
            nix::sys::signal::kill(pid, signal).with_context(|| format!("cannot send {signal} to process {pid}"))?;
        }
        Ok(())
    }

    /// Waits for the end; false when it still runs after `patience`.
    pub(super) fn wait(&mut self, patience: Duration) -> io::Result<bool> {
        let child = &mut self.child;
        poll_until(patience, || Ok(child.try_wait()?.is_some()))
    }
}

impl Drop for KeptChild {
    fn drop(&mut self) {
        drop(self.life.take());
        if let Some(Err(_)) = self.keeper.take().map(JoinHandle::join) {
            log::error!("the thread that keeps PostgreSQL panicked");
        }
    }
}

/// Asks every 10 ms until `done` says yes; false when it never did within
/// `patience`.
pub(super) fn poll_until<E>(patience: Duration, mut done: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    let deadline = Instant::now() + patience;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
