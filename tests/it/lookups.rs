//! Lists, search and overview over many events: what is found, and how little is read to find it.

use std::time::{Duration, Instant};

use reqwest::header::LOCATION;
use reqwest::redirect::Policy;
use serde_json::Value;

use crate::support::app::ADMIN_TOKEN;
use crate::support::events::{subscription, updated};
use crate::support::{Event, Settings, TestApp};

/// A page for people: its status, where it redirects to, and its text.
async fn page(app: &TestApp, path: &str) -> (u16, String, String) {
    let http = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let answer = http.get(app.url(path)).bearer_auth(ADMIN_TOKEN).send().await.unwrap();
    let location = answer.headers().get(LOCATION).map_or("", |value| value.to_str().unwrap()).to_owned();
    (answer.status().as_u16(), location, answer.text().await.unwrap())
}

async fn found(app: &TestApp, text: &str) -> String {
    let (status, location, body) = page(app, &format!("/admin/search?q={text}")).await;
    assert_eq!(status, 303, "{text}: {body}");
    location
}

/// Waits until the background job has made a condition true.
async fn wait_until(app: &TestApp, condition: &str) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !app.one(&format!("SELECT ({condition})")).await.get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "never true: {condition}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// So many events of two types, every outcome but `stale` for the one and `parked` for the other.
async fn fill(app: &TestApp, events: u32) {
    app.execute(&format!(
        "INSERT INTO stripe_events (id, type, outcome, livemode, received_at, object_id, connect_account, payload)
         SELECT 'evt_' || lpad(n::text, 7, '0'),
                CASE n % 2 WHEN 0 THEN 'invoice.paid' ELSE 'charge.succeeded' END,
                CASE WHEN n % 1000 = 0 THEN 'parked' WHEN n % 1000 = 1 THEN 'stale'
                     WHEN n % 3 = 0 THEN 'ignored' ELSE 'applied' END,
                false, now() - interval '1 minute' * (n / 3), 'in_' || n,
                CASE WHEN n > 30000 THEN 'acct_many' END, '{{}}'
         FROM generate_series(1, {events}) AS n;
         ANALYZE"
    ))
    .await;
}

