//! How the program starts: what it refuses, warns of and logs, and its private PostgreSQL.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::binary::{Server, run, subledger, text};
use crate::support::database::Database;

const SECRET: &str = "whsec_0123456789abcdef";
const TOKEN: &str = "0123456789abcdef";

fn is_json(line: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|entry| entry["message"].is_string())
}

/// The status of an admin's request with `token`.
fn status_with(server: &Server, token: &str) -> String {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let request = "GET /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    write!(stream, "{request}Authorization: Bearer {token}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap().to_owned()
}

fn server_pid(folder: &Path) -> Option<i32> {
    let file = std::fs::read_to_string(folder.join(".subledger/data/postmaster.pid")).ok()?;
    file.lines().next()?.trim().parse().ok()
}

#[test]
fn the_start_says_what_an_operator_asks_first_and_shows_no_secret() {
    let database = Database::migrated();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(
        subledger(folder.path())
            .env("DATABASE_URL", database.url())
            .env("PGPASSWORD", "hunter2")
            .env("STRIPE_WEBHOOK_SECRET", SECRET)
            .env("STRIPE_SECRET_KEY", "rk_test_hunter2")
            .env("ADMIN_TOKEN", format!("{TOKEN}\n")),
    );
    let log = server.start_log.join("\n");
    let name = database.url().rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    for part in [&name, "mode=test", "stripe=api.stripe.com", "admin=token", "listening on http://127.0.0.1:"] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    for part in ["hunter2", SECRET, TOKEN, "actix", "WARN"] {
        assert!(!log.contains(part), "{part} is in {log}");
    }
    assert_eq!(status_with(&server, TOKEN), "200", "the line break is no part of the token");
    assert_eq!(status_with(&server, "wrong"), "401");
}

#[test]
fn what_is_surely_not_meant_is_warned_of() {
    let database = Database::migrated();
    let folder = tempfile::tempdir().unwrap();
    let start = |variables: &[(&str, &str)]| {
        let mut command = subledger(folder.path());
        command.env("DATABASE_URL", database.url()).env("STRIPE_WEBHOOK_SECRET", SECRET);
        Server::start(command.envs(variables.iter().copied())).start_log.clone()
    };
    for (variable, variables) in [
        ("STRIPE_MODE: ", &[][..]),
        ("ADMIN_TOKEN: ", &[("ADMIN_TOKEN", "x")]),
        ("STRIPE_WEBHOOK_SECRET: ", &[("STRIPE_WEBHOOK_SECRET", "whsec_x")]),
        ("STRIPE_MODE: ", &[("STRIPE_MODE", "live"), ("STRIPE_SECRET_KEY", "sk_test_x")]),
        ("ENTITLED_STATUSES: ", &[("ENTITLED_STATUSES", "active,activ")]),
        ("RUST_LOG: ", &[("RUST_LOG", "warning,subledger=info")]),
    ] {
        let log = start(variables);
        let is_warned = log.iter().any(|line| line.contains(" WARN ") && line.contains(variable));
        assert!(is_warned, "{variable} is not in {log:#?}");
    }
    let good = start(&[("STRIPE_MODE", "live"), ("ADMIN_TOKEN", TOKEN)]);
    assert!(!good.iter().any(|line| line.contains("WARN")), "{good:#?}");
}

