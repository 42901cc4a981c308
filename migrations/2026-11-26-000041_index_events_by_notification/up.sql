CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_notification_id_key ON stripe_events (notification_id)
    WHERE notification_id IS NOT NULL;
