//! A PostgreSQL server of a test's own, reached over TCP: to give it a certificate, to put a pooler before it, to let
//! a standby follow it, and to end it.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use tempfile::TempDir;
use tokio_postgres::Client;

use super::certificates::Served;
use super::database;

/// How long a server may take to start, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// The superuser of every cluster.
pub const USER: &str = "subledger";

/// A running server. It ends with this value, and its files go.
pub struct Cluster {
    child: Child,
    pub port: u16,
    files: Files,
}

struct Files {
    folder: TempDir,
    /// Apart from the rest: a socket's path must be short.
    sockets: TempDir,
    settings: Vec<&'static str>,
}

impl Cluster {
    /// A new cluster that trusts everybody.
    pub async fn start() -> Self {
        Self::start_with(&[], |_| {}).await
    }

    /// A new cluster with these lines of its configuration, as `name=value`.
    pub async fn with_settings(settings: &[&'static str]) -> Self {
        Self::start_with(settings, |_| {}).await
    }

    /// A new cluster that shows this certificate. Over TCP it lets in who comes with TLS and the password `pass`.
    pub async fn with_certificate(served: &Served) -> Self {
        let cluster = Self::start_with(&["ssl=on"], |data| {
            for (name, content) in [("server.crt", &served.certificate), ("server.key", &served.key)] {
                let file = data.join(name);
                fs::write(&file, content).unwrap();
                fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
                give_to_the_server(&file);
            }
            fs::write(data.join("pg_hba.conf"), "local all all trust\nhostssl all all all scram-sha-256\n").unwrap();
        });
        let cluster = cluster.await;
        cluster.execute(&format!("ALTER USER {USER} PASSWORD 'pass'")).await;
        cluster
    }

    async fn start_with(settings: &[&'static str], prepare: impl FnOnce(&Path)) -> Self {
        let files = Files::new(settings);
        let mut initdb = files.program("initdb");
        initdb.args(["--username", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        run(&mut initdb);
        prepare(&files.folder.path().join("data"));
        let cluster = Self::launch(files);
        cluster.execute("CREATE DATABASE app").await;
        cluster
    }

    /// A standby that follows this server from now on. It begins as a copy of the files, made as `pg_basebackup` makes
    /// it: not every distribution of the server has that program.
    pub async fn standby(&self) -> Self {
        let files = Files::new(&self.files.settings);
        // The backup is the session's, and ends with it.
        let sql = self.client("postgres").await;
        let version = sql.query_one("SELECT current_setting('server_version_num')::int", &[]).await.unwrap();
        let [start, stop] = match version.get::<_, i32>(0) {
            ..150_000 => ["pg_start_backup('standby', true, false)", "labelfile FROM pg_stop_backup(false)"],
            _ => ["pg_backup_start('standby', true)", "labelfile FROM pg_backup_stop()"],
        };
        sql.query_one(&format!("SELECT {start}"), &[]).await.unwrap();
        self.copy_files(&files);
        let label: String = sql.query_one(&format!("SELECT {stop}"), &[]).await.unwrap().get(0);
        let (sockets, port) = (self.sockets().display(), self.port);
        let primary = format!("primary_conninfo = 'host={sockets} port={port} user={USER}'\n");
        for (name, content) in
            [("backup_label", label), ("standby.signal", String::new()), ("postgresql.auto.conf", primary)]
        {
            let file = files.folder.path().join("data").join(name);
            fs::write(&file, content).unwrap();
            give_to_the_server(&file);
        }
        Self::launch(files)
    }

    /// Copies the data directory. Files may vanish meanwhile.
    fn copy_files(&self, to: &Files) {
        let data = to.folder.path().join("data");
        let mut copy = Command::new("cp");
        copy.args(["-pR", "."]).arg(&data).current_dir(self.files.folder.path().join("data"));
        copy.stderr(Stdio::null()).status().unwrap();
        for running in ["postmaster.pid", "postmaster.opts"] {
            fs::remove_file(data.join(running)).unwrap();
        }
    }

    fn launch(files: Files) -> Self {
        let (child, port) = files.launch();
        Self { child, port, files }
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The URL of a database over the unix socket.
    pub fn socket_url(&self, name: &str) -> String {
        format!("postgres:///{name}?host={}&port={}&user={USER}", self.sockets().display(), self.port)
    }

    /// Where the unix socket is.
    pub fn sockets(&self) -> &Path {
        self.files.sockets.path()
    }

    /// A connection for the test's own statements.
    pub async fn client(&self, name: &str) -> Client {
        database::connect(&self.socket_url(name)).await
    }

    pub async fn execute(&self, statement: &str) {
        self.client("postgres").await.batch_execute(statement).await.unwrap();
    }

    /// Ends at once, as in a crash: nothing is finished, nobody is told.
    pub fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    /// Ends in good order.
    pub fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Starts again what has ended, on another port.
    pub fn start_again(&mut self) {
        (self.child, self.port) = self.files.launch();
    }

    /// Starts again what has ended, on the port that it had.
    pub fn start_on_same_port(&mut self) {
        self.child = self.files.launch_on(self.port).expect("somebody else has the port");
    }

    fn end(&mut self, signal: Signal) {
        // Until it is waited for nobody else can have its number.
        if self.child.try_wait().unwrap().is_none() {
            kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
            self.child.wait().unwrap();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.end(Signal::SIGQUIT);
    }
}

impl Files {
    fn new(settings: &[&'static str]) -> Self {
        // On disk, where there is room.
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::DirBuilder::new().create(folder.path().join("data")).unwrap();
        let sockets = TempDir::new().unwrap();
        fs::set_permissions(folder.path().join("data"), Permissions::from_mode(0o700)).unwrap();
        give_to_the_server(&folder.path().join("data"));
        give_to_the_server(sockets.path());
        Self { folder, sockets, settings: settings.to_vec() }
    }

    /// One of PostgreSQL's programs on the data directory; as root, as the user that the server has to be.
    fn program(&self, name: &str) -> Command {
        let data = self.folder.path().join("data");
        let program = database::programs().join(name);
        if !cfg!(target_os = "linux") {
            let mut command = Command::new(program);
            command.arg("-D").arg(data);
            return command;
        }
        // That user may not be able to walk down to the directory: it is opened before, and named by the descriptor.
        let mut command = Command::new("sh");
        command.args(["-c", r#"cd / && exec 9<"$0" && exec "$@""#]).arg(data).args(as_the_server_user());
        command.arg(program).args(["-D", "/proc/self/fd/9"]);
        command
    }

    fn launch(&self) -> (Child, u16) {
        // Between the search for a free port and the start somebody else may take it.
        for _ in 0..5 {
            let port = free_port();
            if let Some(child) = self.launch_on(port) {
                return (child, port);
            }
        }
        panic!("PostgreSQL does not start:\n{}", fs::read_to_string(self.folder.path().join("log")).unwrap());
    }

    /// `None` where it ends at once.
    fn launch_on(&self, port: u16) -> Option<Child> {
        let log = File::create(self.folder.path().join("log")).unwrap();
        let mut command = self.program("postgres");
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c"]).arg(format!("port={port}"));
        command.arg("-c").arg(format!("unix_socket_directories={}", self.sockets.path().display()));
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let command = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        self.is_ready(&mut child).then_some(child)
    }

    /// Waits until the server takes connections; false where it has ended instead.
    fn is_ready(&self, child: &mut Child) -> bool {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            let file = fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
            let line = |number| file.lines().nth(number).map(str::trim);
            let is_ours = line(0) == Some(&child.id().to_string());
            if is_ours && matches!(line(7), Some("ready" | "standby")) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("PostgreSQL is not ready after {PATIENCE:?}");
    }
}

/// What a command begins with to run as the user that the server has to be, and to end with the test.
pub fn as_the_server_user() -> Vec<String> {
    if !cfg!(target_os = "linux") {
        return Vec::new();
    }
    let mut words = ["setpriv", "--pdeathsig", "QUIT"].map(str::to_owned).to_vec();
    if let Some(User { uid, gid, .. }) = server_user() {
        words.extend([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    }
    words.push("--".to_owned());
    words
}

/// As whom the server runs where we are root, as whom it refuses to.
fn server_user() -> Option<User> {
    let named = |name| User::from_name(name).unwrap();
    Uid::effective().is_root().then(|| named("postgres").or_else(|| named("nobody")).unwrap())
}

/// Makes that user the owner.
pub fn give_to_the_server(path: &Path) {
    if let Some(user) = server_user() {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

/// A port that is free just now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
