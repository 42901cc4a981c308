CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_type_idx ON stripe_events (type, received_at, id);
