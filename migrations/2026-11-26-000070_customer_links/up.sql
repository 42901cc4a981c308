-- Bookkeeping of the delivery path. All defaults are constants, so no table is rewritten.
ALTER TABLE accounts ADD COLUMN has_new_links boolean NOT NULL DEFAULT false;
ALTER TABLE accounts ALTER COLUMN has_new_links SET DEFAULT true;
COMMENT ON COLUMN accounts.has_new_links IS
    'whether parked events have yet to be looked for since the account was made or a customer was linked to it';

ALTER TABLE subscriptions
    ADD COLUMN placed_by_metadata boolean NOT NULL DEFAULT false,
    ADD COLUMN took_local_row boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN subscriptions.placed_by_metadata IS
    'placed by the account id in its metadata alone; it moves when its customer is linked to another account';
COMMENT ON COLUMN subscriptions.took_local_row IS 'whether the subscription has taken over a local row; it takes at most one';

-- Every link of a customer to an account, whether it stands in accounts or in account_customers. The primary key is what
-- refuses a second account for a customer.
CREATE TABLE customer_links (
    stripe_customer_id text PRIMARY KEY,
    account_id uuid NOT NULL REFERENCES accounts ON DELETE CASCADE
);
COMMENT ON TABLE customer_links IS 'kept by triggers on accounts and account_customers; do not write to it';

CREATE INDEX customer_links_account_id_idx ON customer_links (account_id);

CREATE FUNCTION subledger_add_customer_link(customer text, account uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO customer_links AS link (stripe_customer_id, account_id) VALUES (customer, account)
        ON CONFLICT (stripe_customer_id) DO UPDATE SET account_id = EXCLUDED.account_id
        WHERE link.account_id = EXCLUDED.account_id;
    IF NOT FOUND THEN
        RAISE unique_violation USING
            MESSAGE = format('customer %s is linked to another account', customer),
            CONSTRAINT = 'customer_links_pkey', TABLE = 'customer_links';
    END IF;
END
$$;

-- Removes the link unless it also stands in the other of the two tables.
CREATE FUNCTION subledger_remove_customer_link(customer text, account uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM customer_links
    WHERE stripe_customer_id = customer AND account_id = account
      AND NOT EXISTS (SELECT FROM accounts WHERE accounts.stripe_customer_id = customer AND id = account)
      AND NOT EXISTS (SELECT FROM account_customers further
                      WHERE further.stripe_customer_id = customer AND further.account_id = account);
END
$$;

CREATE FUNCTION subledger_flag_new_links() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.stripe_customer_id IS NOT NULL AND NEW.stripe_customer_id IS DISTINCT FROM OLD.stripe_customer_id THEN
        NEW.has_new_links := true;
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER subledger_flag_new_links BEFORE UPDATE OF stripe_customer_id ON accounts
    FOR EACH ROW EXECUTE FUNCTION subledger_flag_new_links();

CREATE FUNCTION subledger_link_of_account() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.stripe_customer_id IS NOT DISTINCT FROM OLD.stripe_customer_id THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.stripe_customer_id IS NOT NULL THEN
        PERFORM subledger_remove_customer_link(OLD.stripe_customer_id, OLD.id);
    END IF;
    IF NEW.stripe_customer_id IS NOT NULL THEN
        PERFORM subledger_add_customer_link(NEW.stripe_customer_id, NEW.id);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER subledger_link_of_account AFTER INSERT OR UPDATE OF stripe_customer_id ON accounts
    FOR EACH ROW EXECUTE FUNCTION subledger_link_of_account();

CREATE FUNCTION subledger_link_of_further_customer() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM subledger_remove_customer_link(OLD.stripe_customer_id, OLD.account_id);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM subledger_add_customer_link(NEW.stripe_customer_id, NEW.account_id);
        UPDATE accounts SET has_new_links = true WHERE id = NEW.account_id;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER subledger_link_of_further_customer AFTER INSERT OR UPDATE OR DELETE ON account_customers
    FOR EACH ROW EXECUTE FUNCTION subledger_link_of_further_customer();

-- A function with its owner's rights must find its own tables: nobody's temporary table of the same name. Nobody but the
-- owner and triggers runs these.
DO $$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = quote_ident(current_schema())::regnamespace AND proname IN
            ('subledger_add_customer_link', 'subledger_remove_customer_link', 'subledger_flag_new_links',
             'subledger_link_of_account', 'subledger_link_of_further_customer')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', function, current_schema());
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', function);
    END LOOP;
END
$$;
