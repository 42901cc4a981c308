//! The program as a user runs it: configuration, migration, nothing configured at all, and its end.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::binary::{Server, run, subledger, text};
use crate::support::database::Database;

#[test]
fn a_bad_value_stops_the_start_with_one_line_that_names_the_variable() {
    let folder = tempfile::tempdir().unwrap();
    for (variable, value) in [
        ("DATABASE_URL", "mysql://root:hunter2@localhost/x"),
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "postgres://root:secret@hunter2@localhost/x"),
        ("DATABASE_URL", "postgres://root:secret?hunter2@localhost/x"),
        ("STRIPE_SECRET_KEY", "pk_live_hunter2"),
        ("STRIPE_SECRET_KEY", "sk_live_…"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_…"),
        ("DATABASE_URL", "postgres://"),
        ("DATABASE_URL", "postgres://u:hunter2@/db"),
        ("STRIPE_WEBHOOK_SECRET", "sk_live_hunter2"),
        ("ADMIN_TOKEN", "…"),
        ("ENTITLED_STATUSES", "activ"),
        ("BIND_ADDR", "nowhere"),
        ("POOL_SIZE", "-3"),
        ("SIGNATURE_TOLERANCE_SECS", "0"),
        ("PRICE_PLANS", "price_1"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "subledger=loud"),
        ("BODY_TIMEOUT_MS", "1.5"),
        ("STRIPE_MODE", "production"),
        ("TRUST_CONNECT_METADATA", "maybe"),
        ("OVERDUE_AFTER", "soon"),
        ("RECONCILE_EVERY", "0s"),
        ("STORED_PAYLOADS", "some"),
        ("STRIPE_API_BASE", "nonsense"),
    ] {
        let output = run(subledger(folder.path()).env("STRIPE_WEBHOOK_SECRET", "whsec_test").env(variable, value));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{variable}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(error.contains(variable) && !error.contains("hunter2"), "{error}");
    }
    assert!(!folder.path().join(".subledger").exists(), "nothing was started");
}

#[test]
fn with_a_database_a_webhook_secret_is_required() {
    let database = Database::empty();
    let folder = tempfile::tempdir().unwrap();
    let output = run(subledger(folder.path()).env("DATABASE_URL", database.url()));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("STRIPE_WEBHOOK_SECRET"));
}

#[test]
fn a_database_out_of_reach_stops_the_start_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = subledger(folder.path());
    let output = run(command
        .env("DATABASE_URL", "postgres://user:hunter2@127.0.0.1:1/none")
        .env("STRIPE_WEBHOOK_SECRET", "whsec_test"));
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    assert!(error.contains("cannot reach the database") && !error.contains("hunter2"), "{error}");
}

#[test]
fn help_shows_every_variable_and_no_value() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(subledger(folder.path()).arg("--help").env("ADMIN_TOKEN", "hunter2"));
    let help = text(&output.stdout);
    assert!(output.status.success() && !help.contains("hunter2"));
    for variable in [
        "DATABASE_URL",
        "BIND_ADDR",
        "STRIPE_WEBHOOK_SECRET",
        "STRIPE_SECRET_KEY",
        "STRIPE_MODE",
        "TRUST_CONNECT_METADATA",
        "STRIPE_API_BASE",
        "STRIPE_TIMEOUT_MS",
        "ADMIN_TOKEN",
        "SIGNATURE_TOLERANCE_SECS",
        "PRICE_PLANS",
        "POOL_SIZE",
        "POOL_TIMEOUT_MS",
        "ENTITLED_STATUSES",
        "OVERDUE_AFTER",
        "RECONCILE_EVERY",
        "STORED_PAYLOADS",
        "LOG_FORMAT",
        "BODY_LIMIT_BYTES",
        "BODY_TIMEOUT_MS",
        "RUST_LOG",
    ] {
        assert!(help.contains(variable), "{variable}");
        let flag = format!("--{}", variable.to_lowercase().replace('_', "-"));
        assert!(help.contains(&flag), "{flag}");
    }
    assert_eq!(run(subledger(folder.path()).arg("--nonsense")).status.code(), Some(2));
}

