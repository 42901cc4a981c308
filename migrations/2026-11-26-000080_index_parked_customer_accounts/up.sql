-- Parked events carry an acct_… beside the cus_… of their customer, and linking either applies them.
CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_parked_customer_account_idx
    ON stripe_events ((payload #>> '{data,object,customer_account}'), created, id) WHERE outcome = 'parked';
