-- How far `serve` has read the event list of each connected account by itself.
CREATE TABLE reconcile_accounts (
    connect_account text PRIMARY KEY,
    read_until timestamptz,
    attempted_at timestamptz NOT NULL,
    error text
);

COMMENT ON COLUMN reconcile_accounts.read_until IS 'every event that Stripe made before this time has been read';
COMMENT ON COLUMN reconcile_accounts.error IS 'why Stripe refused the last attempt';
