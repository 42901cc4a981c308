//! One fixture of each shape that Stripe's API has had, against values that were written down by hand from Stripe's
//! reference.

use serde_json::{Value, json};

use crate::support::{Settings, TestApp, fixture};

const PLANS: [(&str, &str); 3] = [("prod_QTeam", "team"), ("prod_RYear", "team"), ("price_1SMonthLdgr4Fx9Qz", "pro")];

/// Delivers the fixture and compares the columns that `expected` names, of the row and of its items.
async fn check(version: &str, expected: Value, items: &[Value]) {
    let app = TestApp::start_with(Settings { price_plans: PLANS.to_vec(), ..Settings::default() }, None).await;
    let event = fixture(&format!("versions/{version}"));
    app.account_of(event.object()["customer"].as_str().unwrap()).await;
    assert_eq!(app.deliver(&event).await.outcome(), "applied", "{version}");
    let row = app.subscription(event.object()["id"].as_str().unwrap()).await;
    for (column, expected) in expected.as_object().unwrap() {
        assert_eq!(&row[column], expected, "{column} of {version}");
    }
    assert_eq!((&row["livemode"], &row["connect_account"]), (&json!(false), &Value::Null), "{version}");
    let view = "SELECT to_jsonb(i) - 'subscription_id' - 'account_id' FROM subscription_items i";
    let seen: Vec<Value> = app.sql.query(view, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(seen, items, "{version}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_2020_the_period_is_the_subscriptions() {
    let row = json!({
        "status": "active", "plan": "price_1Hx2020Ldgr4Fx9Qz", "plan_source": "price_id",
        "stripe_price_id": "price_1Hx2020Ldgr4Fx9Qz", "seat_limit": 3, "stripe_created": "2020-10-01T10:00:00+00:00",
        "current_period_start": "2020-10-01T10:00:00+00:00", "current_period_end": "2020-11-01T10:00:00+00:00",
        "cancel_at_period_end": false, "ends_at": null, "cancellation_reason": null, "cancellation_feedback": null,
        "metadata": {"team": "blue"}, "items_complete": true, "trial_end": null, "paused_collection": false,
    });
    let item = json!({
        "stripe_item_id": "si_M3VpxLh8XSevCf", "stripe_price_id": "price_1Hx2020Ldgr4Fx9Qz",
        "stripe_product_id": "prod_I2020", "lookup_key": null, "plan": null, "quantity": 3, "usage_type": "licensed",
        "unit_amount": 2900, "currency": "eur", "interval": "month", "interval_count": 1,
        "current_period_start": "2020-10-01T10:00:00+00:00", "current_period_end": "2020-11-01T10:00:00+00:00",
    });
    check("2020-08-27", row, &[item]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_2024_a_product_names_the_plan_and_the_customer_says_why_it_leaves() {
    let row = json!({
        "status": "active", "plan": "team", "plan_source": "price_plans", "stripe_price_id": "price_1PTeamLdgr4Fx9Qz",
        "seat_limit": 8, "stripe_created": "2024-07-01T11:00:00+00:00",
        "current_period_start": "2024-08-01T11:00:00+00:00", "current_period_end": "2024-09-01T11:00:00+00:00",
        "cancel_at_period_end": true, "cancel_at": "2024-09-01T11:00:00+00:00",
        "canceled_at": "2024-08-01T10:43:20+00:00", "ends_at": "2024-09-01T11:00:00+00:00",
        "cancellation_reason": "cancellation_requested", "cancellation_feedback": "too_expensive", "metadata": {},
    });
    let item = |id: &str, price: &str, product: &str, quantity: Option<i32>, amount: i64, usage: &str| {
        json!({
            "stripe_item_id": id, "stripe_price_id": price, "stripe_product_id": product, "lookup_key": null,
            "plan": null, "quantity": quantity, "usage_type": usage, "unit_amount": amount, "currency": "eur",
            "interval": "month", "interval_count": 1,
            "current_period_start": "2024-08-01T11:00:00+00:00", "current_period_end": "2024-09-01T11:00:00+00:00",
        })
    };
    let mut team = item("si_tGSdYnvseZXHbR", "price_1PTeamLdgr4Fx9Qz", "prod_QTeam", Some(8), 1500, "licensed");
    team["lookup_key"] = json!("team_monthly");
    team["plan"] = json!("team");
    let addon = item("si_ZQ5MLM9isUvywk", "price_1PAddonLdgr4Fx9Qz", "prod_QAddon", Some(1), 500, "licensed");
    let usage = item("si_xgNP2txad0ybFZ", "price_1PUsageLdgr4Fx9Qz", "prod_QUsage", None, 2, "metered");
    check("2024-06-20", row, &[addon, usage, team]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_basil_the_period_is_the_items() {
    let row = json!({
        "status": "past_due", "plan": "team", "plan_source": "price_plans", "stripe_price_id": "price_1RYearLdgr4Fx9Qz",
        "seat_limit": 12, "stripe_created": "2025-04-01T00:00:00+00:00",
        "current_period_start": "2025-04-01T00:00:00+00:00", "current_period_end": "2026-04-01T00:00:00+00:00",
        "ends_at": null,
    });
    let item = json!({
        "stripe_item_id": "si_SrqLsNk3udY8HP", "stripe_price_id": "price_1RYearLdgr4Fx9Qz",
        "stripe_product_id": "prod_RYear", "lookup_key": "team_yearly", "plan": "team", "quantity": 12,
        "usage_type": "licensed", "unit_amount": 120000, "currency": "eur", "interval": "year", "interval_count": 1,
        "current_period_start": "2025-04-01T00:00:00+00:00", "current_period_end": "2026-04-01T00:00:00+00:00",
    });
    check("2025-03-31.basil", row, &[item]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_clover_each_item_has_a_period_of_its_own_and_the_plan_items_counts() {
    let row = json!({
        "status": "active", "plan": "pro", "plan_source": "price_plans", "stripe_price_id": "price_1SMonthLdgr4Fx9Qz",
        "seat_limit": 20, "stripe_created": "2025-12-17T19:33:20+00:00",
        "current_period_start": "2025-12-17T19:33:20+00:00", "current_period_end": "2026-03-17T19:33:20+00:00",
        "cancel_at_period_end": false, "cancel_at": "2026-03-08T20:00:00+00:00",
        "canceled_at": "2026-01-09T23:06:40+00:00", "ends_at": "2026-03-08T20:00:00+00:00",
        "cancellation_reason": "cancellation_requested", "cancellation_feedback": null,
    });
    let support = json!({
        "stripe_item_id": "si_yEPfKgKanN9XM0", "stripe_price_id": "price_1SYearLdgr4Fx9Qz",
        "stripe_product_id": "prod_SSupport", "lookup_key": null, "plan": null, "quantity": 1, "usage_type": "licensed",
        "unit_amount": 99000, "currency": "eur", "interval": "year", "interval_count": 1,
        "current_period_start": "2025-12-17T19:33:20+00:00", "current_period_end": "2026-12-17T19:33:20+00:00",
    });
    let pro = json!({
        "stripe_item_id": "si_mEFE6JiLMGEaus", "stripe_price_id": "price_1SMonthLdgr4Fx9Qz",
        "stripe_product_id": "prod_SPro", "lookup_key": null, "plan": "pro", "quantity": 20, "usage_type": "licensed",
        "unit_amount": 3900, "currency": "eur", "interval": "month", "interval_count": 3,
        "current_period_start": "2025-12-17T19:33:20+00:00", "current_period_end": "2026-03-17T19:33:20+00:00",
    });
    check("2025-12-15.clover", row, &[support, pro]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_dahlia_a_list_of_items_may_go_on() {
    let row = json!({
        "status": "active", "plan": null, "plan_source": null, "items_complete": false,
        "current_period_start": "2026-08-25T23:20:00+00:00", "current_period_end": "2026-09-25T23:20:00+00:00",
    });
    let item = json!({
        "stripe_item_id": "si_DdZLdnLstyyLP4", "stripe_price_id": "price_1TFirstLdgr4Fx9Qz",
        "stripe_product_id": "prod_TFirst", "lookup_key": "first_of_many", "plan": "first_of_many", "quantity": 4,
        "usage_type": "licensed", "unit_amount": 100, "currency": "eur", "interval": "month", "interval_count": 1,
        "current_period_start": "2026-08-25T23:20:00+00:00", "current_period_end": "2026-09-25T23:20:00+00:00",
    });
    check("2026-08-26.dahlia", row, &[item]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_endive_the_trial_may_be_the_items() {
    let row = json!({
        "status": "trialing", "plan": "pro", "plan_source": "lookup_key", "seat_limit": 2,
        "trial_end": "2026-11-13T22:40:00+00:00", "current_period_end": "2026-11-13T22:40:00+00:00",
        "items_complete": true,
    });
    let item = json!({
        "stripe_item_id": "si_2Nj2ufDEK9A1KQ", "stripe_price_id": "price_1XTrialLdgr4Fx9Qz",
        "stripe_product_id": "prod_XTrial", "lookup_key": "pro", "plan": "pro", "quantity": 2, "usage_type": "licensed",
        "unit_amount": 4500, "currency": "eur", "interval": "month", "interval_count": 1,
        "current_period_start": "2026-10-30T22:40:00+00:00", "current_period_end": "2026-11-13T22:40:00+00:00",
    });
    check("2026-10-28.endive", row, &[item]).await;
}
