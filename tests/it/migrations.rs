//! The migrations: down undoes up, and the application's own statements work on what up makes.

use std::path::Path;

use crate::support::database::Database;

fn script(name: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut folders: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders.iter().map(|folder| std::fs::read_to_string(folder.join(name)).unwrap()).collect()
}

const OBJECTS: &str = "SELECT count(*) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
                       WHERE nspname = 'public'";

#[tokio::test(flavor = "multi_thread")]
async fn down_undoes_up_and_up_works_again() {
    let database = Database::empty();
    let sql = database.client().await;
    let objects = async || sql.query_one(OBJECTS, &[]).await.unwrap().get::<_, i64>(0);
    for _ in 0..2 {
        for up in script("up.sql") {
            sql.batch_execute(&up).await.unwrap();
        }
        assert!(objects().await > 10);
        for down in script("down.sql").iter().rev() {
            sql.batch_execute(down).await.unwrap();
        }
        assert_eq!(objects().await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_can_insert_accounts_and_local_trials_with_few_columns() {
    let database = Database::migrated();
    let sql = database.client().await;
    let account = "INSERT INTO accounts (name, stripe_customer_id) VALUES ('Acme', 'cus_1') RETURNING id";
    let id: uuid::Uuid = sql.query_one(account, &[]).await.unwrap().get(0);
    let trial = "INSERT INTO subscriptions (account_id, plan, status) VALUES ($1, 'pro', 'trialing')";
    assert_eq!(sql.execute(trial, &[&id]).await.unwrap(), 1);
    assert_eq!(sql.execute(trial, &[&id]).await.unwrap(), 1, "an account may have several");
    assert!(sql.execute("INSERT INTO accounts (stripe_customer_id) VALUES ('cus_1')", &[]).await.is_err());
}
