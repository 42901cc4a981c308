//! What processes use, where the system tells in `/proc`.

use std::fs;

/// Linux counts processor time in hundredths of a second for programs, whatever it does inside (`USER_HZ`).
const MICROS_PER_TICK: f64 = 10_000.0;

/// Totals of a process so far.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    cpu_ticks: u64,
    /// Of children that have ended and were waited for.
    children_cpu_ticks: u64,
    /// Resident memory now.
    pub resident_kib: u64,
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
        // The name, in parentheses, may hold anything. What follows it begins with field 3; utime, stime, cutime and
        // cstime are 14 to 17.
        let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11).map(str::parse::<u64>);
        let mut next = || fields.next()?.ok();
        let (cpu_ticks, children_cpu_ticks) = (next()? + next()?, next()? + next()?);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident_kib = resident.trim().trim_end_matches(" kB").parse().ok()?;
        Some(Self { cpu_ticks, children_cpu_ticks, resident_kib })
    }

    /// Of this process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// What was used since `before`, for this many events.
    pub fn since(self, before: Self, events: usize) -> Usage {
        Usage {
            cpu_micros_per_event: micros_each(self.cpu_ticks, before.cpu_ticks, events),
            resident_kib: self.resident_kib,
        }
    }

    /// The processor time of children that have ended since `before`, for this many events.
    pub fn children_cpu_micros_since(self, before: Self, events: usize) -> f64 {
        micros_each(self.children_cpu_ticks, before.children_cpu_ticks, events)
    }
}

fn micros_each(now: u64, before: u64, events: usize) -> f64 {
    now.saturating_sub(before) as f64 * MICROS_PER_TICK / events as f64
}
