DROP INDEX CONCURRENTLY IF EXISTS stripe_events_type_outcome_idx;
