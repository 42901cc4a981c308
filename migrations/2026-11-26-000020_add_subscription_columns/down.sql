DROP VIEW subscription_items;

ALTER TABLE subscriptions
    DROP COLUMN ends_at,
    DROP COLUMN plan_source,
    DROP COLUMN stripe_created,
    DROP COLUMN cancellation_reason,
    DROP COLUMN cancellation_feedback,
    DROP COLUMN metadata,
    DROP COLUMN items,
    DROP COLUMN items_complete,
    DROP COLUMN livemode,
    DROP COLUMN connect_account,
    DROP COLUMN latest_invoice_created,
    DROP COLUMN latest_invoice_url,
    DROP COLUMN next_payment_attempt,
    DROP COLUMN projected_event_id;
