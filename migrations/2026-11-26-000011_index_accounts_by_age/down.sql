DROP INDEX accounts_created_at_idx;
