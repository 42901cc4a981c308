//! A private PostgreSQL server, for a subledger that is told of no database.
//!
//! This module makes the cluster, runs the server and stops it again. It must
//! not know what is kept in the database: no connection is made here.
//!
//! The server listens on a unix socket alone, in a directory which only its
//! owner can enter, and keeps every durability setting on. It ends with this
//! process, however this process ends, and is kept between runs:
//!
//! ```text
//! <dir>/            0700, ours
//! <dir>/lock        held for our lifetime: one subledger per directory
//! <dir>/postgres.log
//! <dir>/data/       0700, the server's: the cluster and its socket
//! <dir>/data.new-*  a cluster in the making; leftovers of a crash are removed
//! ```

mod cluster;
mod data_dir;
mod home;
mod leftover;
mod process;
mod programs;
pub mod secrets;
mod server;
mod supervisor;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use data_dir::DataDir;
use home::Home;
use process::ServerUser;
use programs::{Places, Programs};
use server::Server;
pub use supervisor::Supervised;

/// The name of the database, of its owner and of the cluster's superuser.
const NAME: &str = "subledger";

/// A PostgreSQL server of our own, running for as long as this value lives.
///
/// Dropping it stops the server, as [`stop`](Self::stop) does. Should the
/// process be killed instead, the kernel stops the server (Linux), or the next
/// [`start`](Self::start) does (elsewhere).
#[derive(Debug)]
pub struct PrivatePostgres {
    // Dropped in this order: the lock in `home` is given up last.
    server: Server,
    url: String,
    data: DataDir,
    programs: Programs,
    user: Option<ServerUser>,
    home: Home,
}

impl PrivatePostgres {
    /// Starts the server in `dir`, which is created with mode 0700, and filled
    /// with a new cluster, when it is absent. Returns when it takes connections.
    ///
    /// Blocks: about a second the first time, a tenth of one later, longer
    /// after a crash.
    ///
    /// # Errors
    ///
    /// When PostgreSQL's server programs are missing or of another major
    /// version than the cluster, when another subledger runs in `dir`, or when
    /// the server does not start. The message is one line for the user.
    pub fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &Places::of_this_machine())
    }

    fn start_with(dir: &Path, places: &Places) -> Result<Self> {
        let home = Home::open(dir)?;
        let programs = Programs::find(places, home.cluster_major()?)?;
        let (data, user) = cluster::open_or_make(&home, &programs)?;
        leftover::clear(&data)?;
        let server = Server::start(&programs, &data, user, &home.log_path())?;
        let url = url_of(&data.client_socket_dir()?);
        Ok(Self { server, url, data, programs, user, home })
    }

    /// Starts the server again after it has died.
    fn restart(&mut self) -> Result<()> {
        leftover::clear(&self.data)?;
        self.server = Server::start(&self.programs, &self.data, self.user, &self.home.log_path())?;
        Ok(())
    }

    /// The URL of the database `subledger`, of which the user `subledger` is
    /// the owner and superuser.
    ///
    /// tokio-postgres and libpq (`psql`) both take it, in this process and in
    /// others of the same user. It is good while this value lives.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The cluster's directory, for messages.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// The absolute path of the directory that holds the cluster, the log and the lock.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.home.dir()
    }

    /// The file that the server writes its log to.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.home.log_path()
    }

    /// Whether the server still runs.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    /// Stops the server and waits for its end: open transactions are rolled
    /// back, what was committed is on disk. A server that does not end within
    /// 30 seconds is made to, and recovers at the next start.
    ///
    /// # Errors
    ///
    /// When the server cannot be signalled or waited for.
    pub fn stop(mut self) -> Result<()> {
        self.server.stop()
    }
}

/// A server that another process runs, with [`PrivatePostgres`], in the same folder.
#[derive(Debug)]
pub struct RunningPostgres {
    data: DataDir,
}

impl RunningPostgres {
    /// The server of `dir`; none where there has never been one. Whether it runs just now shows in connecting to it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be entered, is a symbolic link, or belongs to another user.
    pub fn find(dir: &Path) -> Result<Option<Self>> {
        home::ensure_own_if_present(dir)?;
        let path = dir.join("data");
        if !path.exists() {
            return Ok(None);
        }
        let path = fs::canonicalize(&path).with_context(|| format!("cannot enter {}", path.display()))?;
        Ok(Some(Self { data: DataDir::open(path)? }))
    }

    /// The URL of its database, good while this value lives.
    ///
    /// # Errors
    ///
    /// When there is no name for its socket.
    pub fn url(&self) -> Result<String> {
        Ok(url_of(&self.data.client_socket_dir()?))
    }
}

/// The socket's directory is the host part, percent-encoded.
fn url_of(socket_dir: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;

    let mut host = String::new();
    for &byte in socket_dir.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            host.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(host, "%{byte:02X}").unwrap_or_default();
        }
    }
    format!("postgres://{NAME}@{host}/{NAME}")
}
