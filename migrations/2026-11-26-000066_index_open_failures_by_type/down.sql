DROP INDEX CONCURRENTLY IF EXISTS event_failures_open_type_idx;
