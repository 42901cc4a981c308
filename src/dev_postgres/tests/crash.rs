//! Tests of a start after something was killed: the server, its owner, both.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;

use super::*;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_supervised_server_that_was_killed_is_started_again() {
    let (_tmp, dir) = home();
    let start = {
        let dir = dir.clone();
        move || PrivatePostgres::start(&dir).unwrap()
    };
    let postgres = tokio::task::spawn_blocking(start).await.unwrap();
    let first = server_pid(&dir);
    let supervised = postgres.supervise();
    kill(first, Signal::SIGKILL).unwrap();
    let is_restarted = || {
        let text = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        Ok::<_, Errno>(lines.first() != Some(&first.to_string().as_str()) && lines.get(7) == Some(&"ready"))
    };
    assert!(tokio::task::block_in_place(|| poll_until(Duration::from_secs(30), is_restarted)).unwrap());
    let second = server_pid(&dir);
    supervised.stop().await.unwrap();
    assert!(is_gone(second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervised_server_that_cannot_start_is_given_up_with_its_log() {
    let (_tmp, dir) = home();
    let start = {
        let dir = dir.clone();
        move || PrivatePostgres::start(&dir).unwrap()
    };
    let postgres = tokio::task::spawn_blocking(start).await.unwrap();
    fs::write(dir.join("data/postgresql.conf"), "no_such_setting = 1\n").unwrap();
    let mut supervised = postgres.supervise();
    kill(server_pid(&dir), Signal::SIGKILL).unwrap();
    tokio::time::timeout(Duration::from_secs(90), supervised.given_up()).await.expect("gave up in time");
    let error = supervised.stop().await.unwrap_err().to_string();
    assert!(error.contains("postgres.log"), "{error}");
}

#[test]
fn replaces_a_server_that_a_former_run_left_behind() {
    let (_tmp, dir) = home();
    let PrivatePostgres { server, home, .. } = PrivatePostgres::start(&dir).unwrap();
    drop(home); // as if its owner were gone
    let left_behind = server_pid(&dir);
    let postgres = PrivatePostgres::start(&dir).unwrap();
    assert!(is_gone(left_behind));
    assert_ne!(server_pid(&dir), left_behind);
    assert_eq!(ask(&postgres.url(), "SELECT 1"), "1");
    drop(server);
}

/// Not a test: what the two below start and kill.
#[test]
fn runs_until_it_is_killed() {
    #[expect(clippy::disallowed_methods, reason = "set by the test that runs this one as a process")]
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
        .args(["--exact", "dev_postgres::tests::crash::runs_until_it_is_killed"])
        .arg("--nocapture")
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
