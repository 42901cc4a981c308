-- One row for each transaction and subscription whose contract columns changed, written in that transaction.
-- No foreign keys: the history of a row outlives the row.
--
-- transaction_id is the first column because defaults are evaluated in the order of the columns: a transaction has its
-- id before it takes its first value of the identity column. change_fences relies on that.
CREATE TABLE subscription_changes (
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subscription_id uuid NOT NULL,
    account_id uuid NOT NULL,
    stripe_subscription_id text,
    event_id text,
    kinds text[] NOT NULL,
    before jsonb,
    after jsonb NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON COLUMN subscription_changes.before IS 'contract columns of the row before the change; null for a first row';

-- A subscription's changes in their order: changed_at never runs backwards within a subscription.
CREATE INDEX subscription_changes_subscription_id_idx ON subscription_changes (subscription_id, changed_at, id);
CREATE INDEX subscription_changes_account_id_idx ON subscription_changes (account_id, id);
CREATE INDEX subscription_changes_changed_at_idx ON subscription_changes (changed_at, id);

-- Identity values are not committed in their order, so a reader of the table by `id > last` can skip a row. Comparing
-- the transaction that wrote a row with those that still run is not enough: of two transactions the one that began
-- first may take the larger identity value and commit first.
--
-- A fence says: every identity value up to last_id was taken before transaction id F was assigned, F being the id of
-- the subtransaction that wrote the fence (its xmin). Whoever holds such a value has an id below F. So once no
-- transaction below F runs, no row up to last_id can still appear.
CREATE TABLE change_fences (
    last_id bigint NOT NULL,
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id()
);

COMMENT ON COLUMN change_fences.transaction_id IS 'the whole transaction; widens xmin, which is its subtransaction, to 64 bits';

CREATE INDEX change_fences_last_id_idx ON change_fences (last_id);

-- One fence for each statement that inserts changes, once all of its identity values are taken. The EXCEPTION clause
-- opens the subtransaction; last_value is read before the insertion gives it its id.
CREATE FUNCTION fence_changes() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    BEGIN
        INSERT INTO change_fences (last_id) SELECT last_value FROM subscription_changes_id_seq;
    EXCEPTION WHEN division_by_zero THEN
        RAISE;
    END;
    RETURN NULL;
END
$$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION fence_changes() SET search_path = %I, pg_temp', current_schema());
END
$$;
REVOKE EXECUTE ON FUNCTION fence_changes() FROM PUBLIC;

CREATE TRIGGER fence_changes AFTER INSERT ON subscription_changes
    FOR EACH STATEMENT EXECUTE FUNCTION fence_changes();

-- Fences that no running transaction is below. A visible fence that this cluster has not yet come to was restored from
-- a dump of another cluster, and nothing can precede it.
CREATE VIEW settled_change_fences AS
SELECT last_id
FROM (SELECT last_id, transaction_id,
             transaction_id::text::bigint
                 + ((xmin::text::bigint - transaction_id::text::bigint) & 4294967295) AS fence
      FROM change_fences) AS fences
WHERE fence < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
   OR (fence >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
       AND transaction_id IS DISTINCT FROM pg_current_xact_id_if_assigned());

CREATE VIEW committed_changes AS
SELECT id, subscription_id, account_id, stripe_subscription_id, event_id, kinds, before, after, changed_at
FROM subscription_changes
WHERE id <= (SELECT last_id FROM settled_change_fences ORDER BY last_id DESC LIMIT 1);

COMMENT ON VIEW committed_changes IS 'subscription_changes for readers by id: no row appears behind one that was read';

-- How far changes have been handed to the accounts' queues of the push. One row.
CREATE TABLE change_push (
    id boolean PRIMARY KEY DEFAULT true CONSTRAINT change_push_one_row_check CHECK (id),
    position bigint NOT NULL DEFAULT 0
);

COMMENT ON COLUMN change_push.position IS 'changes up to this id were pushed, or are queued in change_push_accounts';

INSERT INTO change_push DEFAULT VALUES;

-- The accounts with changes to push: those from next_change_id up to change_push.position.
CREATE TABLE change_push_accounts (
    account_id uuid PRIMARY KEY,
    next_change_id bigint NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    last_error text
);

COMMENT ON COLUMN change_push_accounts.attempts IS 'failed attempts at the next change so far';

CREATE INDEX change_push_accounts_next_attempt_at_idx ON change_push_accounts (next_attempt_at);
