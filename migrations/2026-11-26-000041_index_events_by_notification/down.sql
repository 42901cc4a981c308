DROP INDEX IF EXISTS stripe_events_notification_id_key;
