//! A day of a business that sells subscriptions: lives from the fixtures, as if they had just happened, and what went
//! wrong with some. For pages that want to be looked at.

use chrono::Utc;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Event, TestApp, fixture};

/// What is in a world.
pub struct World {
    /// Entitled, with a story.
    pub account: Uuid,
    pub subscription: String,
    /// Applied; it is in the story.
    pub applied: String,
    /// Its payload holds a script.
    pub hostile: String,
    /// Failed every attempt, for want of a table's consent.
    pub failing: String,
    /// Its customer belongs to nobody.
    pub parked: String,
    pub parked_customer: String,
}

/// A script wherever Stripe lets its users write something.
pub const SCRIPT: &str = "</pre><script>document.title='taken over';alert(1)</script><img src=x onerror=alert(2)>";

/// Lets all that happen to a server.
pub async fn populate(app: &TestApp) -> World {
    let life = "created updated.active updated.quantity pending_update_applied updated.renewal updated.trial_granted \
                trial_will_end updated.paused paused updated.resumed resumed updated.second_renewal";
    let mut events: Vec<_> =
        life.split(' ').map(|name| fixture(&format!("basil/customer.subscription.{name}"))).collect();
    events.insert(2, fixture("basil/invoice.paid"));
    let last_second = events.last().unwrap().0["created"].as_i64().unwrap();
    let shift = Utc::now().timestamp() - 2_520 - last_second;
    let now = |event: Event| Event(shifted(event.0, shift));
    let events: Vec<_> = events.into_iter().map(now).collect();
    let customer = events[0].object()["customer"].as_str().unwrap().to_owned();
    let account = app.account_of(&customer).await;
    app.execute("UPDATE accounts SET name = 'Northwind Traders'").await;
    // The fifth comes late.
    for (index, event) in events.iter().enumerate().filter(|(index, _)| *index != 4).chain([(4, &events[4])]) {
        let expected = if index == 4 { "stale" } else { "applied" };
        assert_eq!(app.deliver(event).await.outcome(), expected, "{event}");
    }
    let (hostile, parked) = (deliver_hostile(app, account).await, deliver_parked(app).await);
    let failing = deliver_failing(app, account).await;
    as_of_their_time(app).await;
    fill_day(app).await;
    World {
        account,
        subscription: events[0].object()["id"].as_str().unwrap().to_owned(),
        applied: events[5].id().to_owned(),
        hostile,
        failing,
        parked: parked.id().to_owned(),
        parked_customer: parked.object()["customer"].as_str().unwrap().to_owned(),
    }
}

async fn deliver_hostile(app: &TestApp, account: Uuid) -> String {
    let customer = json!({"id": "cus_TqB7mYk2hVd9Zs", "object": "customer", "name": SCRIPT, "description": SCRIPT});
    let id = "evt_1SPw4tLdgr4Fx9QzR8nVYxTe";
    let event = Event::new(id, "customer.updated", Utc::now().timestamp() - 5_400, customer);
    assert_eq!(app.deliver(event).await.outcome(), "ignored");
    let linked = "INSERT INTO account_customers (stripe_customer_id, account_id) VALUES ('cus_TqB7mYk2hVd9Zs', $1)";
    app.sql.execute(linked, &[&account]).await.unwrap();
    id.to_owned()
}

async fn deliver_parked(app: &TestApp) -> Event {
    let event = fixture("endive/customer.subscription.created");
    let shift = Utc::now().timestamp() - 11_000 - event.0["created"].as_i64().unwrap();
    let event = Event(shifted(event.0, shift));
    assert_eq!(app.deliver(&event).await.outcome(), "parked");
    event
}

async fn deliver_failing(app: &TestApp, account: Uuid) -> String {
    let event = fixture("classic/customer.subscription.created");
    let shift = Utc::now().timestamp() - 900 - event.0["created"].as_i64().unwrap();
    let event = Event(shifted(event.0, shift));
    let linked = "INSERT INTO account_customers (stripe_customer_id, account_id) VALUES ($1, $2)";
    app.sql.execute(linked, &[&event.object()["customer"].as_str(), &account]).await.unwrap();
    break_subscriptions(app).await;
    for _ in 0..3 {
        assert_eq!(app.deliver(&event).await.status, 500);
    }
    event.id().to_owned()
}

/// From now on no subscription can be recorded.
pub async fn break_subscriptions(app: &TestApp) {
    app.execute("ALTER TABLE subscriptions ADD CONSTRAINT few_seats CHECK (seat_limit < 0) NOT VALID").await;
}

pub async fn mend_subscriptions(app: &TestApp) {
    app.execute("ALTER TABLE subscriptions DROP CONSTRAINT few_seats").await;
}

/// Has all of it arrive when it happened.
async fn as_of_their_time(app: &TestApp) {
    app.execute(
        "UPDATE stripe_events SET received_at = created + interval '1.4 seconds';
         UPDATE stripe_events SET received_at = received_at + interval '3 hours' WHERE outcome = 'stale';
         UPDATE event_failures SET failed_at = created + interval '1 second' + (id - 1) * interval '4 minutes';
         UPDATE accounts SET created_at = now() - interval '120 days';",
    )
    .await;
}

/// What all the other customers did in the last day: the same every time.
async fn fill_day(app: &TestApp) {
    app.execute(
        "INSERT INTO stripe_events
             (id, type, outcome, livemode, created, received_at, customer_id, subscription_id, payload)
         SELECT 'evt_1SP' || substr(md5('e' || n), 1, 17),
                CASE n % 7 WHEN 0 THEN 'invoice.paid' WHEN 1 THEN 'customer.subscription.created'
                           WHEN 2 THEN 'charge.succeeded' WHEN 3 THEN 'invoice.finalized'
                           ELSE 'customer.subscription.updated' END,
                CASE WHEN n % 7 IN (2, 3) THEN 'ignored' WHEN n % 23 = 5 THEN 'stale'
                     WHEN n IN (211, 212, 380) THEN 'parked' ELSE 'applied' END,
                true, at - interval '1 second' * (1 + n % 11 / 4), at,
                'cus_' || substr(md5('c' || n), 1, 14), 'sub_1SP' || substr(md5('s' || n), 1, 17),
                jsonb_build_object('id', 'evt_1SP' || substr(md5('e' || n), 1, 17))
         FROM (SELECT n, now() - interval '24 hours' * (n / 640.0 + 0.09 * sin(n / 100.0))
                      - interval '80 seconds' AS at
               FROM generate_series(1, 640) AS n) AS day
         WHERE at < now()",
    )
    .await;
}

/// JSON with every second of our days moved by `shift`.
fn shifted(value: Value, shift: i64) -> Value {
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(second @ 1_500_000_000..2_000_000_000) => json!(second + shift),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(|item| shifted(item, shift)).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, shifted(value, shift))).collect(),
        other => other,
    }
}
