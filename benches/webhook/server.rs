//! The server under test, a process of its own.

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

use crate::load::{self, Load};
use crate::process::Totals;

const SECRET: &str = "whsec_bench";

const STARTED: &str = "listening on http://";

/// The server under test.
pub struct Server {
    child: Child,
    address: SocketAddr,
    secret: Secret,
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
            .env("ADMIN_TOKEN", "bench")
            .env("BIND_ADDR", "127.0.0.1:0")
            .env("RUST_LOG", format!("{log_filter},subledger::commands::serve=info"))
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

    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What it has used so far.
    pub fn totals(&self) -> Option<Totals> {
        Totals::of(self.child.id())
    }

    /// Delivers every request once, see [`load::run`], and adds what the server used for it.
    pub fn deliver(&self, connections: usize, requests: &[Vec<u8>], outcomes: &[&str]) -> Result<Load> {
        let before = self.totals();
        let mut load = load::run(self.address, connections, requests, outcomes)?;
        load.usage = self.totals().zip(before).map(|(now, before)| now.since(before, requests.len()));
        Ok(load)
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "subledger stopped with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
