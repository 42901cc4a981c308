-- Columns without a rewrite of the tables: both statements take their lock only for a moment. A background job of
-- `serve` fills existing rows in batches.
ALTER TABLE stripe_events ADD COLUMN object_id text;
ALTER TABLE event_failures ADD COLUMN is_open boolean NOT NULL DEFAULT true;

COMMENT ON COLUMN stripe_events.object_id IS
    'id of the event''s object; empty if it has none; null for subscriptions'' own events, which subscription_id finds, and until a background job has filled it';
COMMENT ON COLUMN event_failures.is_open IS
    'false: not the first failure of its event, or the event was recorded. true is only a hint: readers check it';
