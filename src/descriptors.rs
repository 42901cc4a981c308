//! How many clients this process can serve at once: raises its limit of open files, and divides what it gives.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// However many files may be open. What one client can make the server keep (its buffers, about 200 KiB at the very
/// worst) times this is what all of them can.
const MOST_CONNECTIONS: u64 = 4_096;

/// For the log, the listening socket, the runtimes, and calls to Stripe.
const OTHER_FILES: u64 = 64;

/// A client's connection has two: actix's own, and ours to look at.
const FILES_A_CONNECTION: u64 = 2;

/// The number of clients' connections to serve at once beside a pool of this size; further ones wait until they are
/// accepted. With no such bound they would take every descriptor, and none would be left for the database.
pub fn connections(pool_size: u32) -> usize {
    usize::try_from(divide(raise(), pool_size.into())).unwrap_or(usize::MAX)
}

fn divide(files: u64, pool_size: u64) -> u64 {
    let spare = files.saturating_sub(OTHER_FILES).saturating_sub(pool_size);
    (spare / FILES_A_CONNECTION).clamp(1, MOST_CONNECTIONS)
}

/// Raises the limit to what this process may raise it to, and says how many files may be open now.
fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return u64::MAX;
    };
    // More than all of ours is of no use, and some systems refuse what they themselves name as their limit.
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
