CREATE INDEX stripe_events_subscription_id_idx ON stripe_events (subscription_id) WHERE subscription_id IS NOT NULL;
CREATE INDEX stripe_events_parked_customer_idx ON stripe_events (customer_id) WHERE outcome = 'parked';
CREATE INDEX stripe_events_parked_subscription_idx ON stripe_events (subscription_id) WHERE outcome = 'parked';
