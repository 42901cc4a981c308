//! Limits on what clients can make the server hold: connections, bodies, memory. What is not verified yet gives way to
//! newcomers first, so that strangers cannot keep Stripe's deliveries out.
//!
//! This file divides the open files that the process may have among the pool and its clients.

mod body;
mod connections;

pub use body::{Budget, ParsingBudget, read};
pub use connections::{Connections, client_gone, mark_busy, touch, trust};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The upper bound, however many files may be open. One client can make the server keep about 200 KiB of buffers at the
/// very worst.
const MOST_CONNECTIONS: u64 = 4_096;

/// For the log, the listening socket, the runtimes, and calls to Stripe.
const OTHER_FILES: u64 = 64;

/// A client's connection has two: actix's own, and ours to look at.
const FILES_A_CONNECTION: u64 = 2;

/// The number of clients' connections to serve at once beside a pool of this size; further ones wait until they are
/// accepted. Without this bound clients could take every descriptor and leave none for the database.
pub fn max_connections(pool_size: u32) -> usize {
    usize::try_from(divide(raise(), pool_size.into())).unwrap_or(usize::MAX)
}

fn divide(files: u64, pool_size: u64) -> u64 {
    let spare = files.saturating_sub(OTHER_FILES).saturating_sub(pool_size);
    (spare / FILES_A_CONNECTION).clamp(1, MOST_CONNECTIONS)
}

/// Raises the limit of open files as far as this process may, and returns it.
fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return u64::MAX;
    };
    // We need no more than this, and some systems refuse their own maximum.
    let wanted = hard.min(1 << 16);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() { wanted } else { soft }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_keeps_its_descriptors_however_few_there_are() {
        assert_eq!(divide(1 << 16, 16), MOST_CONNECTIONS);
        assert_eq!(divide(1_024, 16), 472);
        assert_eq!(divide(64, 16), 1);
        assert_eq!(divide(u64::MAX, 10_000), MOST_CONNECTIONS);
    }
}
