-- The thin notifications of each event. One event may have any number: one for each destination and each finer type.
ALTER TABLE stripe_events ADD COLUMN notification_id text;

COMMENT ON COLUMN stripe_events.notification_id IS
    'the first thin notification of the event; event_notifications has all of them';

CREATE TABLE event_notifications (
    notification_id text PRIMARY KEY,
    event_id text NOT NULL REFERENCES stripe_events ON DELETE CASCADE
);

CREATE INDEX event_notifications_event_id_idx ON event_notifications (event_id);
