//! More connections than the process may have files: none of them takes one that the database needs.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;

use super::{Client, event, head};
use crate::support::binary::Server;
use crate::support::database::Database;

const END_CONNECTIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                               WHERE datname = current_database() AND application_name = 'subledger'";

/// Asks something, so that the connection is kept, and does not wait for the answer: it may not be accepted.
async fn linger(server: SocketAddr) -> Client {
    let mut client = Client::connect(server).await;
    client.send("GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n").await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_take_every_file_leave_the_database_its_own() {
    let (folder, database) = (tempfile::tempdir().unwrap(), Database::migrated());
    let mut command = std::process::Command::new("sh");
    command.current_dir(folder.path()).env_clear().env("DATABASE_URL", database.url());
    command.env("STRIPE_WEBHOOK_SECRET", "whsec_test").env("POOL_SIZE", "4");
    // `ulimit` of sh sets both limits, so that it cannot be raised.
    command.args(["-c", "ulimit -n 160 && exec \"$0\"", env!("CARGO_BIN_EXE_subledger")]);
    let server = Server::start(&mut command);
    let address: SocketAddr = server.address.parse().unwrap();
    let mut first = Client::connect(address).await;
    assert!(first.deliver(&event(1)).await.0.starts_with("HTTP/1.1 200 "));
    let crowd = join_all((0..150).map(|_| linger(address))).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    // From here on it needs new connections to the database.
    database.client().await.batch_execute(END_CONNECTIONS).await.unwrap();
    // Long enough for those who still wait to be accepted to get what has become free.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (answer, took) = first.deliver(&event(2)).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && took < Duration::from_secs(4), "{took:?}: {answer}");
    drop(crowd);
    let (answer, _) = Client::connect(address).await.deliver(&event(3)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_on_every_connection_hold_no_delivery_back() {
    let (folder, database) = (tempfile::tempdir().unwrap(), Database::migrated());
    let mut command = std::process::Command::new("sh");
    command.current_dir(folder.path()).env_clear().env("DATABASE_URL", database.url());
    command.env("STRIPE_WEBHOOK_SECRET", "whsec_test").env("POOL_SIZE", "4");
    command.args(["-c", "ulimit -n 160 && exec \"$0\"", env!("CARGO_BIN_EXE_subledger")]);
    let server = Server::start(&mut command);
    let address: SocketAddr = server.address.parse().unwrap();
    let slow_body = async || {
        let mut client = Client::connect(address).await;
        client.send(head(1_000, "t=1,v1=aa")).await;
        client
    };
    let crowd = join_all((0..60).map(|_| slow_body())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (answer, took) = Client::connect(address).await.deliver(&event(1)).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && took < Duration::from_secs(5), "{took:?}: {answer}");
    drop(crowd);
}
