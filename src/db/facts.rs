//! What the tables know of events before any of them is handled: one query for all of them.

use chrono::{DateTime, Utc};
use diesel::QueryResult;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::Conn;
use super::cached::Cached;

/// An event, by what it refers to.
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    /// The event's id.
    pub event_id: &'a str,
    /// `sub_…`.
    pub subscription_id: Option<&'a str>,
    /// `cus_…`.
    pub customer_id: Option<&'a str>,
    /// `acct_…` of the customer, where it is an account of Stripe's as well.
    pub customer_account_id: Option<&'a str>,
    /// The account that the object names first.
    pub first_name: Option<Uuid>,
    /// The account that the object names in the second place.
    pub second_name: Option<Uuid>,
}

/// What the tables know of one event.
#[derive(Clone, Debug, diesel::QueryableByName)]
pub struct Facts {
    /// The event's place in what was asked, from 1 on.
    #[diesel(sql_type = BigInt)]
    pub number: i64,
    /// Whether the event has its idempotency row.
    #[diesel(sql_type = Bool)]
    pub is_recorded: bool,
    /// When the first attempt at the event failed, if one did.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub failed_since: Option<DateTime<Utc>>,
    /// The account of the subscription's row.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub account_of_row: Option<Uuid>,
    /// The account to which the customer is linked.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub account_of_customer: Option<Uuid>,
    /// The account to which the customer is linked by its `acct_…`.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub account_of_customer_account: Option<Uuid>,
    /// The account that the object names, if it exists.
    #[diesel(sql_type = Nullable<SqlUuid>)]
    pub account_by_name: Option<Uuid>,
    /// The local plan of [`Facts::account`].
    #[diesel(sql_type = Nullable<Text>)]
    pub local_plan: Option<String>,
    /// Whether parked events have yet to be looked for since [`Facts::account`] was linked.
    #[diesel(sql_type = Bool)]
    pub has_new_links: bool,
    /// When the oldest local row of [`Facts::account`] was made.
    #[diesel(sql_type = Nullable<Timestamptz>)]
    pub local_row_since: Option<DateTime<Utc>>,
    /// The time of the transaction, by the database's clock.
    #[diesel(sql_type = Timestamptz)]
    pub now: DateTime<Utc>,
}

impl Facts {
    /// The account to which the event's customer is linked. The `cus_…` counts before the `acct_…`.
    pub fn linked_account(&self) -> Option<Uuid> {
        self.account_of_customer.or(self.account_of_customer_account)
    }

    /// The account to which the event belongs: that of the subscription's row, else the customer's, else the named one.
    pub fn account(&self) -> Option<Uuid> {
        self.account_of_row.or(self.linked_account()).or(self.account_by_name)
    }
}

/// Looks up what is known of the events, in their order.
///
/// Scalar sub-queries, each of one index probe: joins over `unnest`, and `EXISTS`, flip into plans that hash whole tables.
/// `OFFSET 0` keeps the planner from computing the account once for each of its uses.
pub async fn load(conn: &Conn, events: &[Reference<'_>]) -> QueryResult<Vec<Facts>> {
    let ids: Vec<_> = events.iter().map(|event| event.event_id).collect();
    let subscriptions: Vec<_> = events.iter().map(|event| event.subscription_id).collect();
    let customers: Vec<_> = events.iter().map(|event| event.customer_id).collect();
    let customer_accounts: Vec<_> = events.iter().map(|event| event.customer_account_id).collect();
    let first_names: Vec<_> = events.iter().map(|event| event.first_name).collect();
    let second_names: Vec<_> = events.iter().map(|event| event.second_name).collect();
    let query = diesel::sql_query(
        "SELECT number, is_recorded, failed_since,
                account_of_row, account_of_customer, account_of_customer_account, account_by_name,
                (SELECT local_plan FROM accounts WHERE accounts.id = account) AS local_plan,
                COALESCE((SELECT has_new_links FROM accounts WHERE accounts.id = account), false) AS has_new_links,
                (SELECT created_at FROM subscriptions
                 WHERE account_id = account AND stripe_subscription_id IS NULL
                 ORDER BY created_at, subscriptions.id LIMIT 1) AS local_row_since,
                now() AS now
         FROM (SELECT *, COALESCE(account_of_row, account_of_customer, account_of_customer_account, account_by_name)
                         AS account
               FROM (SELECT number,
                            (SELECT true FROM stripe_events WHERE stripe_events.id = event.id) IS NOT NULL
                                AS is_recorded,
                            (SELECT failed_at FROM event_failures
                             WHERE event_id >= event.id AND event_id <= event.id
                             ORDER BY event_id, event_failures.id LIMIT 1) AS failed_since,
                            (SELECT account_id FROM subscriptions
                             WHERE stripe_subscription_id = event.subscription) AS account_of_row,
                            (SELECT account_id FROM customer_links
                             WHERE stripe_customer_id = event.customer) AS account_of_customer,
                            (SELECT account_id FROM customer_links
                             WHERE stripe_customer_id = event.customer_account) AS account_of_customer_account,
                            COALESCE((SELECT id FROM accounts WHERE accounts.id = event.first_name),
                                     (SELECT id FROM accounts WHERE accounts.id = event.second_name))
                                AS account_by_name
                     FROM unnest($1, $2, $3, $4, $5, $6) WITH ORDINALITY
                         AS event (id, subscription, customer, customer_account, first_name, second_name, number)
                     OFFSET 0) placed
               OFFSET 0) known
         ORDER BY number",
    )
    .bind::<Array<Text>, _>(ids)
    .bind::<Array<Nullable<Text>>, _>(subscriptions)
    .bind::<Array<Nullable<Text>>, _>(customers)
    .bind::<Array<Nullable<Text>>, _>(customer_accounts)
    .bind::<Array<Nullable<SqlUuid>>, _>(first_names)
    .bind::<Array<Nullable<SqlUuid>>, _>(second_names);
    Cached(query).load(&mut &*conn).await
}
