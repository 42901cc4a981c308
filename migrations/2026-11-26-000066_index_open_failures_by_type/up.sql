CREATE INDEX CONCURRENTLY IF NOT EXISTS event_failures_open_type_idx
    ON event_failures (type, failed_at, event_id) WHERE is_open;
