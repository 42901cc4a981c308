DROP INDEX CONCURRENTLY IF EXISTS stripe_events_object_id_idx;
