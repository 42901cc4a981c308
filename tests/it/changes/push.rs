//! The push to `CHANGES_URL`.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{write, write_many};
use crate::support::app::Settings;
use crate::support::receiver::Receiver;
use crate::support::{TestApp, job};

async fn started(receiver: &Receiver) -> TestApp {
    TestApp::start_with(Settings { push: Some(receiver.push()), ..Settings::default() }, None).await
}

fn ids_of(changes: &[Value], account: Uuid) -> Vec<i64> {
    let own = changes.iter().filter(|change| change["account_id"] == json!(account));
    own.map(|change| change["id"].as_i64().unwrap()).collect()
}

/// The figure of the metric.
async fn pending(app: &TestApp) -> u64 {
    let request = app.http.get(app.url("/metrics")).bearer_auth(crate::support::app::ADMIN_TOKEN);
    let text = request.send().await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("subledger_changes_pending "));
    line.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_pushed_once_and_in_order_for_each_account() {
    let receiver = Receiver::start().await;
    let app = started(&receiver).await;
    let accounts: Vec<_> = (0..10).map(|_| Uuid::new_v4()).collect();
    let mut written: HashMap<Uuid, Vec<i64>> = HashMap::new();
    for round in 0..30 {
        for account in &accounts {
            let id = write(&app.sql, *account, *account, round).await;
            written.entry(*account).or_default().push(id);
        }
    }
    let taken = receiver.wait_for(300).await;
    assert_eq!(taken.len(), 300);
    for (account, ids) in written {
        assert_eq!(ids_of(&taken, account), ids);
    }
    let listed = app.get("/api/v1/changes?limit=1").await.body["data"][0].clone();
    assert!(taken.contains(&listed), "what is pushed is what is listed");
    for _ in 0..100 {
        if pending(&app).await == 0 && app.count("change_push_accounts").await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} are pending", pending(&app).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_account_is_retried_in_order_and_holds_up_no_other() {
    let receiver = Receiver::start().await;
    let (bad, good) = (Uuid::new_v4(), Uuid::new_v4());
    receiver.answer(move |change| if change["account_id"] == json!(bad) { 500 } else { 200 });
    let app = started(&receiver).await;
    let bad_ids = write_many(&app, bad, Uuid::new_v4(), 3).await;
    let good_ids = write_many(&app, good, Uuid::new_v4(), 20).await;
    assert_eq!(ids_of(&receiver.wait_for(20).await, good), good_ids);
    assert_eq!(ids_of(&receiver.refused(), bad).first(), bad_ids.first());
    // The state is written after the receiver's answer.
    app.wait_for_count("change_push_accounts WHERE attempts > 0", 1, Duration::from_secs(10)).await;
    for _ in 0..100 {
        if pending(&app).await == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(pending(&app).await, 3);
    let state = app.one("SELECT last_error, attempts FROM change_push_accounts WHERE attempts > 0").await;
    assert!(state.get::<_, String>(0).contains("500"), "{state:?}");
    // The first pause is at most ten seconds.
    receiver.answer(|_| 200);
    assert_eq!(ids_of(&receiver.wait_for(23).await, bad), bad_ids);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_subscription_stays_in_order_across_accounts() {
    let receiver = Receiver::start().await;
    let (old, new, row) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    receiver.answer(move |change| if change["account_id"] == json!(old) { 500 } else { 200 });
    let app = started(&receiver).await;
    let first = write(&app.sql, old, row, 1).await;
    let second = write(&app.sql, new, row, 2).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(receiver.taken().is_empty(), "the later one must wait for the earlier one");
    receiver.answer(|_| 200);
    let taken = receiver.wait_for(2).await;
    assert_eq!((&taken[0]["id"], &taken[1]["id"]), (&json!(first), &json!(second)));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_take_turns_and_the_other_goes_on_when_one_stops() {
    let receiver = Receiver::start().await;
    let first = started(&receiver).await;
    let settings = || Settings { push: Some(receiver.push()), ..Settings::default() };
    let second =
        TestApp::start_at(crate::support::database::Database::migrated(), first.database.target(), settings(), None)
            .await;
    let account = Uuid::new_v4();
    let before = write_many(&first, account, account, 50).await;
    assert_eq!(ids_of(&receiver.wait_for(50).await, account), before);
    let held = "pg_locks WHERE locktype = 'advisory' AND granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(first.count(held).await, 1);
    first.tell_to_stop();
    let after = write_many(&first, account, account, 50).await;
    assert_eq!(ids_of(&receiver.wait_for(100).await, account), [before, after].concat());
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_retries_at_once_and_delivers_again_from_an_id_on() {
    let receiver = Receiver::start().await;
    let app = started(&receiver).await;
    let account = Uuid::new_v4();
    let ids = write_many(&app, account, account, 5).await;
    receiver.wait_for(5).await;
    let ran = job::run(&app, None, &["changes", "retry", "--from", &ids[3].to_string()]).await;
    ran.ends_with(0);
    let again = ids_of(&receiver.wait_for(7).await, account);
    assert_eq!(again[5..], ids[3..]);
    receiver.answer(|_| 503);
    let failing = write(&app.sql, account, account, 9).await;
    while receiver.refused().is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    app.execute("UPDATE change_push_accounts SET next_attempt_at = now() + interval '1 hour'").await;
    receiver.answer(|_| 200);
    job::run(&app, None, &["changes", "retry"]).await.ends_with(0);
    assert_eq!(ids_of(&receiver.wait_for(8).await, account).last(), Some(&failing));
}
