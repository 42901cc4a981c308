-- The list of accounts, newest first, is read in the order of this index and stops at the end of the page.
CREATE INDEX accounts_created_at_idx ON accounts (created_at, id);
