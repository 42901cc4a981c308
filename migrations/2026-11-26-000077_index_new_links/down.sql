DROP INDEX CONCURRENTLY IF EXISTS accounts_new_links_idx;
