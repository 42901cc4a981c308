//! The real binary, run as a user would run it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The binary with an environment that says nothing of subledger, in `folder`.
pub fn subledger(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_subledger"));
    command.current_dir(folder).env_clear();
    #[expect(clippy::disallowed_methods, reason = "where PostgreSQL's programs are is the machine's business")]
    let path = std::env::var_os("PATH").unwrap();
    command.env("PATH", path);
    command
}

pub fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A running server. Killed when dropped.
pub struct Server {
    pub child: Child,
    pub address: String,
    /// The log's lines up to the one that says where it listens.
    pub start_log: Vec<String>,
    log: Receiver<String>,
}

impl Server {
    /// Starts `command` and waits until it says where it listens.
    pub fn start(command: &mut Command) -> Self {
        Self::start_at(command, "127.0.0.1:0")
    }

    /// The same, at an address of the test's choice.
    pub fn start_at(command: &mut Command, address: &str) -> Self {
        let mut child = command.env("BIND_ADDR", address).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut server = Self { child, address: String::new(), start_log: Vec::new(), log };
        while server.address.is_empty() {
            let line = server.log.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("the server does not listen:\n{}", server.start_log.join("\n")));
            if let Some((_, address)) = line.split_once("listening on http://") {
                server.address = address.split('"').next().unwrap().to_owned();
            }
            server.start_log.push(line);
        }
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// The log's lines since it listens, until the process has ended.
    pub fn log_to_the_end(&self) -> Vec<String> {
        self.log.iter().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
