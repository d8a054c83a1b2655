-- Version 4.

-- Every certificate that somebody may hold: those of tunnels, also of such that are gone, with
-- `tunnel`, and those of hosts that the edge answers for, with `host`. What was not written down
-- before is NULL, and 0 as `issued_at`. In the order in which they come, so that a signing writes at the end.
CREATE TABLE issued (
    issued_at    INTEGER NOT NULL,
    fingerprint  BLOB NOT NULL,
    serial       BLOB NOT NULL,
    tunnel       BLOB,
    name         TEXT,
    organization TEXT,
    host         TEXT,
    issuer       TEXT NOT NULL CHECK (issuer IN ('private', 'acme')),
    profile      TEXT,
    key          BLOB,
    requested_by BLOB,
    not_before   INTEGER,
    not_after    INTEGER NOT NULL,
    revoked_at   INTEGER,
    CHECK ((tunnel IS NULL) = (name IS NULL) AND (tunnel IS NULL) <> (host IS NULL))
) STRICT;

-- So far all tunnels of a database were of one organization.
INSERT INTO issued (fingerprint, serial, tunnel, name, organization, issuer, not_after, issued_at)
    SELECT fingerprint, serial, tunnel, name, (SELECT min(organization) FROM api_keys), 'private', expires_at, issued_at
    FROM certificates;
INSERT INTO issued (fingerprint, serial, host, issuer, not_after, issued_at)
    SELECT fingerprint, serial, name, 'private', not_after, 0 FROM edge_certificates;

DROP TABLE certificates;
DROP TABLE edge_certificates;
ALTER TABLE issued RENAME TO certificates;

-- With short entries, since each signing writes to all of them.
CREATE INDEX certificates_in_order ON certificates (issued_at, fingerprint);
CREATE UNIQUE INDEX certificates_by_fingerprint ON certificates (fingerprint);
CREATE INDEX certificates_by_tunnel ON certificates (tunnel) WHERE tunnel IS NOT NULL;
CREATE INDEX certificates_by_name ON certificates (name) WHERE name IS NOT NULL;
CREATE INDEX certificates_by_host ON certificates (host) WHERE host IS NOT NULL;
CREATE INDEX certificates_by_serial ON certificates (serial);
CREATE INDEX certificates_by_end ON certificates (not_after);

-- When the issuer wants the certificate to be renewed.
ALTER TABLE tunnels ADD COLUMN cert_renew_at INTEGER;

-- What was ordered of a public authority, with what came of it. Of one holder the latest counts.
CREATE TABLE orders (
    id           BLOB PRIMARY KEY,
    tunnel       BLOB,
    name         TEXT,
    organization TEXT,
    host         TEXT,
    directory    TEXT NOT NULL,
    names        TEXT NOT NULL,
    csr          BLOB NOT NULL,
    key          BLOB NOT NULL,
    requested_by BLOB,
    profile      TEXT,
    ask          TEXT NOT NULL CHECK (ask IN ('new', 'renewal', 'renewal_in_window')),
    replaces     TEXT,
    url          TEXT,
    begun_at     INTEGER NOT NULL,
    failures     INTEGER NOT NULL,
    failing_since INTEGER,
    state        TEXT NOT NULL CHECK (state IN ('pending', 'issued', 'failed')),
    ended_at     INTEGER,
    fingerprint  BLOB,
    chain        TEXT,
    renew_at     INTEGER,
    is_told      INTEGER NOT NULL,
    ask_again_at INTEGER,
    cause        TEXT,
    words        TEXT,
    not_before   INTEGER,
    CHECK ((tunnel IS NULL) = (name IS NULL) AND (tunnel IS NULL) <> (host IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX orders_by_tunnel ON orders (tunnel, begun_at) WHERE tunnel IS NOT NULL;
CREATE INDEX orders_by_host ON orders (host, begun_at) WHERE host IS NOT NULL;
CREATE INDEX orders_by_beginning ON orders (begun_at);
CREATE INDEX orders_by_state ON orders (state);
