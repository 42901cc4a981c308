-- Sessions of admins who logged in to /admin. All replicas read this table, and logout deletes the row.
CREATE TABLE admin_sessions (
    id_hash bytea PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);

COMMENT ON COLUMN admin_sessions.id_hash IS
    'HMAC-SHA256 of the admin token, keyed with the session''s random id: neither can be found from it, and a new token ends all sessions';
