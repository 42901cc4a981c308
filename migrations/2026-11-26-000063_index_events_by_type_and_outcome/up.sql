-- Replaces stripe_events_type_idx: finds a type with an outcome without reading the type's other events.
CREATE INDEX CONCURRENTLY IF NOT EXISTS stripe_events_type_outcome_idx
    ON stripe_events (type, outcome, received_at, id);
