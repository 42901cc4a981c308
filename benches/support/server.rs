//! The server under test, a process of its own, and what it uses.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use subledger::secret::Secret;

use super::client::ADMIN_TOKEN;

const SECRET: &str = "whsec_bench";
const STARTED: &str = "listening on http://";

pub struct Server {
    child: Child,
    address: SocketAddr,
    secret: Secret,
}

/// What a process has of the system, where that tells in `/proc`.
#[derive(Clone, Copy, Debug)]
pub struct Uses {
    pub resident_kib: u64,
    pub files: usize,
    pub threads: u64,
}

impl Server {
    /// Starts it with its defaults, and waits until it listens. It logs to a file in `dir`.
    pub fn start(dir: &Path, database_url: &str, log_filter: &str) -> Result<Self> {
        let log = dir.join("subledger.log");
        let child = Command::new(env!("CARGO_BIN_EXE_subledger"))
            // Nothing of what the caller's environment configures.
            .env_clear()
            .env("DATABASE_URL", database_url)
            .env("STRIPE_WEBHOOK_SECRET", SECRET)
            .env("ADMIN_TOKEN", ADMIN_TOKEN)
            .env("BIND_ADDR", "127.0.0.1:0")
            .env("RUST_LOG", format!("{log_filter},subledger::cli::serve=info"))
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start subledger")?;
        let mut server = Self { child, address: ([127, 0, 0, 1], 0).into(), secret: Secret::new(SECRET) };
        server.address = server.wait_for_address(&log)?;
        Ok(server)
    }

    fn wait_for_address(&mut self, log: &Path) -> Result<SocketAddr> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = fs::read_to_string(log)?;
            if let Some((line, _)) = text.split_once(STARTED).and_then(|(_, rest)| rest.split_once('\n')) {
                return line.parse().context("the address that subledger logs");
            }
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("subledger does not start: {text}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What it uses now.
    pub fn uses(&self) -> Result<Uses> {
        let process = self.child.id();
        let files = fs::read_dir(format!("/proc/{process}/fd")).context("this needs /proc")?.count();
        Ok(Uses { resident_kib: status(process, "VmRSS:")?, files, threads: status(process, "Threads:")? })
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "subledger stopped with {status}");
        Ok(())
    }
}

/// A number of `/proc/<pid>/status`; memory in KiB.
pub fn status(process: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).context("this needs /proc")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
    line.trim().trim_end_matches(" kB").parse().with_context(|| line.to_owned())
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
