//! Tests with the real PostgreSQL, each in a directory of its own.

mod crash;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
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

fn stopped_cluster(dir: &Path) -> PathBuf {
    let postgres = PrivatePostgres::start(dir).unwrap();
    let cluster = postgres.data_dir().to_owned();
    postgres.stop().unwrap();
    cluster
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
