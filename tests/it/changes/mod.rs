//! `subscription_changes`: written once, read without a gap, pushed in order.

mod http;
mod push;
mod view;

use std::time::Duration;

use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use crate::support::TestApp;

/// A change of a row, written as the write step writes one; its id.
async fn write(sql: &impl GenericClient, account: Uuid, row: Uuid, seats: i64) -> i64 {
    let insert = "INSERT INTO subscription_changes (subscription_id, account_id, kinds, before, after)
                  VALUES ($1, $2, '{seats_changed}', NULL,
                          jsonb_build_object('id', $1::uuid, 'account_id', $2::uuid, 'status', 'active', 'seat_limit', $3::bigint,
                                             'created_at', now()))
                  RETURNING id";
    sql.query_one(insert, &[&row, &account, &seats]).await.unwrap().get(0)
}

/// So many changes of one row; their ids.
async fn write_many(app: &TestApp, account: Uuid, row: Uuid, count: i64) -> Vec<i64> {
    let mut ids = Vec::new();
    for seats in 0..count {
        ids.push(write(&app.sql, account, row, seats).await);
    }
    settled(&app.sql).await;
    ids
}

/// Waits until every change is in the view. Other tests' transactions, on other databases of the same server, hold it
/// up while they are open.
async fn settled(sql: &Client) {
    let unsettled = "SELECT (SELECT max(id) FROM subscription_changes) IS DISTINCT FROM max(id) FROM committed_changes";
    for _ in 0..1_200 {
        if !sql.query_one(unsettled, &[]).await.unwrap().get::<_, bool>(0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the changes do not settle");
}

async fn ids_behind(sql: &Client, from: &str, last: i64) -> Vec<i64> {
    let query = format!("SELECT id FROM {from} WHERE id > $1 ORDER BY id");
    sql.query(&query, &[&last]).await.unwrap().iter().map(|row| row.get(0)).collect()
}
