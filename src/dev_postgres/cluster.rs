//! Makes the cluster: all of it, or nothing that would ever be used.
//!
//! It must not run the server for clients, nor touch a cluster that exists.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::NAME;
use super::data_dir::DataDir;
use super::home::Home;
use super::process::{self, ServerUser};
use super::programs::Programs;

/// What the name of a cluster in the making begins with.
const UNFINISHED: &str = "data.new-";

/// Opens the cluster of `home`, made first if need be, and says as whom the
/// server has to run.
pub(super) fn open_or_make(home: &Home, programs: &Programs) -> Result<(DataDir, Option<ServerUser>)> {
    remove_unfinished(home.dir())?;
    let path = home.data_path();
    if home.cluster_major()?.is_some() {
        let user = ServerUser::for_cluster(&path)?;
        return Ok((DataDir::open(path)?, user));
    }
    let user = ServerUser::for_new_cluster()?;
    log::info!("making a private PostgreSQL {} database in {}", programs.major, home.dir().display());
    let unfinished = home.dir().join(format!("{UNFINISHED}{}", std::process::id()));
    let made = make(&unfinished, programs, user).and_then(|mut data| {
        data.rename(path)?;
        // The new name, too, has to outlive a power failure.
        File::open(home.dir())?.sync_all()?;
        Ok(data)
    });
    if made.is_err() {
        remove_unfinished(home.dir())?;
    }
    Ok((made.context("cannot make the private database")?, user))
}

/// Removes what a crash left half-made.
fn remove_unfinished(home: &Path) -> Result<()> {
    for entry in fs::read_dir(home).with_context(|| format!("cannot read {}", home.display()))? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            let path = entry.path();
            if let Err(error) = fs::remove_dir_all(&path) {
                // Not in the way: every one has a name of its own.
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
    Ok(())
}

fn make(path: &Path, programs: &Programs, user: Option<ServerUser>) -> Result<DataDir> {
    let failed = || format!("cannot create {}", path.display());
    DirBuilder::new().mode(0o700).create(path).with_context(failed)?;
    if let Some(user) = user {
        user.own(path).with_context(failed)?;
    }
    let data = DataDir::open(path.to_owned())?;
    let command = |program: &Path| process::command(program, &data, user, Signal::SIGKILL);
    let mut initdb = command(&programs.initdb());
    initdb
        .arg("--pgdata")
        .arg(data.server_path())
        .args(["--username", NAME, "--encoding=UTF8", "--locale=C"])
        .args(["--auth-local=trust", "--auth-host=reject"])
        .arg("--no-instructions");
    run(initdb, "")?;
    // A server without clients: the database is there before anyone connects.
    let mut single = command(&programs.postgres());
    single.arg("--single").arg("-D").arg(data.server_path()).args(["-c", "exit_on_error=on", "postgres"]);
    run(single, &format!("CREATE DATABASE {NAME}\n"))?;
    Ok(data)
}

/// Runs a program to its end. The calling thread waits for it, so the program
/// ends with us.
fn run(mut command: Command, input: &str) -> Result<()> {
    let program = command.get_program().to_owned();
    let failed = || format!("cannot run {}", program.display());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It has ended already, and says why below.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
            result => result.with_context(failed)?,
        }
    }
    let output = child.wait_with_output().with_context(failed)?;
    if !output.status.success() {
        bail!("{} failed ({}): {}", program.display(), output.status, reason(&output));
    }
    Ok(())
}

/// The one line of the output that says what went wrong.
fn reason(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = || text.lines().filter(|line| !line.trim().is_empty());
    let telling = lines().find(|line| ["error:", "FATAL:", "ERROR:"].iter().any(|w| line.contains(w)));
    telling.or_else(|| lines().next_back()).unwrap_or("it did not say why").trim().to_owned()
}
