//! How far a long job has come: a bar on a terminal, a plain line now and then elsewhere. On standard error, so that
//! what a command finds can be piped.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

const KNOWN_LENGTH: &str = "{elapsed_precise} {wide_bar} {pos}/{len} {msg} ({per_sec}, {eta} left)";
const UNKNOWN_LENGTH: &str = "{elapsed_precise} {spinner} {pos} {msg} ({per_sec})";

/// A job's progress. The bar goes with it.
#[derive(Debug)]
pub(super) struct Progress {
    /// Draws nothing where there is no terminal.
    bar: ProgressBar,
    what: &'static str,
    last_line: Instant,
}

impl Progress {
    /// No piece of `what` is done; `length` is how many there are, where that is known.
    pub(super) fn of(what: &'static str, length: Option<usize>) -> Self {
        let (bar, template) = match length {
            Some(length) => (ProgressBar::new(length as u64), KNOWN_LENGTH),
            None => (ProgressBar::no_length(), UNKNOWN_LENGTH),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bar: bar.with_style(style).with_message(what), what, last_line: Instant::now() }
    }

    /// One part of a job, which is named at once, so that the log shows when it began.
    pub(super) fn part(what: &'static str) -> Self {
        let part = Self::of(what, None);
        if part.bar.is_hidden() {
            eprintln!("0 {what}");
        }
        part
    }

    /// So many more are done.
    pub(super) fn advance(&mut self, by: usize) {
        self.bar.inc(by as u64);
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_INTERVAL {
            let length = self.bar.length().map(|length| format!(" of {length}")).unwrap_or_default();
            eprintln!("{}{length} {}", self.bar.position(), self.what);
            self.last_line = Instant::now();
        }
    }

    /// Prints a line of the result.
    pub(super) fn print(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
