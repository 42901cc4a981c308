//! Through PgBouncer in session mode, with nothing in its configuration that is made for us.

use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use subledger::db::connect::Target;

use crate::support::cluster::Cluster;
use crate::support::pgbouncer::PgBouncer;
use crate::support::simulation::{serve, simulate};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_pgbouncer_in_session_mode_migrates_serves_and_keeps_the_truth() {
    let cluster = Cluster::start().await;
    // Room for the server's own pool, and for what migrates and compares.
    let Some(pooler) = PgBouncer::start(&cluster, "session", 20) else { return };
    let server = serve(&pooler.url("app"));
    let ran = simulate(&server.address, &pooler.url("app"), 20).await;
    ran.ends_with(0);
    assert!(ran.out.contains("the tables show the truth") && ran.out.contains("no retries"), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_limits_of_a_session_hold_through_pgbouncer_and_are_not_left_to_the_next_client() {
    #[derive(diesel::QueryableByName)]
    struct Setting {
        #[diesel(sql_type = Text)]
        value: String,
    }
    let cluster = Cluster::start().await;
    // One connection to the server, which the two sessions below have in turn.
    let Some(pooler) = PgBouncer::start(&cluster, "session", 1) else { return };
    let target = Target::parse(&pooler.url("app")).unwrap();
    let query = "SELECT concat_ws(' ', current_setting('statement_timeout'), current_setting('lock_timeout'),
                 current_setting('idle_in_transaction_session_timeout'),
                 current_setting('client_connection_check_interval')) AS value";
    let mut conn = target.connect().await.unwrap();
    let setting: Setting = diesel::sql_query(query).get_result(&mut conn).await.unwrap();
    assert_eq!(setting.value, "10s 5s 10s 100ms");
    drop(conn);
    let mut conn = target.connect_unbounded().await.unwrap();
    let setting: Setting = diesel::sql_query(query).get_result(&mut conn).await.unwrap();
    assert_eq!(setting.value, "0 0 0 0", "a migration may take as long as it has to");
}