#[test]
fn several_migrations_at_once_are_safe_and_need_only_the_database() {
    let database = Database::empty();
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = subledger(folder.path());
        command.arg("migrate").env("DATABASE_URL", database.url()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let outputs: Vec<_> =
        [start(), start(), start(), start()].into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let ran = outputs.iter().filter(|output| text(&output.stdout).starts_with("ran ")).count();
    assert_eq!(ran, 1, "one of them ran the migrations");
    let output = run(subledger(folder.path()).arg("migrate"));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("DATABASE_URL"));
}

#[test]
fn with_nothing_configured_an_event_reaches_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(subledger(folder.path()).stdout(Stdio::null()));
    let home = folder.path().join(".subledger");
    for secret in ["webhook_secret", "admin_token"] {
        let mode = std::fs::metadata(home.join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let url = server.url("/api/v1/webhooks/stripe");
    let send = |arguments: &[&str]| run(subledger(folder.path()).args(["send", "--url", &url]).args(arguments));
    let parked = send(&["invoice.paid"]);
    assert!(parked.status.success(), "{}", text(&parked.stderr));
    assert!(text(&parked.stdout).contains(r#"{"applied":true,"outcome":"parked"}"#), "{}", text(&parked.stdout));
    let sent = send(&["customer.subscription.created", "--link"]);
    assert!(sent.status.success(), "{}", text(&sent.stderr));
    let (answer, account) = text(&sent.stdout).split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert!(answer.contains(r#""outcome":"applied""#), "{answer}");
    let account: Value = serde_json::from_str(&account).unwrap();
    assert_eq!(account["subscriptions"][0]["status"], "active");
    assert_eq!(account["subscriptions"][0]["latest_invoice_status"], "paid", "the parked invoice was applied");
    assert_eq!(account["entitlement"]["entitled"], true);
    assert!(text(&send(&["customer.subscription.created"]).stdout).contains(r#""outcome":"duplicate""#));

    // A second server in the same folder is refused; the first one goes on.
    let second = run(subledger(folder.path()).env("BIND_ADDR", "127.0.0.1:0"));
    assert_eq!(second.status.code(), Some(1));
    assert_eq!(text(&second.stderr).lines().count(), 1, "{}", text(&second.stderr));

    server.signal(Signal::SIGTERM);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(!home.join("data/postmaster.pid").exists(), "the database has stopped, too");

    // What was kept is there after a restart, also after a kill.
    let mut server = Server::start(subledger(folder.path()).stdout(Stdio::null()));
    server.signal(Signal::SIGKILL);
    server.child.wait().unwrap();
    let server = Server::start(subledger(folder.path()).stdout(Stdio::null()));
    let url = server.url("/api/v1/webhooks/stripe");
    let again = run(subledger(folder.path()).args(["send", "--url", &url, "invoice.paid"]));
    assert!(text(&again.stdout).contains(r#""outcome":"duplicate""#), "{}", text(&again.stdout));
}

#[test]
fn an_own_event_is_sent_from_a_file_and_a_refusal_is_a_failure() {
    let database = Database::migrated();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(
        subledger(folder.path()).env("DATABASE_URL", database.url()).env("STRIPE_WEBHOOK_SECRET", "whsec_a,whsec_b"),
    );
    std::fs::write(folder.path().join("event.json"), r#"{"id": "evt_own", "type": "some.thing"}"#).unwrap();
    let send = |secret: &str, event: &str| {
        let mut command = subledger(folder.path());
        run(command.args(["send", event]).env("BIND_ADDR", &server.address).env("STRIPE_WEBHOOK_SECRET", secret))
    };
    let sent = send("whsec_b", "event.json");
    assert!(sent.status.success() && text(&sent.stdout).contains("ignored"), "{sent:?}");
    let refused = send("whsec_c", "event.json");
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stdout).contains("invalid_signature"), "{refused:?}");
    assert_eq!(send("whsec_a", "no such file").status.code(), Some(1));
}

#[test]
fn sigint_ends_the_server_in_time() {
    let database = Database::migrated();
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(
        subledger(folder.path()).env("DATABASE_URL", database.url()).env("STRIPE_WEBHOOK_SECRET", "whsec_a"),
    );
    let started = Instant::now();
    server.signal(Signal::SIGINT);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(server.log_to_the_end().iter().any(|line| line.contains("SIGINT")));
}
