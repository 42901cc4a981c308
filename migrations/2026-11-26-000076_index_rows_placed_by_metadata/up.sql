CREATE INDEX CONCURRENTLY IF NOT EXISTS subscriptions_placed_by_metadata_idx
    ON subscriptions (stripe_customer_id) WHERE placed_by_metadata;
