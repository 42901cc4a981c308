//! Tests with the real PostgreSQL, each in a directory of its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, getpgid};
use tempfile::TempDir;

use super::process::poll_until;
use super::*;

/// Runs `sql` on a connection of its own; the first column of every row.
fn query(url: &str, sql: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let messages = client.simple_query(sql).await.unwrap();
        let rows = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        rows.collect()
    })
}

fn ask(url: &str, sql: &str) -> String {
    query(url, sql).remove(0)
}

fn home() -> (TempDir, PathBuf) {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join(".subledger");
    (tmp, dir)
}

fn server_pid(dir: &Path) -> Pid {
    let text = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap())
}

/// Also true for a zombie, which nobody may be there to wait for.
fn is_gone(pid: Pid) -> bool {
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(arguments) => arguments.is_empty(),
        Err(_) => kill(pid, None) == Err(Errno::ESRCH),
    }
}

fn gone_within(seconds: u64, pid: Pid) -> bool {
    poll_until(Duration::from_secs(seconds), || Ok::<_, Errno>(is_gone(pid))).unwrap()
}

#[test]
fn keeps_what_was_committed_between_runs() {
    let (_tmp, dir) = home();
    let postgres = PrivatePostgres::start(&dir).unwrap();
    query(&postgres.url(), "CREATE TABLE t (n int); INSERT INTO t VALUES (42)");
    let pid = server_pid(&dir);
    postgres.stop().unwrap();
    assert!(is_gone(pid));
    assert!(!dir.join("data/postmaster.pid").exists());

    let postgres = PrivatePostgres::start(&dir).unwrap();
    assert_eq!(ask(&postgres.url(), "SELECT n FROM t"), "42");
}

#[test]
fn is_durable_and_private() {
    let (_tmp, dir) = home();
    let postgres = PrivatePostgres::start(&dir).unwrap();
    let url = postgres.url();
    for (expression, value) in [
        ("current_database()", "subledger"),
        ("current_user", "subledger"),
        ("current_setting('is_superuser')", "on"),
        ("current_setting('fsync')", "on"),
        ("current_setting('synchronous_commit')", "on"),
        ("current_setting('full_page_writes')", "on"),
        ("current_setting('listen_addresses')", ""),
        ("current_setting('server_encoding')", "UTF8"),
        ("current_setting('timezone')", "UTC"),
        ("(SELECT datcollate FROM pg_database WHERE datname = 'subledger')", "C"),
        ("(SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'subledger')", "subledger"),
    ] {
        assert_eq!(ask(&url, &format!("SELECT {expression}")), value, "{expression}");
    }
    for private in [dir.clone(), dir.join("data")] {
        assert_eq!(fs::metadata(&private).unwrap().mode() & 0o777, 0o700);
    }
    // A Ctrl-C goes to the terminal's process group, which the server is not in.
    let pid = server_pid(&dir);
    assert_eq!(getpgid(Some(pid)).unwrap(), pid);
    // Root without CAP_SYS_PTRACE may not read it.
    if let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) {
        let environment = String::from_utf8_lossy(&environment);
        assert!(environment.contains("LC_ALL=C"), "{environment}");
        assert!(!environment.contains("CARGO_"), "{environment}");
    }
}

#[test]
fn refuses_a_directory_where_another_one_runs() {
    let (_tmp, dir) = home();
    let first = PrivatePostgres::start(&dir).unwrap();
    let message = PrivatePostgres::start(&dir).unwrap_err().to_string();
    assert!(message.contains("another subledger"), "{message}");
    assert_eq!(ask(&first.url(), "SELECT 1"), "1");
}

#[test]
fn outlives_the_thread_that_started_it_but_not_its_value() {
    let (_tmp, dir) = home();
    let path = dir.clone();
    let start = std::thread::spawn(move || PrivatePostgres::start(&path).unwrap());
    let mut postgres = start.join().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(ask(&postgres.url(), "SELECT 1"), "1");
    assert!(postgres.is_running());
    let pid = server_pid(&dir);
    drop(postgres);
    assert!(is_gone(pid));
}

#[test]
fn runs_beneath_a_directory_that_only_its_owner_can_enter() {
    let (tmp, _) = home();
    fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let dir = tmp.path().join("closed/.subledger");
    let postgres = PrivatePostgres::start(&dir).unwrap();
    assert_eq!(ask(&postgres.url(), "SELECT 1"), "1");
    if Uid::effective().is_root() {
        assert_ne!(fs::metadata(postgres.data_dir()).unwrap().uid(), 0);
    }
}

