-- Their columns lead the indexes that replace them.
DROP INDEX IF EXISTS stripe_events_subscription_id_idx, stripe_events_parked_customer_idx, stripe_events_parked_subscription_idx;
