//! PgBouncer in front of a cluster: Debian's `pgbouncer`.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::cluster::{Cluster, USER, as_the_server_user, give_to_the_server};

const PATIENCE: Duration = Duration::from_secs(30);

/// A running pooler, reached by unix socket. It ends with this value.
pub struct PgBouncer {
    child: Child,
    folder: TempDir,
}

impl PgBouncer {
    /// A pooler in this mode with at most `size` connections to the cluster; `None`, said aloud, where PgBouncer is
    /// not installed. There it is a failure only if `CI` is set.
    pub fn start(cluster: &Cluster, mode: &str, size: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pgbouncer.ini");
        fs::write(&file, configuration(cluster, folder.path(), mode, size)).unwrap();
        fs::write(folder.path().join("users"), format!("\"{USER}\" \"\"\n")).unwrap();
        give_to_the_server(folder.path());
        // Debian has it among the programs of the administrator, who may not be the one that tests.
        let script = r#"PATH=$PATH:/usr/sbin; command -v pgbouncer >/dev/null || exit 127; exec "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).args(as_the_server_user()).arg("pgbouncer").arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut pooler = Self { child: command.spawn().unwrap(), folder };
        pooler.wait_until_ready().then_some(pooler)
    }

    fn wait_until_ready(&mut self) -> bool {
        let started = Instant::now();
        while UnixStream::connect(self.folder.path().join(".s.PGSQL.6432")).is_err() {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(127), "{}", self.log());
                absent();
                return false;
            }
            assert!(started.elapsed() < PATIENCE, "pgbouncer does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// The URL of a database through the pooler.
    pub fn url(&self, name: &str) -> String {
        format!("postgres:///{name}?host={}&port=6432&user={USER}", self.folder.path().display())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a user of PgBouncer writes, and nothing that is made for us.
fn configuration(cluster: &Cluster, folder: &Path, mode: &str, size: u32) -> String {
    let (folder, sockets, port) = (folder.display(), cluster.sockets().display(), cluster.port);
    format!(
        "[databases]
* = host={sockets} port={port}
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {folder}
logfile = {folder}/log
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {size}
"
    )
}

fn absent() {
    let message = "SKIPPED: no PgBouncer here, so the way through it was not tried (Debian: apt-get install pgbouncer)";
    #[expect(clippy::disallowed_methods, reason = "what CI sets concerns the tests alone")]
    let is_ci = std::env::var_os("CI").is_some();
    assert!(!is_ci, "{message}");
    // Straight to the terminal: what a passing test prints is not shown.
    let mut terminal = std::io::stderr();
    writeln!(terminal, "{message}").unwrap();
}
