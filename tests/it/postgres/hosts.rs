//! Several hosts in one URL: the first that can be used is used, whatever is wrong with those before it.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use diesel_async::RunQueryDsl;
use subledger::db::connect::Target;

use crate::support::cluster::{Cluster, USER};

async fn connect(url: &str) -> Result<(), String> {
    let mut conn = Target::parse(url).unwrap().connect().await.map_err(|error| error.to_string())?;
    diesel::sql_query("CREATE TEMPORARY TABLE written ()").execute(&mut conn).await.unwrap();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_that_takes_writes_is_found_past_dead_silent_and_read_only_ones() {
    let primary = Cluster::start().await;
    let standby = primary.standby().await;
    // A machine that is frozen: its kernel takes the connection, and nobody answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let (first, second) = (primary.host(), standby.host());
    let sockets = primary.sockets().display().to_string().replace('/', "%2F");
    let port = primary.port;
    for hosts in [
        format!("{second},{first}"),
        format!("127.0.0.1:1,{first}"),
        format!("{silent},{first}"),
        format!("{silent},127.0.0.1:1,{second},{first}"),
        format!("no-such-host.invalid:5432,{first}"),
        format!("{second},{sockets}:{port}"),
    ] {
        for attrs in ["read-write", "primary"] {
            let started = Instant::now();
            let url = format!("postgres://{USER}@{hosts}/app?target_session_attrs={attrs}&connect_timeout=2");
            assert_eq!(connect(&url).await, Ok(()), "{url}");
            assert!(started.elapsed() < Duration::from_secs(10), "{url}: {:?}", started.elapsed());
        }
    }
    let hosts = format!("{silent},127.0.0.1:1,{second}");
    let url = format!("postgres://{USER}@{hosts}/app?target_session_attrs=read-write&connect_timeout=1");
    let error = connect(&url).await.expect_err("none of them takes writes");
    for problem in [
        format!("{silent}: no answer in time"),
        "127.0.0.1:1: ".to_owned(),
        format!("{second}: error connecting to server: database does not allow writes"),
    ] {
        assert!(error.contains(&problem) && !error.contains('\n'), "{problem:?} is not in {error:?}");
    }
}
