-- One row: how far `serve` has read Stripe's event list by itself, and the result of its last pass. Replicas take turns
-- by the lease, which ends by itself if its holder dies.
CREATE TABLE reconcile_state (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    holder uuid,
    leased_until timestamptz,
    read_until timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    succeeded_at timestamptz,
    events_read bigint NOT NULL DEFAULT 0,
    events_missing bigint NOT NULL DEFAULT 0,
    events_failed bigint NOT NULL DEFAULT 0,
    subscriptions_differing bigint NOT NULL DEFAULT 0,
    error text
);

COMMENT ON COLUMN reconcile_state.read_until IS 'every event that Stripe made before this time has been read';
COMMENT ON COLUMN reconcile_state.events_missing IS 'events of the last pass that no delivery had brought';

INSERT INTO reconcile_state DEFAULT VALUES;
