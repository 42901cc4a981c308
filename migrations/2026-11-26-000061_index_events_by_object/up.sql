-- Subscriptions' own events are found by subscription_id, so they do not pay for this index.
CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_object_id_idx ON stripe_events (object_id, received_at, id)
    WHERE object_id <> '' AND type NOT LIKE 'customer.subscription.%';
