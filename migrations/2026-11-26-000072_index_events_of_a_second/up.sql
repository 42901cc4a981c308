-- The events of one subscription and second: a tie reads these, and nothing else of the table.
CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_subscription_created_idx
    ON stripe_events (subscription_id, created) WHERE subscription_id IS NOT NULL;
