//! What a former run left behind in the cluster when it was killed.
//!
//! It must not signal a process that is not known to be the cluster's server.
//!
//! We hold the lock on the directory, so a server of ours that still runs has
//! no owner any more. It is stopped and not taken over: it may be about to end
//! by itself, and a new one ends with us, which this one would not.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::data_dir::DataDir;
use super::process::poll_until;
use super::server::cluster_name;

/// What the process is that the cluster's pid file names.
#[derive(Debug, PartialEq)]
enum Former {
    /// A server that subledger started on this very directory.
    OurServer,
    /// A server that someone else started on this directory.
    ForeignServer,
    /// A server of which we cannot tell where it runs.
    SomeServer,
    /// Something else: the number was given away again, or it is a zombie.
    Unrelated,
    /// There is none.
    Gone,
}

/// Makes sure that nothing which a former run left stands in the way.
pub(super) fn clear(data: &DataDir) -> Result<()> {
    let file = data.path().join("postmaster.pid");
    let Some(pid) = pid_in(&file)? else {
        return Ok(());
    };
    match former(pid, data)? {
        Former::OurServer => stop(pid, data),
        Former::ForeignServer => bail!(
            "a PostgreSQL server that subledger did not start (process {pid}) runs in {}; stop it first",
            data.path().display()
        ),
        // PostgreSQL would take the process for its former server, and not start.
        Former::Unrelated => fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display())),
        // PostgreSQL itself decides, and knows what to do.
        Former::SomeServer | Former::Gone => Ok(()),
    }
}

/// The pid file's first line. A negative number is a server without clients,
/// which PostgreSQL itself looks after.
fn pid_in(file: &Path) -> Result<Option<Pid>> {
    let text = match fs::read_to_string(file) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        result => result.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
    Ok(pid.filter(|&pid| pid > 1).map(Pid::from_raw))
}

fn former(pid: Pid, data: &DataDir) -> Result<Former> {
    let Some(arguments) = command_line(pid)? else {
        return Ok(Former::Gone);
    };
    let name = format!("cluster_name={}", cluster_name(data)?);
    // Any argument: where `ps` tells them, a path with spaces is in pieces. To
    // take something else for a server is the safe mistake.
    let is_server = arguments.iter().any(|argument| {
        let program = argument.rsplit('/').next().unwrap_or(argument);
        program.starts_with("postgres") || program.starts_with("postmaster")
    });
    Ok(match (is_server, works_in(pid, data)?) {
        (false, _) => Former::Unrelated,
        (true, _) if arguments.contains(&name) => Former::OurServer,
        (true, Some(true)) => Former::ForeignServer,
        (true, Some(false)) => Former::Unrelated,
        (true, None) => Former::SomeServer,
    })
}

fn stop(pid: Pid, data: &DataDir) -> Result<()> {
    log::info!("stopping the PostgreSQL server (process {pid}) of a former run");
    for (signal, patience) in [(Signal::SIGINT, Duration::from_secs(30)), (Signal::SIGQUIT, Duration::from_secs(10))] {
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot stop process {pid}")),
        }
        let ended = || Ok::<_, anyhow::Error>(former(pid, data)? != Former::OurServer);
        if poll_until(patience, ended)? {
            return Ok(());
        }
    }
    bail!("the PostgreSQL server (process {pid}) of a former run does not end")
}

/// The process's arguments: empty for a zombie, none when there is no process.
#[cfg(target_os = "linux")]
fn command_line(pid: Pid) -> Result<Option<Vec<String>>> {
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(bytes) => Ok(Some(
            bytes
                .split(|&byte| byte == 0)
                .filter(|argument| !argument.is_empty())
                .map(|argument| String::from_utf8_lossy(argument).into_owned())
                .collect(),
        )),
        // ESRCH: it ended while we read.
        Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot look at process {pid}")),
    }
}

#[cfg(not(target_os = "linux"))]
fn command_line(pid: Pid) -> Result<Option<Vec<String>>> {
    let output = std::process::Command::new("ps")
        .args(["-ww", "-o", "args=", "-p", &pid.to_string()])
        .output()
        .context("cannot run ps")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    Ok((!arguments.is_empty()).then_some(arguments))
}

/// Whether the process works in the cluster's directory, as its server does;
/// none when it cannot be told.
#[cfg(target_os = "linux")]
fn works_in(pid: Pid, data: &DataDir) -> Result<Option<bool>> {
    let Ok(theirs) = DataDir::open(format!("/proc/{pid}/cwd").into()) else {
        return Ok(None);
    };
    Ok(Some(theirs.identity()? == data.identity()?))
}

#[cfg(not(target_os = "linux"))]
fn works_in(_pid: Pid, _data: &DataDir) -> Result<Option<bool>> {
    Ok(None)
}
