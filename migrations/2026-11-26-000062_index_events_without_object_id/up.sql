-- The rows that the background job still has to fill. New events are never in it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_without_object_id_idx ON stripe_events (id)
    WHERE object_id IS NULL AND type NOT LIKE 'customer.subscription.%';
