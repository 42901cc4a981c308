-- The application's accounts. `stripe_customer_id` is the customer they were linked to first (or last by hand);
-- further ones are rows of account_customers.
CREATE TABLE accounts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL DEFAULT '',
    stripe_customer_id text UNIQUE,
    local_plan text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON COLUMN accounts.local_plan IS
    'plan of the local subscription that a Stripe subscription took over; names the plan where a price does not';

CREATE TABLE account_customers (
    stripe_customer_id text PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX account_customers_account_id_idx ON account_customers (account_id);

-- One row per Stripe subscription; stripe_subscription_id is null for a local one that the application gave.
CREATE TABLE subscriptions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    account_id uuid NOT NULL REFERENCES accounts,
    plan text,
    status text NOT NULL,
    stripe_subscription_id text UNIQUE,
    stripe_customer_id text,
    stripe_price_id text,
    seat_limit integer,
    current_period_start timestamptz,
    current_period_end timestamptz,
    cancel_at_period_end boolean NOT NULL DEFAULT false,
    cancel_at timestamptz,
    canceled_at timestamptz,
    ended_at timestamptz,
    trial_end timestamptz,
    paused_collection boolean NOT NULL DEFAULT false,
    latest_invoice_id text,
    latest_invoice_status text,
    latest_invoice_event_created timestamptz,
    last_event_id text,
    last_event_type text,
    last_event_created timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON COLUMN subscriptions.last_event_created IS
    'Stripe''s time of the event whose state the row shows; with last_event_type it decides which state is newer';
COMMENT ON COLUMN subscriptions.latest_invoice_event_created IS
    'Stripe''s time of the event that set latest_invoice_id and latest_invoice_status';

CREATE INDEX subscriptions_account_id_idx ON subscriptions (account_id);

-- The idempotency rows: the primary key is what makes a second delivery a duplicate.
CREATE TABLE stripe_events (
    id text PRIMARY KEY,
    type text NOT NULL,
    outcome text NOT NULL
        CONSTRAINT stripe_events_outcome_check CHECK (outcome IN ('applied', 'stale', 'ignored', 'parked')),
    api_version text,
    livemode boolean NOT NULL,
    connect_account text,
    created timestamptz,
    received_at timestamptz NOT NULL DEFAULT now(),
    customer_id text,
    subscription_id text,
    account_id uuid,
    payload jsonb NOT NULL
);

CREATE INDEX stripe_events_received_at_idx ON stripe_events (received_at, id);
CREATE INDEX stripe_events_type_idx ON stripe_events (type, received_at, id);
CREATE INDEX stripe_events_subscription_id_idx ON stripe_events (subscription_id) WHERE subscription_id IS NOT NULL;
CREATE INDEX stripe_events_customer_id_idx ON stripe_events (customer_id) WHERE customer_id IS NOT NULL;
CREATE INDEX stripe_events_account_id_idx ON stripe_events (account_id) WHERE account_id IS NOT NULL;

-- Parked events are few; these answer "is anything waiting for this customer, subscription or account?".
CREATE INDEX stripe_events_parked_customer_idx ON stripe_events (customer_id) WHERE outcome = 'parked';
CREATE INDEX stripe_events_parked_subscription_idx ON stripe_events (subscription_id) WHERE outcome = 'parked';
CREATE INDEX stripe_events_parked_reference_idx
    ON stripe_events (left(lower(payload #>> '{data,object,client_reference_id}'), 36)) WHERE outcome = 'parked';
CREATE INDEX stripe_events_parked_metadata_idx
    ON stripe_events (left(lower(payload #>> '{data,object,metadata,account_id}'), 36)) WHERE outcome = 'parked';

-- Every failed attempt, written after the rollback of what it tried. No foreign key: the event has no row then.
CREATE TABLE event_failures (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id text NOT NULL,
    type text NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT now(),
    error text NOT NULL,
    api_version text,
    livemode boolean NOT NULL DEFAULT false,
    connect_account text,
    created timestamptz,
    customer_id text,
    subscription_id text,
    payload jsonb
);

CREATE INDEX event_failures_event_id_idx ON event_failures (event_id, id);
CREATE INDEX event_failures_failed_at_idx ON event_failures (failed_at, event_id);
CREATE INDEX event_failures_customer_id_idx ON event_failures (customer_id) WHERE customer_id IS NOT NULL;
CREATE INDEX event_failures_subscription_id_idx ON event_failures (subscription_id) WHERE subscription_id IS NOT NULL;