#[test]
fn with_a_json_log_every_line_is_json() {
    let folder = tempfile::tempdir().unwrap();
    let json = || {
        let mut command = subledger(folder.path());
        command.env("LOG_FORMAT", "json");
        command
    };
    for (arguments, variable, code) in [
        (&["serve"][..], ("POOL_SIZE", "0"), 2),
        (&["serve"], ("RUST_LOG", "subledger=loud"), 2),
        (&["serve", "--nonsense"], ("POOL_SIZE", "1"), 2),
        (&["migrate"], ("DATABASE_URL", "postgres://127.0.0.1:1/none"), 1),
    ] {
        let output = run(json().args(arguments).env(variable.0, variable.1));
        let errors = text(&output.stderr);
        assert_eq!((output.status.code(), errors.lines().count()), (Some(code), 1), "{errors}");
        assert!(is_json(errors.trim_end()), "{errors}");
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    }

    // Both streams of a server with nothing configured, as a container's runtime merges them.
    let mut server = Server::start(json().stdout(Stdio::piped()));
    // Bytes that are not HTTP.
    for _ in 0..3 {
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not HTTP\r\n\r\n").unwrap();
        std::io::copy(&mut stream, &mut std::io::sink()).ok();
    }
    let warning = server.start_log.iter().find(|line| line.contains("DATABASE_URL")).cloned();
    assert!(warning.is_some_and(|line| line.contains(r#""level":"warn""#)), "{:#?}", server.start_log);
    server.signal(Signal::SIGTERM);
    let rest = server.log_to_the_end();
    for line in server.start_log.iter().chain(&rest) {
        assert!(is_json(line), "{line}");
        assert!(!line.contains(r#""level":"error""#) && !line.contains("actix"), "{line}");
    }
    let mut printed = String::new();
    server.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "");
}

#[test]
fn a_private_server_uses_the_secrets_it_is_given_and_is_restarted_when_it_dies() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = subledger(folder.path());
    command.env("STRIPE_WEBHOOK_SECRET", SECRET).env("ADMIN_TOKEN", TOKEN).stdout(Stdio::null());
    let mut server = Server::start(&mut command);
    assert!(server.start_log.iter().any(|line| line.contains(" WARN ") && line.contains("DATABASE_URL is not set")));
    let url = server.url("/api/v1/webhooks/stripe");
    let send = |arguments: &[&str]| run(subledger(folder.path()).args(["send", "--url", &url]).args(arguments));
    let sent = send(&["customer.subscription.created", "--life", "one", "--link"]);
    assert!(sent.status.success() && text(&sent.stdout).contains(r#""outcome":"applied""#), "{sent:?}");

    let first = server_pid(folder.path()).unwrap();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    let started = Instant::now();
    let sent = loop {
        let sent = send(&["customer.subscription.created", "--life", "two", "--link"]);
        if sent.status.success() || started.elapsed() > Duration::from_secs(60) {
            break sent;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(sent.status.success(), "{sent:?}");
    assert_ne!(server_pid(folder.path()), Some(first));
    server.signal(Signal::SIGTERM);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let log = server.log_to_the_end().join("\n");
    assert!(log.contains("has died; its log is /") && log.contains("postgres.log"), "{log}");

    // Started without them, it is back at those that it makes up.
    let server = Server::start(subledger(folder.path()).stdout(Stdio::null()));
    let url = server.url("/api/v1/webhooks/stripe");
    let sent = run(subledger(folder.path()).args(["send", "--url", &url, "invoice.paid", "--life", "three"]));
    assert!(sent.status.success(), "{sent:?}");
    assert_eq!(status_with(&server, TOKEN), "401");
}

#[test]
fn after_a_parked_event_send_and_the_log_say_how_to_link_its_customer() {
    let database = Database::migrated();
    let folder = tempfile::tempdir().unwrap();
    let variables = [("DATABASE_URL", database.url()), ("STRIPE_WEBHOOK_SECRET", SECRET.to_owned())];
    let mut server = Server::start(subledger(folder.path()).envs(variables));
    let mut send = subledger(folder.path());
    send.args(["send", "customer.subscription.created", "--life", "one"]);
    let sent = run(send.env("BIND_ADDR", &server.address).env("STRIPE_WEBHOOK_SECRET", SECRET));
    let customer = "cus_SampleoneCustomer0001";
    let printed = text(&sent.stdout);
    assert!(sent.status.success() && printed.contains(r#""outcome":"parked""#), "{sent:?}");
    for hint in ["--link", "/api/v1/accounts", "INSERT INTO accounts", customer] {
        assert!(printed.contains(hint), "{hint} is not in {printed}");
    }
    server.signal(Signal::SIGTERM);
    server.child.wait().unwrap();
    let log = server.log_to_the_end();
    let hint = log.iter().find(|line| line.contains("INSERT INTO accounts"));
    assert!(hint.is_some_and(|line| line.contains(customer) && line.contains("evt_SampleoneCreated0001")), "{log:#?}");
}

#[test]
fn a_link_in_place_of_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(other.path(), folder.path().join(".subledger")).unwrap();
    // So that a server that follows the link ends here, too.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for arguments in [&["serve"][..], &["send", "invoice.paid"], &["replay", "--failed"]] {
        let output = run(subledger(folder.path()).args(arguments).env("BIND_ADDR", &address));
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains("is a symbolic link"), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0, "nothing was written");
}
