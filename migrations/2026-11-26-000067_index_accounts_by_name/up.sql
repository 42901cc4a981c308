-- Finds accounts by the beginning of their name, in any case.
CREATE INDEX CONCURRENTLY IF NOT EXISTS accounts_name_idx ON accounts (lower(name) text_pattern_ops);
