-- Everything about a subscription: its items, its end, its invoices, and where its plan's name comes from.
--
-- One ALTER TABLE, because the generated column makes PostgreSQL rewrite the table once, under an exclusive lock: 0.4 s
-- for 100,000 subscriptions, 4 s for a million. Every other column alone would cost nothing. A trigger instead of the
-- generated column would save the rewrite and cost every later write.
--
-- The defaults here are those of the rows that exist: unknown until the server has filled them (see
-- src/service/backfill.rs).
ALTER TABLE subscriptions
    ADD COLUMN plan_source text DEFAULT 'unknown',
    ADD COLUMN stripe_created timestamptz,
    ADD COLUMN ends_at timestamptz GENERATED ALWAYS AS
        (COALESCE(ended_at, cancel_at, CASE WHEN cancel_at_period_end THEN current_period_end END)) STORED,
    ADD COLUMN cancellation_reason text,
    ADD COLUMN cancellation_feedback text,
    ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN items jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN items_complete boolean NOT NULL DEFAULT false,
    ADD COLUMN livemode boolean,
    ADD COLUMN connect_account text,
    ADD COLUMN latest_invoice_created timestamptz,
    ADD COLUMN latest_invoice_url text,
    ADD COLUMN next_payment_attempt timestamptz,
    ADD COLUMN projected_event_id text;

-- The defaults of rows that are inserted from now on.
ALTER TABLE subscriptions
    ALTER COLUMN plan_source DROP DEFAULT,
    ALTER COLUMN items_complete SET DEFAULT true;

-- A local row has no items that could be missing, and no price that names its plan.
UPDATE subscriptions SET plan_source = NULL, items_complete = true WHERE stripe_subscription_id IS NULL;

COMMENT ON COLUMN subscriptions.plan_source IS
    'why the plan has its name: price_plans, lookup_key, local, price_id, or unknown for a row of before an upgrade';
COMMENT ON COLUMN subscriptions.ends_at IS
    'when the subscription ended or will end, as far as that is known';
COMMENT ON COLUMN subscriptions.items_complete IS
    'false if Stripe did not list all items and there was no key to read the others';
COMMENT ON COLUMN subscriptions.latest_invoice_url IS
    'the invoice''s hosted page, where it can be paid';
COMMENT ON COLUMN subscriptions.projected_event_id IS
    'last_event_id at the time when plan_source, items and the like were written; differs from last_event_id if a server of an earlier version has written the row since';

CREATE VIEW subscription_items AS
SELECT subscriptions.id AS subscription_id,
       subscriptions.account_id,
       item ->> 'stripe_item_id' AS stripe_item_id,
       item ->> 'stripe_price_id' AS stripe_price_id,
       item ->> 'stripe_product_id' AS stripe_product_id,
       item ->> 'lookup_key' AS lookup_key,
       item ->> 'plan' AS plan,
       (item ->> 'quantity')::integer AS quantity,
       item ->> 'usage_type' AS usage_type,
       (item ->> 'unit_amount')::bigint AS unit_amount,
       item ->> 'currency' AS currency,
       item ->> 'interval' AS interval,
       (item ->> 'interval_count')::integer AS interval_count,
       (item ->> 'current_period_start')::timestamptz AS current_period_start,
       (item ->> 'current_period_end')::timestamptz AS current_period_end
FROM subscriptions
CROSS JOIN LATERAL jsonb_array_elements(subscriptions.items) AS item;
