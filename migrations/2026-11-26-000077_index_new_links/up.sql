CREATE INDEX CONCURRENTLY IF NOT EXISTS accounts_new_links_idx ON accounts (id) WHERE has_new_links;
