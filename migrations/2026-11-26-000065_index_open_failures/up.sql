CREATE INDEX CONCURRENTLY IF NOT EXISTS event_failures_open_idx ON event_failures (failed_at, event_id) WHERE is_open;
