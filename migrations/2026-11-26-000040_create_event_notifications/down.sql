DROP TABLE event_notifications;
ALTER TABLE stripe_events DROP COLUMN notification_id;
