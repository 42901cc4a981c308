-- As the index before, also if the acct_… is an expanded object.
CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_parked_expanded_customer_account_idx
    ON stripe_events (
        COALESCE(payload #>> '{data,object,customer_account,id}', payload #>> '{data,object,customer_account}'),
        created, id
    ) WHERE outcome = 'parked';
