DROP INDEX CONCURRENTLY IF EXISTS stripe_events_type_idx;