#[test]
fn a_path_too_long_or_too_odd_for_a_socket_will_do() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("spaced, \"quoted\" und größer").join("x".repeat(150));
    let postgres = PrivatePostgres::start(&dir).unwrap();
    assert_eq!(ask(&postgres.url(), "SELECT 1"), "1");
}

#[test]
fn recovers_when_the_server_was_killed() {
    let (_tmp, dir) = home();
    let mut postgres = PrivatePostgres::start(&dir).unwrap();
    query(&postgres.url(), "CREATE TABLE t (n int); INSERT INTO t VALUES (42)");
    // A query that is under way holds on to the killed server's memory.
    let url = postgres.url();
    let busy = std::thread::spawn(move || {
        let sql = "DO $$ BEGIN PERFORM count(*) FROM generate_series(1, 3000000); END $$";
        std::panic::catch_unwind(|| query(&url, sql))
    });
    std::thread::sleep(Duration::from_millis(100));
    kill(server_pid(&dir), Signal::SIGKILL).unwrap();
    let ended = poll_until(Duration::from_secs(5), || Ok::<_, Errno>(!postgres.is_running()));
    assert!(ended.unwrap());
    postgres.stop().unwrap();
    let postgres = PrivatePostgres::start(&dir).unwrap();
    assert_eq!(ask(&postgres.url(), "SELECT n FROM t"), "42");
    drop(busy.join());
}

#[test]
fn replaces_a_server_that_a_former_run_left_behind() {
    let (_tmp, dir) = home();
    let PrivatePostgres { server, _home, .. } = PrivatePostgres::start(&dir).unwrap();
    drop(_home); // as if its owner were gone
    let left_behind = server_pid(&dir);
    let postgres = PrivatePostgres::start(&dir).unwrap();
    assert!(is_gone(left_behind));
    assert_ne!(server_pid(&dir), left_behind);
    assert_eq!(ask(&postgres.url(), "SELECT 1"), "1");
    drop(server);
}

/// Not a test: what the two below start and kill.
#[test]
#[ignore = "runs until it is killed; started by other tests"]
fn runs_until_it_is_killed() {
    let Some(dir) = std::env::var_os("SUBLEDGER_TEST_HOME") else {
        return;
    };
    let _postgres = PrivatePostgres::start(Path::new(&dir)).unwrap();
    println!("\nstarted");
    std::thread::sleep(Duration::from_secs(600));
}

/// Starts a server in another process and kills that process.
fn start_and_kill(dir: &Path) -> Pid {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "postgres::tests::runs_until_it_is_killed"])
        .args(["--ignored", "--nocapture"])
        .env("SUBLEDGER_TEST_HOME", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let started = lines.map_while(Result::ok).any(|line| line == "started");
    let server = started.then(|| server_pid(dir));
    process.kill().unwrap();
    process.wait().unwrap();
    server.unwrap()
}

#[test]
#[cfg(target_os = "linux")]
fn the_server_ends_when_its_owner_is_killed() {
    let (_tmp, dir) = home();
    let server = start_and_kill(&dir);
    assert!(gone_within(10, server));
}

#[test]
fn starts_at_once_after_its_owner_was_killed() {
    let (_tmp, dir) = home();
    for _ in 0..3 {
        let server = start_and_kill(&dir);
        let postgres = PrivatePostgres::start(&dir).unwrap();
        assert!(is_gone(server));
        assert_eq!(ask(&postgres.url(), "SELECT 1"), "1");
    }
}

/// A process that is no server, of the server's user, under the given name.
struct Bystander(Child);

impl Bystander {
    fn start(name: &str, cwd: &Path, cluster: &Path) -> Self {
        let mut command = Command::new("sleep");
        command.arg0(name).arg("600").current_dir(cwd);
        // PostgreSQL heeds a pid file only if the process is of its user. (Where
        // such a one works, root without CAP_SYS_PTRACE cannot tell.)
        if Uid::effective().is_root() && name == "sleep" {
            command.uid(fs::metadata(cluster).unwrap().uid());
        }
        Self(command.spawn().unwrap())
    }

