CREATE INDEX CONCURRENTLY IF NOT EXISTS subscriptions_local_idx
    ON subscriptions (account_id, created_at, id) WHERE stripe_subscription_id IS NULL;
