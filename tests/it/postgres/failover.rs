//! A primary that dies, and a standby that takes over: what was acknowledged is there.

use std::time::Duration;

use reqwest::Client;
use serde_json::json;

use crate::support::Event;
use crate::support::app::signature;
use crate::support::cluster::{Cluster, USER};
use crate::support::simulation::{acknowledged, serve, simulate};

/// A primary that waits with every commit for its standby, and the URL that finds whichever takes writes.
async fn pair() -> (Cluster, Cluster, String) {
    let primary = Cluster::start().await;
    let standby = primary.standby().await;
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    primary.execute("SELECT pg_reload_conf()").await;
    let sql = primary.client("postgres").await;
    for _ in 0..600 {
        let query = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'";
        if !sql.query(query, &[]).await.unwrap().is_empty() {
            let hosts = format!("{},{}", primary.host(), standby.host());
            let url = format!("postgres://{USER}@{hosts}/app?target_session_attrs=read-write");
            return (primary, standby, url);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the standby does not follow");
}

async fn count(cluster: &Cluster, condition: &str) -> i64 {
    let query = format!("SELECT count(*) FROM stripe_events WHERE {condition}");
    cluster.client("app").await.query_one(&query, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_primary_dies_under_load_the_standby_has_everything_that_was_acknowledged() {
    let (mut primary, standby, url) = pair().await;
    let mut server = serve(&url);
    let (address, simulated_url) = (server.address.clone(), url.clone());
    let simulation = tokio::spawn(async move { simulate(&address, &simulated_url, 30).await });
    for _ in 0..600 {
        if count(&primary, "true").await > 100 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    primary.crash();
    // What the standby has at this moment is all that there will ever be of the time before.
    let before = count(&standby, "true").await;
    // Longer than anybody waits for a connection: promoted at once, the standby is found without a single refusal.
    tokio::time::sleep(Duration::from_secs(3)).await;
    standby.execute("SELECT pg_promote()").await;

    let ran = simulation.await.unwrap();
    ran.ends_with(0);
    assert!(ran.out.contains("the tables show the truth"), "{}", ran.out);
    assert!(ran.out.contains("503 unavailable"), "the primary died under load:\n{}", ran.out);
    server.child.kill().unwrap();
    let log = server.log_to_the_end();
    let acknowledged = acknowledged(&log);
    let after = count(&standby, "true").await;
    assert!(before >= 100 && after > before, "{before} before, {after} after");
    for id in acknowledged {
        assert_eq!(count(&standby, &format!("id = '{id}'")).await, 1, "{id} was acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_standby_does_not_have_is_not_acknowledged_and_is_applied_after_the_failover() {
    let (mut primary, mut standby, url) = pair().await;
    let server = serve(&url);
    standby.stop();
    // The primary alone commits on its own disk, and waits for the standby: nobody must be told so.
    let delivery = deliver(&server.url("/api/v1/webhooks/stripe"), Duration::from_secs(2)).await;
    assert_eq!(delivery, None, "no answer while the standby is away");
    primary.crash();
    drop(server);

    standby.start_again();
    standby.execute("SELECT pg_promote()").await;
    assert_eq!(count(&standby, "true").await, 0, "it is lost with the primary");
    let hosts = format!("{},{}", primary.host(), standby.host());
    let server = serve(&format!("postgres://{USER}@{hosts}/app?target_session_attrs=read-write"));
    let delivery = deliver(&server.url("/api/v1/webhooks/stripe"), Duration::from_secs(30)).await;
    assert_eq!(delivery, Some((200, r#"{"applied":true,"outcome":"ignored"}"#.to_owned())));
    assert_eq!(count(&standby, "true").await, 1);
}

/// Delivers an event; the answer, if it comes in time.
async fn deliver(url: &str, patience: Duration) -> Option<(u16, String)> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let body = Event::new("evt_1", "some.thing", 100, json!({"id": "thing_1"})).to_string();
    let client = Client::builder().timeout(patience).build().unwrap();
    let request = client.post(url).header("Stripe-Signature", signature(body.as_bytes())).body(body);
    let answer = request.send().await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}
