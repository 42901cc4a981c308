CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_parked_subscription_created_idx
    ON stripe_events (subscription_id, created, id) WHERE outcome = 'parked';
