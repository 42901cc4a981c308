DROP INDEX CONCURRENTLY IF EXISTS subscriptions_local_idx;
