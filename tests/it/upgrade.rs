//! Rows that a server of an earlier version wrote: their new columns are filled from the stored events.

use serde_json::{Value, json};

use crate::support::events::{created, invoice, paid, subscription};
use crate::support::{Settings, TestApp};

/// Leaves the new columns as the migration leaves those of existing rows, or an old server those of its own.
const FORGET: &str = "UPDATE subscriptions SET plan_source = 'unknown', stripe_created = NULL, metadata = '{}',
    items = '[]', items_complete = false, livemode = NULL, latest_invoice_created = NULL, latest_invoice_url = NULL,
    projected_event_id = NULL";

async fn filled(app: &TestApp, id: &str) -> Value {
    for _ in 0..100 {
        let row = app.subscription(id).await;
        if row["projected_event_id"] == row["last_event_id"] {
            return row;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("{id} was not filled");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_columns_of_existing_rows_are_filled_from_stored_events() {
    let settings = || Settings { price_plans: vec![("price_team", "team")], ..Settings::default() };
    let app = TestApp::start_with(settings(), None).await;
    app.account_of("cus_1").await;
    let mut object = subscription("sub_1", "cus_1", "active", 5);
    object["metadata"] = json!({"team": "blue"});
    object["created"] = json!(1_700_000_000);
    app.deliver(created("evt_1", 100, object)).await;
    let mut bill = invoice("in_1", "cus_1", "sub_1");
    bill["created"] = json!(90);
    bill["hosted_invoice_url"] = json!("https://invoice.stripe.com/i/1");
    app.deliver(paid("evt_2", 100, bill)).await;
    app.deliver(created("evt_3", 100, subscription("sub_2", "cus_1", "active", 5))).await;
    let mut before = app.subscription("sub_1").await;
    app.sql.batch_execute(FORGET).await.unwrap();
    app.sql.execute("DELETE FROM stripe_events WHERE id = 'evt_3'", &[]).await.unwrap();

    let other =
        TestApp::start_at(crate::support::database::Database::empty(), app.database.target(), settings(), None).await;
    let mut after = filled(&app, "sub_1").await;
    for row in [&mut before, &mut after] {
        row.as_object_mut().unwrap().remove("updated_at");
    }
    assert_eq!(after, before);
    assert_eq!(after["latest_invoice_url"], "https://invoice.stripe.com/i/1");
    let unknown = filled(&app, "sub_2").await;
    assert_eq!((&unknown["plan_source"], &unknown["items_complete"]), (&json!("unknown"), &json!(false)));
    assert_eq!((&unknown["plan"], &unknown["items"]), (&json!("team"), &json!([])));
    drop(other);
}
