CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_parked_customer_created_idx
    ON stripe_events (customer_id, created, id) WHERE outcome = 'parked';
