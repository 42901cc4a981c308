-- The settings of account_entitlements: one row, written by the server at start.
CREATE TABLE entitlement_settings (
    is_only boolean PRIMARY KEY DEFAULT true CONSTRAINT entitlement_settings_is_only_check CHECK (is_only),
    entitled_statuses text[] NOT NULL DEFAULT '{active,trialing,past_due}',
    ignore_unlisted_prices boolean NOT NULL DEFAULT false,
    overdue_after interval NOT NULL DEFAULT '48 hours',
    written_at timestamptz
);

COMMENT ON TABLE entitlement_settings IS
    'ENTITLED_STATUSES, UNLISTED_PRICES and OVERDUE_AFTER of the server that started last; written_at is null before the first start';

INSERT INTO entitlement_settings DEFAULT VALUES;

-- Stripe's entitlements: the features of a customer's active subscriptions.
CREATE TABLE customer_features (
    stripe_customer_id text NOT NULL,
    lookup_key text NOT NULL,
    feature_id text,
    PRIMARY KEY (stripe_customer_id, lookup_key)
);

-- The event whose features a customer has, also if there are none.
CREATE TABLE customer_feature_states (
    stripe_customer_id text PRIMARY KEY,
    last_event_id text NOT NULL,
    last_event_created timestamptz NOT NULL
);

CREATE VIEW account_features AS
SELECT accounts.id AS account_id, customer_features.lookup_key
FROM accounts
JOIN customer_features ON customer_features.stripe_customer_id = accounts.stripe_customer_id
UNION
SELECT account_customers.account_id, customer_features.lookup_key
FROM account_customers
JOIN customer_features ON customer_features.stripe_customer_id = account_customers.stripe_customer_id;

-- The rule of entitlement, for everyone who asks. One row for each account: the subscription that entitles it best,
-- else the one that changed last, for the reason.
--
-- DISTINCT ON, and the accounts without a subscription by themselves: so all accounts cost one scan and one sort, and a
-- condition on account_id (one account, or a list of them) reaches the index on subscriptions.account_id.
CREATE VIEW account_entitlements AS
SELECT account_id,
       entitles AS entitled,
       name || ' is ' || status || CASE
           WHEN entitles OR NOT has_entitled_status THEN ''
           WHEN is_local THEN ', but ended at ' || to_char(period_end AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
           ELSE ', but none of its prices is in PRICE_PLANS'
       END AS reason,
       CASE WHEN entitles THEN plan END AS plan,
       CASE WHEN entitles THEN plan_source END AS plan_source,
       CASE WHEN entitles THEN seat_limit END AS seat_limit,
       CASE WHEN entitles THEN until END AS until,
       entitles AND is_overdue AS overdue,
       CASE WHEN entitles THEN id END AS subscription_id,
       CASE WHEN entitles THEN last_event_id END AS since_event
FROM (
    SELECT DISTINCT ON (subscriptions.account_id)
           subscriptions.account_id, id, status, plan, seat_limit, last_event_id,
           is_local, name, source.plan_source, has_entitled_status, period_end, until, is_overdue, entitles
    FROM subscriptions
    -- LIMIT tells the planner that it is one row, also before the table is analysed.
    CROSS JOIN (SELECT * FROM entitlement_settings LIMIT 1) AS settings
    CROSS JOIN LATERAL (
        SELECT stripe_subscription_id IS NULL AS is_local,
               COALESCE('subscription ' || stripe_subscription_id, 'a local subscription') AS name,
               CASE WHEN stripe_subscription_id IS NULL THEN 'local' ELSE subscriptions.plan_source END AS plan_source,
               status = ANY (entitled_statuses) AS has_entitled_status,
               CASE WHEN stripe_subscription_id IS NULL THEN GREATEST(trial_end, current_period_end)
                    ELSE COALESCE(current_period_end, trial_end) END AS period_end
    ) AS source
    CROSS JOIN LATERAL (
        SELECT has_entitled_status AND CASE
                   WHEN is_local THEN COALESCE(period_end > now(), true)
                   ELSE NOT ignore_unlisted_prices OR NOT items_complete
                        OR COALESCE(source.plan_source IN ('price_plans', 'unknown'), false)
               END AS entitles,
               LEAST(ends_at, period_end) AS until,
               NOT is_local AND status NOT IN ('canceled', 'incomplete_expired', 'paused')
                   AND COALESCE(period_end < now() - overdue_after
                                OR status = 'trialing' AND trial_end < now() - overdue_after, false) AS is_overdue
    ) AS rule
    ORDER BY subscriptions.account_id,
             entitles DESC,
             CASE WHEN entitles THEN source.plan_source IS DISTINCT FROM 'price_plans' END,
             CASE WHEN entitles THEN array_position(entitled_statuses, status) END,
             CASE WHEN entitles THEN until END DESC NULLS FIRST,
             CASE WHEN NOT entitles THEN last_event_created END DESC NULLS LAST,
             CASE WHEN NOT entitles THEN created_at END DESC,
             id
) AS shown
UNION ALL
SELECT id, false, 'the account has no subscription', NULL, NULL, NULL, NULL, false, NULL, NULL
FROM accounts
WHERE NOT EXISTS (SELECT FROM subscriptions WHERE account_id = accounts.id);
