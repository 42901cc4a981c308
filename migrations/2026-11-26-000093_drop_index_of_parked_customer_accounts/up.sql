-- Replaced by the index of the migration before.
DROP INDEX IF EXISTS stripe_events_parked_customer_account_idx;
