-- Version 1. Times are microseconds since the Unix epoch, identifiers are the
-- 16 octets of their UUID. Every look-up of `Store` has its index here.

CREATE TABLE tunnels (
    id                 BLOB PRIMARY KEY,
    organization       TEXT NOT NULL,
    name               TEXT NOT NULL UNIQUE,
    identity           BLOB UNIQUE,
    tls_mode           TEXT NOT NULL CHECK (tls_mode IN ('edge', 'passthrough')),
    status             TEXT NOT NULL CHECK (status IN ('awaiting_cert', 'active', 'delete_pending')),
    description        TEXT,
    metadata           TEXT NOT NULL,
    cert_pem           TEXT,
    cert_fingerprint   BLOB,
    cert_serial        BLOB,
    cert_expires_at    INTEGER,
    secret_hash        BLOB,
    last_connected_at  INTEGER,
    last_connected_ip  TEXT,
    last_disconnected_at INTEGER,
    restore_deadline   INTEGER,
    created_at         INTEGER NOT NULL,
    updated_at         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tunnels_by_organization ON tunnels (organization, created_at, id);
CREATE INDEX tunnels_by_deadline ON tunnels (restore_deadline) WHERE restore_deadline IS NOT NULL;

CREATE TABLE identities (
    id           BLOB PRIMARY KEY,
    organization TEXT NOT NULL,
    handle       TEXT NOT NULL UNIQUE,
    display_name TEXT,
    description  TEXT,
    tunnel       BLOB NOT NULL UNIQUE,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX identities_by_organization ON identities (organization, created_at, id);

CREATE TABLE api_keys (
    id           BLOB PRIMARY KEY,
    organization TEXT NOT NULL,
    identity     BLOB,
    label        TEXT NOT NULL,
    description  TEXT,
    hash         BLOB NOT NULL,
    last4        TEXT NOT NULL,
    created_by   BLOB,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    last_used_at INTEGER,
    revoked_at   INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX api_keys_by_organization ON api_keys (organization, created_at, id);
CREATE INDEX api_keys_by_identity ON api_keys (identity) WHERE identity IS NOT NULL;

-- What quotas count: successes, by subject (`create:` and an organization, or
-- `sign:` and a tunnel).
CREATE TABLE uses (
    subject TEXT NOT NULL,
    at      INTEGER NOT NULL
) STRICT;

CREATE INDEX uses_by_subject ON uses (subject, at);

-- Every certificate that may have been handed out, also of tunnels that are gone.
CREATE TABLE certificates (
    serial      BLOB PRIMARY KEY,
    tunnel      BLOB NOT NULL,
    name        TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    expires_at  INTEGER NOT NULL,
    issued_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
