//! How far a long job has come: a bar on a terminal, plain lines elsewhere.

use std::sync::atomic::{AtomicUsize, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{elapsed_precise} {wide_bar} {pos}/{len} {msg} ({per_sec}, {eta} left)";

/// A job of known length.
#[derive(Debug)]
pub(super) struct Progress {
    /// Draws nothing where there is no terminal.
    bar: ProgressBar,
    what: &'static str,
    length: usize,
    done: AtomicUsize,
}

impl Progress {
    /// `length` pieces of `what`, of which none is done.
    pub(super) fn of(length: usize, what: &'static str) -> Self {
        let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(length as u64).with_style(style).with_message(what);
        Self { bar, what, length, done: AtomicUsize::new(0) }
    }

    /// One more is done.
    pub(super) fn advance(&self) {
        self.bar.inc(1);
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let tenth = |done: usize| done * 10 / self.length.max(1);
        if self.bar.is_hidden() && tenth(done) > tenth(done - 1) {
            println!("{done} of {} {}", self.length, self.what);
        }
    }

    /// No more is to be done.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
