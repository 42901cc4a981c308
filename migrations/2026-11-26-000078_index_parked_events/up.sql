CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_parked_idx
    ON stripe_events (created, id) WHERE outcome = 'parked';
