-- The links of before the triggers. Where a customer stands in accounts and, with another account, in
-- account_customers, the one in accounts counts, as it always did.
INSERT INTO customer_links (stripe_customer_id, account_id)
SELECT stripe_customer_id, id FROM accounts WHERE stripe_customer_id IS NOT NULL
ON CONFLICT DO NOTHING;

INSERT INTO customer_links (stripe_customer_id, account_id)
SELECT stripe_customer_id, account_id FROM account_customers
ON CONFLICT DO NOTHING;

-- A subscription whose customer is linked nowhere can only have been placed by its metadata.
UPDATE subscriptions SET placed_by_metadata = true
WHERE stripe_subscription_id IS NOT NULL AND stripe_customer_id IS NOT NULL
  AND NOT EXISTS (SELECT FROM customer_links link WHERE link.stripe_customer_id = subscriptions.stripe_customer_id);

-- A local row that was taken over kept its created_at, which made it the account's oldest row as a rule.
UPDATE subscriptions SET took_local_row = true
FROM accounts
WHERE accounts.id = subscriptions.account_id AND accounts.local_plan IS NOT NULL
  AND subscriptions.id = (SELECT oldest.id FROM subscriptions oldest
                          WHERE oldest.account_id = accounts.id AND oldest.stripe_subscription_id IS NOT NULL
                          ORDER BY oldest.created_at, oldest.id LIMIT 1);
