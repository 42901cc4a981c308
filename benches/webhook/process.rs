//! What a process uses, where the system tells in `/proc`.

use std::fs;

/// Linux counts processor time in hundredths of a second for programs, whatever it does inside (`USER_HZ`).
const MICROS_PER_TICK: f64 = 10_000.0;

/// Totals of a process so far.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    cpu_ticks: u64,
    resident_kib: u64,
}

/// What a number of events took.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub cpu_micros_per_event: f64,
    /// Resident memory at the end.
    pub resident_kib: u64,
}

impl Totals {
    /// Of the process with this id.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything. What follows it begins with field 3; utime and stime are 14
        // and 15.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11).map(str::parse::<u64>);
        let mut next = || fields.next()?.ok();
        let cpu_ticks = next()? + next()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(Self { cpu_ticks, resident_kib: resident.trim().trim_end_matches(" kB").parse().ok()? })
    }

    /// What was used since `before`, for this many events.
    pub fn since(self, before: Self, events: usize) -> Usage {
        let ticks = self.cpu_ticks.saturating_sub(before.cpu_ticks);
        Usage { cpu_micros_per_event: ticks as f64 * MICROS_PER_TICK / events as f64, resident_kib: self.resident_kib }
    }
}