    fn is_named_in(&self, cluster: &Path) {
        let text = format!("{}\n/somewhere\n1\n5432\n\n\n0\nready\n", self.0.id());
        let file = cluster.join("postmaster.pid");
        fs::write(&file, text).unwrap();
        let metadata = fs::metadata(cluster).unwrap();
        std::os::unix::fs::chown(&file, Some(metadata.uid()), Some(metadata.gid())).unwrap();
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn stopped_cluster(dir: &Path) -> PathBuf {
    let postgres = PrivatePostgres::start(dir).unwrap();
    let cluster = postgres.data_dir().to_owned();
    postgres.stop().unwrap();
    cluster
}

#[test]
fn a_pid_file_that_names_something_else_is_stale() {
    let (_tmp, dir) = home();
    let cluster = stopped_cluster(&dir);
    for name in ["sleep", "postgres"] {
        let mut bystander = Bystander::start(name, Path::new("/"), &cluster);
        bystander.is_named_in(&cluster);
        PrivatePostgres::start(&dir).unwrap().stop().unwrap();
        assert!(bystander.0.try_wait().unwrap().is_none(), "left alone");
    }
}

#[test]
fn a_pid_file_that_names_a_zombie_is_stale() {
    let (_tmp, dir) = home();
    let cluster = stopped_cluster(&dir);
    let zombie = Bystander::start("sleep", Path::new("/"), &cluster);
    let pid = Pid::from_raw(zombie.0.id().try_into().unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    assert!(gone_within(5, pid));
    zombie.is_named_in(&cluster);
    PrivatePostgres::start(&dir).unwrap().stop().unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_server_that_someone_else_started_is_left_alone() {
    let (_tmp, dir) = home();
    let cluster = stopped_cluster(&dir);
    let mut foreign = Bystander::start("postgres", &cluster, &cluster);
    foreign.is_named_in(&cluster);
    let message = PrivatePostgres::start(&dir).unwrap_err().to_string();
    assert!(message.contains("that subledger did not start"), "{message}");
    assert!(foreign.0.try_wait().unwrap().is_none(), "left alone");
}

#[test]
fn what_a_crash_left_half_made_is_removed_and_never_used() {
    let (_tmp, dir) = home();
    let half_made = dir.join("data.new-1");
    fs::create_dir_all(&half_made).unwrap();
    fs::write(half_made.join("PG_VERSION"), "15\n").unwrap();
    let _postgres = PrivatePostgres::start(&dir).unwrap();
    assert!(!half_made.exists());
}

#[test]
fn without_programs_it_says_how_to_get_them() {
    let (tmp, dir) = home();
    let places = Places { path: "/nonexistent".into(), root: tmp.path().to_owned() };
    let message = PrivatePostgres::start_with(&dir, &places).unwrap_err().to_string();
    assert!(message.contains("install them with"), "{message}");
}

#[test]
fn an_initdb_that_fails_is_quoted_and_leaves_nothing() {
    let (tmp, dir) = home();
    let script = "printf '#!/bin/sh\\necho \"postgres (PostgreSQL) 17.1\"; \
        echo \"initdb: error: the moon is full\" >&2; test \"$1\" = --version\\n' \
        | tee postgres >initdb && chmod 755 . postgres initdb";
    let bin = tempfile::tempdir_in("/tmp").unwrap();
    let made = Command::new("sh").args(["-c", script]).current_dir(bin.path()).status();
    assert!(made.unwrap().success());
    let places = Places { path: bin.path().into(), root: tmp.path().to_owned() };
    let error = PrivatePostgres::start_with(&dir, &places).unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("the moon is full"), "{message}");
    assert!(!message.contains('\n'), "{message}");
    let left = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["lock"]);
}

#[test]
fn a_server_that_does_not_start_is_quoted() {
    let (_tmp, dir) = home();
    let cluster = stopped_cluster(&dir);
    fs::write(cluster.join("postgresql.conf"), "no_such_setting = 1\n").unwrap();
    let message = PrivatePostgres::start(&dir).unwrap_err().to_string();
    assert!(message.contains("FATAL:"), "{message}");
    assert!(message.contains("postgres.log"), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_long_log_is_put_aside() {
    let (_tmp, dir) = home();
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("postgres.log"), vec![b'\n'; 5 << 20]).unwrap();
    let _postgres = PrivatePostgres::start(&dir).unwrap();
    assert!(fs::metadata(dir.join("postgres.log")).unwrap().len() < 1 << 20);
    assert!(dir.join("postgres.log.1").exists());
}
