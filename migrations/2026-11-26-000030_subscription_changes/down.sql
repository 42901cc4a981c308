DROP TABLE change_push_accounts;
DROP TABLE change_push;
DROP VIEW committed_changes;
DROP VIEW settled_change_fences;
DROP TABLE subscription_changes;
DROP FUNCTION fence_changes;
DROP TABLE change_fences;
