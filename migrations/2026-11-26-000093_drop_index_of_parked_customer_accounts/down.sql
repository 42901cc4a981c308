CREATE INDEX IF NOT EXISTS stripe_events_parked_customer_account_idx
    ON stripe_events ((payload #>> '{data,object,customer_account}'), created, id) WHERE outcome = 'parked';
