//! The running server: its settings, when it is ready, and its end.
//!
//! It must not make or change the cluster.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;

use super::data_dir::DataDir;
use super::process::{self, KeptChild, ServerUser, poll_until};
use super::programs::Programs;

/// After a crash up to a gigabyte of log is applied first.
const READY_PATIENCE: Duration = Duration::from_secs(120);

/// How long processes of a server that was killed may take to notice it.
const CRASH_PATIENCE: Duration = Duration::from_secs(15);

/// A log longer than this is put aside, as `postgres.log.1`, at the next start.
const LONGEST_LOG: u64 = 4 << 20;

/// On the command line, where no setting in the cluster can change them.
/// `terse` keeps rows, and with them payloads, out of the log.
const SETTINGS: [&str; 13] = [
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "port=5432",
    "fsync=on",
    "full_page_writes=on",
    "synchronous_commit=on",
    "max_connections=200",
    "logging_collector=off",
    "log_destination=stderr",
    "log_checkpoints=off",
    "log_error_verbosity=terse",
    "log_timezone=UTC",
    "timezone=UTC",
];

/// A server that takes connections.
#[derive(Debug)]
pub(super) struct Server {
    child: KeptChild,
}

impl Server {
    /// Starts the server and waits until it takes connections.
    pub(super) fn start(programs: &Programs, data: &DataDir, user: Option<ServerUser>, log: &Path) -> Result<Self> {
        let deadline = Instant::now() + CRASH_PATIENCE;
        loop {
            let log = Log::open(log)?;
            let command = command(programs, data, user, &log)?;
            let child =
                KeptChild::spawn(command).with_context(|| format!("cannot run {}", programs.postgres().display()))?;
            let mut server = Self { child };
            let Err(failure) = server.wait_until_ready(data, &log) else {
                return Ok(server);
            };
            // Processes of a killed server still use its memory, not for long.
            if Instant::now() >= deadline || !log.says("is still in use") {
                return Err(failure);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ready is when the pid file says so, and is of our child: one that a
    /// killed server left may say the same.
    fn wait_until_ready(&mut self, data: &DataDir, log: &Log) -> Result<()> {
        let pid_file = data.path().join("postmaster.pid");
        let pid = self.child.id().to_string();
        let is_ready = || {
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            let line = |n| text.lines().nth(n).map(str::trim);
            line(0) == Some(&pid) && line(7) == Some("ready")
        };
        let came = poll_until(READY_PATIENCE, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("PostgreSQL did not start ({status}): {}", log.reason());
            }
            Ok(is_ready())
        })?;
        if !came {
            bail!("PostgreSQL did not become ready within {} seconds: {}", READY_PATIENCE.as_secs(), log.reason());
        }
        Ok(())
    }

    /// Ends the server; does nothing when it has ended.
    pub(super) fn stop(&mut self) -> Result<()> {
        for (signal, patience) in [
            (Signal::SIGINT, Duration::from_secs(30)), // "fast": roll back, write out
            (Signal::SIGQUIT, Duration::from_secs(5)), // "immediate": recover later
            (Signal::SIGKILL, Duration::from_secs(5)),
        ] {
            self.child.signal(signal)?;
            if self.child.wait(patience)? {
                return Ok(());
            }
            log::warn!("PostgreSQL did not end {} seconds after {signal}", patience.as_secs());
        }
        bail!("the PostgreSQL server (process {}) does not end", self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            log::error!("{error:#}");
        }
    }
}

/// By this name in its command line a server is known to be this cluster's.
pub(super) fn cluster_name(data: &DataDir) -> Result<String> {
    Ok(format!("subledger-{}", data.identity()?))
}

fn command(programs: &Programs, data: &DataDir, user: Option<ServerUser>, log: &Log) -> Result<Command> {
    let mut command = process::command(&programs.postgres(), data, user, Signal::SIGINT);
    let sockets = data.server_socket_dir()?;
    let sockets = sockets.to_str().context("the path is not UTF-8")?;
    command.arg("-D").arg(data.server_path());
    for setting in SETTINGS {
        command.args(["-c", setting]);
    }
    command
        .args(["-c", &format!("cluster_name={}", cluster_name(data)?)])
        .arg("-c")
        .arg(format!("unix_socket_directories=\"{}\"", sockets.replace('"', "\"\"")))
        .stdout(log.file.try_clone()?)
        .stderr(log.file.try_clone()?)
        // A Ctrl-C at the terminal is for us, who stop the server when what is
        // under way is finished.
        .process_group(0);
    Ok(command)
}

/// The server's log, and where in it the present start begins.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    start: u64,
}

impl Log {
    fn open(path: &Path) -> Result<Self> {
        let failed = || format!("cannot open {}", path.display());
        if fs::symlink_metadata(path).is_ok_and(|m| m.len() > LONGEST_LOG) {
            fs::rename(path, path.with_extension("log.1")).with_context(failed)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(path)
            .with_context(failed)?;
        let start = file.metadata().with_context(failed)?.len();
        Ok(Self { path: path.to_owned(), file, start })
    }

    /// The line that says why the server did not start.
    fn reason(&self) -> String {
        let text = self.since_start().unwrap_or_default();
        let lines = || text.lines().filter(|line| !line.trim().is_empty());
        let last = lines()
            .rfind(|line| line.contains("FATAL:") || line.contains("PANIC:"))
            .or_else(|| lines().next_back())
            .unwrap_or("it did not say why");
        format!("{} (all of it in {})", last.trim(), self.path.display())
    }

    /// Whether it has said `text` since the start. Processes of a killed server may have the last word.
    fn says(&self, text: &str) -> bool {
        self.since_start().is_ok_and(|log| log.contains(text))
    }

    fn since_start(&self) -> std::io::Result<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.start))?;
        let mut bytes = Vec::new();
        file.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
