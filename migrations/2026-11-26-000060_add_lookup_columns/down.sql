ALTER TABLE event_failures DROP COLUMN is_open;
ALTER TABLE stripe_events DROP COLUMN object_id;
