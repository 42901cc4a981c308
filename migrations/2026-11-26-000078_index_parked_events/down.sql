DROP INDEX CONCURRENTLY IF EXISTS stripe_events_parked_idx;
