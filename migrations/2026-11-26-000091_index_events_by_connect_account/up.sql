-- Which connected accounts have sent events: the reconciler of `serve` looks for the next account by each one.
CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_connect_account_idx
    ON stripe_events (connect_account) WHERE connect_account IS NOT NULL;
