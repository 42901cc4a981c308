//! The view `committed_changes`: whoever reads it by id skips nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use subledger::db::changes::{self, NewChange};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{ids_behind, settled, write};
use crate::support::database::Database;

const BEGIN: &str = "BEGIN; SELECT pg_current_xact_id()";

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_the_bare_table_can_skip_a_change_and_one_of_the_view_cannot() {
    let database = Database::migrated();
    let (early, late, reader) = (database.client().await, database.client().await, database.client().await);
    let (account, row) = (Uuid::new_v4(), Uuid::new_v4());
    // The transaction that begins first takes the larger id, and commits first.
    early.batch_execute(BEGIN).await.unwrap();
    late.batch_execute(BEGIN).await.unwrap();
    let first = write(&late, account, row, 1).await;
    let second = write(&early, account, row, 2).await;
    early.batch_execute("COMMIT").await.unwrap();
    assert!(first < second);
    assert_eq!(ids_behind(&reader, "subscription_changes", 0).await, [second], "the bare table skips {first}");
    assert!(ids_behind(&reader, "committed_changes", 0).await.is_empty());
    late.batch_execute("COMMIT").await.unwrap();
    settled(&reader).await;
    assert_eq!(ids_behind(&reader, "committed_changes", 0).await, [first, second]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_in_the_view_once_it_is_committed_and_a_rolled_back_one_never() {
    let database = Database::migrated();
    let (writer, reader) = (database.client().await, database.client().await);
    for round in 0..3 {
        writer.batch_execute("BEGIN").await.unwrap();
        write(&writer, Uuid::new_v4(), Uuid::new_v4(), 0).await;
        writer.batch_execute("ROLLBACK").await.unwrap();
        let id = write(&writer, Uuid::new_v4(), Uuid::new_v4(), round).await;
        settled(&reader).await;
        assert_eq!(ids_behind(&reader, "committed_changes", 0).await.last(), Some(&id));
    }
    writer.batch_execute("BEGIN").await.unwrap();
    let own = write(&writer, Uuid::new_v4(), Uuid::new_v4(), 0).await;
    assert!(!ids_behind(&writer, "committed_changes", 0).await.contains(&own), "it is not committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_eight_writers_of_which_some_stay_open_a_reader_by_id_skips_nothing() {
    let database = Arc::new(Database::migrated());
    let writing = Arc::new(AtomicUsize::new(8));
    let mut writers = JoinSet::new();
    for number in 0..8_u64 {
        let (database, writing) = (Arc::clone(&database), Arc::clone(&writing));
        writers.spawn(async move {
            let sql = database.client().await;
            for round in 0..40_u64 {
                sql.batch_execute(BEGIN).await.unwrap();
                tokio::time::sleep(Duration::from_millis((number * 7 + round * 3) % 11)).await;
                for _ in 0..=round % 3 {
                    write(&sql, Uuid::new_v4(), Uuid::new_v4(), 0).await;
                }
                // One in thirteen stays open for long.
                let open = if (round + number) % 13 == 0 { 120 } else { (number + round) % 5 };
                tokio::time::sleep(Duration::from_millis(open)).await;
                sql.batch_execute(if round % 10 == 9 { "ROLLBACK" } else { "COMMIT" }).await.unwrap();
            }
            writing.fetch_sub(1, Ordering::Relaxed);
        });
    }
    let reader = database.client().await;
    let (mut read, mut last) = (Vec::new(), 0);
    loop {
        let is_over = writing.load(Ordering::Relaxed) == 0;
        if is_over {
            settled(&reader).await;
        }
        let found = ids_behind(&reader, "committed_changes", last).await;
        last = found.last().copied().unwrap_or(last);
        read.extend(found);
        if is_over {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    while writers.join_next().await.transpose().unwrap().is_some() {}
    assert_eq!(read, ids_behind(&reader, "subscription_changes", 0).await);
    assert!(read.len() > 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn superfluous_fences_go_and_the_view_stays() {
    let database = Database::migrated();
    let sql = database.client().await;
    for _ in 0..5 {
        write(&sql, Uuid::new_v4(), Uuid::new_v4(), 0).await;
    }
    settled(&sql).await;
    let mut conn = database.target().connect().await.unwrap();
    assert_eq!(changes::delete_passed_fences(&mut conn).await.unwrap(), 4);
    assert_eq!(ids_behind(&sql, "committed_changes", 0).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_never_run_backwards_within_a_subscription() {
    let database = Database::migrated();
    let sql = database.client().await;
    let (account, row) = (Uuid::new_v4(), Uuid::new_v4());
    write(&sql, account, row, 1).await;
    // As if the clock had been set back by an hour since.
    sql.batch_execute("UPDATE subscription_changes SET changed_at = now() + interval '1 hour'").await.unwrap();
    let conn = database.target().connect().await.unwrap();
    let change = |row| NewChange {
        subscription_id: row,
        account_id: account,
        stripe_subscription_id: Some("sub_1".to_owned()),
        event_id: None,
        kinds: vec!["renewed", "updated"],
        before: None,
        after: serde_json::json!({"status": "active"}),
    };
    let written = changes::insert(&conn, &[change(row), change(Uuid::new_v4())]).await.unwrap();
    assert_eq!(written, 2);
    let query = "SELECT bool_and(b.changed_at >= a.changed_at), max(cardinality(b.kinds)), count(*)
                 FROM subscription_changes a JOIN subscription_changes b USING (subscription_id) WHERE a.id < b.id";
    let found = sql.query_one(query, &[]).await.unwrap();
    assert_eq!((found.get(0), found.get(1), found.get(2)), (Some(true), Some(2), 1_i64));
}