async fn ids(app: &TestApp, query: &str) -> Vec<String> {
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = app.get(&format!("/events?{query}&limit=100{after}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        let events = page.body["data"].as_array().unwrap();
        seen.extend(events.iter().map(|event| event["id"].as_str().unwrap().to_owned()));
        if page.body["has_more"] == false {
            return seen;
        }
        after = format!("&starting_after={}", seen.last().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_by_type_and_status_pages_through_exactly_its_events() {
    let app = TestApp::start().await;
    fill(&app, 2_000).await;
    app.execute(
        "INSERT INTO event_failures (event_id, type, failed_at, error)
         SELECT 'evt_failed_' || lpad(n::text, 3, '0'), 'invoice.paid', now() - interval '3 minutes' * (n / 2), 'boom'
         FROM generate_series(1, 150) AS n",
    )
    .await;
    for (query, condition) in [
        ("type=invoice.paid", "type = 'invoice.paid'"),
        ("type=charge.succeeded&status=applied", "type = 'charge.succeeded' AND status = 'applied'"),
        ("status=ignored", "status = 'ignored'"),
        ("status=stale", "status = 'stale'"),
        ("status=failed&type=invoice.paid", "status = 'failed' AND type = 'invoice.paid'"),
        ("type=invoice.paid&status=stale", "false"),
        ("status=failed&type=charge.succeeded", "false"),
    ] {
        let expected = app
            .json(
                &format!(
                    "SELECT to_jsonb(id) FROM (
                         SELECT id, type, outcome AS status, received_at FROM stripe_events
                         UNION ALL SELECT event_id, type, 'failed', failed_at FROM event_failures) AS event
                     WHERE {condition} ORDER BY received_at DESC, id DESC"
                ),
                &[],
            )
            .await;
        assert_eq!(ids(&app, query).await, expected, "{query}");
    }
}

/// The blocks of `stripe_events`, `event_failures` and their indexes that were read.
const READ: &str = "SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::bigint
                    FROM pg_statio_user_tables WHERE relname IN ('stripe_events', 'event_failures')";

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_nothing_reads_next_to_nothing() {
    let app = TestApp::start_with(Settings { pool_size: 1, ..Settings::default() }, None).await;
    fill(&app, 60_000).await;
    app.execute(
        "INSERT INTO event_failures (event_id, type, failed_at, error, is_open)
         SELECT 'evt_' || lpad((n % 20000 + 1)::text, 7, '0'), 'x', now(), 'boom', false
         FROM generate_series(1, 40000) AS n;
         INSERT INTO accounts (name) SELECT 'Company ' || n FROM generate_series(1, 1000) AS n;
         ANALYZE",
    )
    .await;
    // Sessions report what they read at most once a second.
    let read = async || {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        app.get("/events/evt_nobody").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        app.one(READ).await.get::<_, i64>(0)
    };
    for path in [
        "/events?type=invoice.paid&status=stale",
        "/events?status=failed",
        "/events?status=failed&type=invoice.paid",
        "/events?customer=cus_nobody",
        "/events?limit=20",
        "/admin/search?q=in_nobody",
        "/admin/search?q=evt_nobody",
        "/admin/search?q=acct_nobody",
        "/admin/search?q=acct_many",
        "/admin/search?q=nobody%20knows",
    ] {
        let mut fewest = i64::MAX;
        // A vacuum may read the tables meanwhile, but not each time.
        for _ in 0..4 {
            let before = read().await;
            page(&app, path).await;
            fewest = fewest.min(read().await - before);
            if fewest < 200 {
                break;
            }
        }
        assert!(fewest < 200, "{path}: {fewest} blocks read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_is_found_however_many_events_came_since() {
    let app = TestApp::start().await;
    let invoice = serde_json::json!({"id": "in_old", "object": "invoice", "customer": "cus_1"});
    app.deliver(Event::new("evt_old", "invoice.created", 100, invoice)).await;
    app.execute(
        "UPDATE stripe_events SET received_at = now() - interval '1 year';
         INSERT INTO stripe_events (id, type, outcome, livemode, object_id, payload)
         SELECT 'evt_' || n, 'x', 'ignored', false, '', '{}' FROM generate_series(1, 21000) AS n",
    )
    .await;
    assert_eq!(found(&app, "in_old").await, "/admin/events/evt_old");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_former_version_are_filled_in_and_until_then_the_page_says_so() {
    let app = TestApp::start().await;
    app.execute(
        r#"INSERT INTO stripe_events (id, type, outcome, livemode, payload)
           SELECT 'evt_' || lpad(n::text, 5, '0'), CASE n % 4 WHEN 0 THEN 'customer.subscription.updated' ELSE 'x' END,
                  'ignored', false, CASE n % 3 WHEN 0 THEN '{}' ELSE jsonb_build_object('data',
                  jsonb_build_object('object', jsonb_build_object('id', 'ch_' || n))) END
           FROM generate_series(1, 9000) AS n"#,
    )
    .await;
    assert_eq!(found(&app, "ch_8999").await, "/admin/events/evt_08999", "before it is filled");
    let (status, _, body) = page(&app, "/admin/search?q=ch_nobody").await;
    assert_eq!(status, 404);
    assert!(body.contains("Nothing found yet"), "{body}");
    wait_until(
        &app,
        "SELECT count(*) = 0 FROM stripe_events WHERE object_id IS NULL AND type NOT LIKE 'customer.subscription.%'",
    )
    .await;
    let wrong = "stripe_events WHERE type = 'x' AND object_id <> COALESCE(payload #>> '{data,object,id}', '')";
    assert_eq!(app.count(wrong).await, 0);
    assert_eq!(found(&app, "ch_1").await, "/admin/events/evt_00001");
    let (_, _, body) = page(&app, "/admin/search?q=ch_nobody").await;
    assert!(body.contains("Nothing found") && !body.contains("Nothing found yet"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_accounts_items_prices_and_changes_are_found_by_their_ids() {
    let app = TestApp::start().await;
    let (one, two) = (app.account_of("cus_1").await, app.account_of("cus_2").await);
    app.execute("UPDATE accounts SET name = stripe_customer_id").await;
    let mut ids = 1..;
    let mut deliver = async |customer: &str, item: &str, price: &str| {
        let number = ids.next().unwrap();
        let mut subscription = subscription(&format!("sub_{number}"), customer, "active", 1);
        subscription["items"]["data"][0]["id"] = item.into();
        subscription["items"]["data"][0]["price"]["id"] = price.into();
        let event = updated(&format!("evt_{number}"), 100, subscription);
        assert_eq!(app.deliver(event).await.outcome(), "applied");
    };
    deliver("cus_1", "si_a", "price_both").await;
    deliver("cus_2", "si_b", "price_both").await;
    deliver("cus_2", "si_c", "price_two").await;
    deliver("cus_1", "si_d", "price_one").await;
    deliver("cus_1", "si_e", "price_one").await;
    for (text, expected) in [
        ("si_a", format!("/admin/accounts/{one}#sub_1")),
        ("si_c", format!("/admin/accounts/{two}#sub_3")),
        ("price_two", format!("/admin/accounts/{two}#sub_3")),
        ("price_one", format!("/admin/accounts/{one}")),
    ] {
        assert_eq!(found(&app, text).await, expected, "{text}");
    }
    let (status, _, body) = page(&app, "/admin/search?q=price_both").await;
    assert_eq!(status, 200);
    for account in [one, two] {
        assert_eq!(body.matches(&format!("href=\"/admin/accounts/{account}\"")).count(), 1, "{body}");
    }

    let change = app.one("SELECT 'chg_' || id FROM subscription_changes WHERE stripe_subscription_id = 'sub_3'").await;
    assert_eq!(found(&app, change.get(0)).await, format!("/admin/accounts/{two}"));

    for (id, secs, connect) in [("evt_new", 5, "acct_9"), ("evt_old", 600, "acct_9"), ("evt_else", 0, "acct_99")] {
        let mut event = Event::new(id, "charge.succeeded", 100, serde_json::json!({"id": "ch_1"}));
        event.0["account"] = connect.into();
        app.deliver(event).await;
        let received = format!("now() - interval '{secs} seconds'");
        app.execute(&format!("UPDATE stripe_events SET received_at = {received} WHERE id = '{id}'")).await;
    }
    assert_eq!(found(&app, "acct_9").await, "/admin/events/evt_new");
    for nothing in ["acct_nobody", "si_nobody", "price_nobody", "chg_999", "chg_x", "chg_"] {
        let (status, _, body) = page(&app, &format!("/admin/search?q={nothing}")).await;
        assert_eq!(status, 404, "{nothing}");
        assert!(body.contains("Only the 10,000 subscriptions with the greatest ids are searched"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_found_by_their_name() {
    let app = TestApp::start().await;
    app.execute(
        "INSERT INTO accounts (id, name, created_at) VALUES
             ('00000000-0000-4000-8000-000000000001', 'Northwind Traders', '2020-01-01'),
             ('00000000-0000-4000-8000-000000000002', '100% Cotton', '2020-01-02'),
             ('00000000-0000-4000-8000-000000000003', '<b>Acme</b> East', '2020-01-03'),
             ('00000000-0000-4000-8000-000000000004', 'Acme_West', '2020-01-04'),
             ('00000000-0000-4000-8000-000000000005', 'AcmeXWest', '2020-01-05')",
    )
    .await;
    let account = |n: u8| format!("/admin/accounts/00000000-0000-4000-8000-00000000000{n}");
    for (text, expected) in
        [("northWIND", 1), ("Northwind%20Traders", 1), ("%20traders%20", 1), ("100%25", 2), ("Acme_", 4), ("acmex", 5)]
    {
        assert_eq!(found(&app, text).await, account(expected), "{text}");
    }
    let (status, _, body) = page(&app, "/admin/search?q=west").await;
    assert_eq!(status, 200);
    assert!(body.contains(&account(4)) && body.contains(&account(5)) && !body.contains(&account(3)), "{body}");
    let (status, _, body) = page(&app, "/admin/search?q=acme").await;
    assert_eq!(status, 200);
    assert!(body.contains(&account(4)) && !body.contains("<b>Acme"), "{body}");
    for nothing in ["%25", "_", "Southwind", "%5C"] {
        let (status, ..) = page(&app, &format!("/admin/search?q={nothing}")).await;
        let expected = if nothing == "%25" || nothing == "_" { 303 } else { 404 };
        assert_eq!(status, expected, "{nothing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_recorded_events_are_closed_and_those_that_still_fail_stay_open() {
    let app = TestApp::start().await;
    app.execute(
        "INSERT INTO stripe_events (id, type, outcome, livemode, payload) VALUES ('evt_done', 'x', 'applied', false, '{}');
         INSERT INTO event_failures (event_id, type, failed_at, error)
         SELECT id, 'x', now() - interval '1 hour' + interval '1 minute' * n, 'boom'
         FROM generate_series(1, 3) AS n, unnest(ARRAY['evt_done', 'evt_failing']) AS id",
    )
    .await;
    let failing = async || {
        let (_, _, body) = page(&app, "/admin").await;
        assert!(body.contains("1 event failing") && body.contains("3 attempts"), "{body}");
        assert_eq!(ids(&app, "status=failed").await, ["evt_failing"]);
    };
    failing().await;
    wait_until(&app, "SELECT count(*) = 1 FROM event_failures WHERE is_open").await;
    failing().await;
    let open = app.json("SELECT to_jsonb(event_id) FROM event_failures WHERE is_open", &[]).await;
    assert_eq!(open, [Value::from("evt_failing")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_delivery_is_open_once_until_its_event_is_recorded() {
    let app = TestApp::start().await;
    app.account_of("cus_1").await;
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 5)").await;
    let event = updated("evt_1", 100, subscription("sub_1", "cus_1", "active", 9));
    for _ in 0..3 {
        assert_eq!(app.deliver(&event).await.status, 500);
    }
    assert_eq!(app.count("event_failures").await, 3);
    assert_eq!(app.count("event_failures WHERE is_open").await, 1);
    assert_eq!(ids(&app, "status=failed").await, ["evt_1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_week_is_charted_beside_the_day() {
    let app = TestApp::start().await;
    app.execute(
        "INSERT INTO stripe_events (id, type, outcome, livemode, received_at, payload)
         SELECT 'evt_' || n, 'x', CASE WHEN n > 40 THEN 'stale' ELSE 'applied' END, false,
                date_trunc('day', now(), 'UTC') - interval '3 days' + interval '1 hour' * (n % 24), '{}'
         FROM generate_series(1, 42) AS n",
    )
    .await;
    let (status, _, body) = page(&app, "/admin").await;
    assert_eq!(status, 200);
    let day = app.one("SELECT to_char(now() AT TIME ZONE 'UTC' - interval '3 days', 'Dy FMDD Mon')").await;
    let day: String = day.get(0);
    assert!(body.contains(&format!("{day} UTC: 42 events (40 applied, 2 stale)")), "{day}: {body}");
    assert!(body.contains("Last 24 hours") && body.contains("Last 7 days"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_subscriptions_of_an_account_are_paged_and_the_search_leads_to_the_page_of_one() {
    let app = TestApp::start().await;
    let account = app.account_of("cus_1").await;
    app.execute(
        "INSERT INTO subscriptions (account_id, status, stripe_subscription_id, created_at)
         SELECT id, 'active', 'sub_' || lpad(n::text, 3, '0'), now() - interval '1 minute' * (n / 2)
         FROM accounts, generate_series(1, 500) AS n",
    )
    .await;
    let (mut path, mut seen, mut pages) = (Some(format!("/admin/accounts/{account}")), Vec::new(), 0);
    while let Some(next) = path {
        let (status, _, body) = page(&app, &next).await;
        assert_eq!(status, 200);
        assert!(body.len() < 60_000, "{next}: {} bytes", body.len());
        seen.extend(body.split("id=\"sub_").skip(1).map(|rest| rest[..3].to_owned()));
        let link = body.split_once("rel=\"next\" href=\"").map(|(_, rest)| rest.split('"').next().unwrap());
        path = link.map(str::to_owned);
        pages += 1;
    }
    seen.sort();
    seen.dedup();
    assert_eq!((seen.len(), pages), (500, 20));
    for id in ["sub_001", "sub_249", "sub_250", "sub_500"] {
        let location = found(&app, id).await;
        let (_, _, body) = page(&app, location.split('#').next().unwrap()).await;
        assert!(body.contains(&format!("id=\"{id}\"")), "{id}: {location}");
    }
}
