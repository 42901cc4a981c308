//! Several servers on one database: they agree, also while one after the other is replaced.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::database::Database;
use crate::support::relay::Relay;
use crate::support::simulation::{acknowledged, serve, simulate};

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_behind_a_balancer_keep_one_truth_while_both_are_replaced() {
    let database = Database::migrated();
    let url = database.url();
    let servers = [serve(&url), serve(&url), serve(&url)];
    let [first, second, third] = &servers;
    let relay = Relay::start(&[&first.address, &second.address]).await;
    let address = relay.address.to_string();
    let simulation = tokio::spawn(async move { simulate(&address, &url, 40).await });

    wait_for_events(&database, 100).await;
    relay.replace(0, &third.address);
    first.signal(Signal::SIGTERM);
    wait_for_events(&database, 300).await;
    second.signal(Signal::SIGTERM);

    let ran = simulation.await.unwrap();
    ran.ends_with(0);
    assert!(ran.out.contains("the tables show the truth"), "{}", ran.out);
    third.signal(Signal::SIGTERM);
    for mut server in servers {
        let log = server.log_to_the_end();
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
        let share = acknowledged(&log).len();
        assert!(share >= 20, "each of them has its share, this one {share}:\n{}", log.join("\n"));
    }
}

/// Waits until the load has come so far.
async fn wait_for_events(database: &Database, count: i64) {
    let sql = database.client().await;
    for _ in 0..1200 {
        let found: i64 = sql.query_one("SELECT count(*) FROM stripe_events", &[]).await.unwrap().get(0);
        if found >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no load within a minute");
}
