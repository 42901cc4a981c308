//! The at-least-once sender: `subledger simulate`, the real one, beside the fault.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::support::simulation;

/// How many lives are sent, and how many deliveries at a time.
pub struct Size {
    pub customers: u32,
    pub parallel: u32,
}

/// A running `simulate`. Killed when dropped.
pub struct Load {
    child: Child,
    out: Receiver<String>,
    err: ChildStderr,
    /// How many events it will have sent.
    pub events: i64,
}

impl Load {
    /// Starts to send to the server at `address` (host and port); returns when the first events are on their way.
    pub fn start(address: &str, database_url: &str, size: &Size) -> Self {
        let mut child = simulation::spawn(address, database_url, size.customers, size.parallel, &[]);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, out) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let err = child.stderr.take().unwrap();
        let mut load = Self { child, out, err, events: 0 };
        load.events = load.announced();
        load
    }

    /// The number of events in the line that is printed before the first one is sent.
    fn announced(&mut self) -> i64 {
        let Ok(line) = self.out.recv_timeout(Duration::from_secs(60)) else {
            self.child.kill().ok();
            panic!("nothing was sent: {}", self.errors());
        };
        let number = line.split(", ").find_map(|part| part.strip_suffix(" events"));
        number.unwrap_or_else(|| panic!("{line}")).parse().unwrap()
    }

    /// Waits for the end. The tables have to show the truth; what was printed is for the test to look at.
    pub async fn end(mut self) -> String {
        let ended = tokio::task::spawn_blocking(move || {
            let status = self.child.wait().unwrap();
            (status.code(), self.out.iter().collect::<Vec<_>>().join("\n"), self.errors())
        });
        let (code, out, errors) = ended.await.unwrap();
        assert_eq!(code, Some(0), "{out}\n{errors}");
        assert!(out.contains("the tables show the truth"), "{out}");
        out
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.err.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Whether any request was answered with 500, of whatever code: a count of 500 events is none.
pub fn has_500(out: &str) -> bool {
    [" 500 event_failed", " 500 internal", " 500 without a code"].iter().any(|answer| out.contains(answer))
}
