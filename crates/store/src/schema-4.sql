-- Version 4.

-- Every certificate that somebody may hold: those of tunnels, also of such that are gone, with
-- `tunnel`, and those of hosts that the edge answers for, with `host`. What was not written down
-- before is NULL, and 0 as `issued_at`.
CREATE TABLE issued (
    fingerprint  BLOB PRIMARY KEY,
    serial       BLOB NOT NULL,
    tunnel       BLOB,
    name         TEXT,
    organization TEXT,
    host         TEXT,
    issuer       TEXT NOT NULL CHECK (issuer IN ('private')),
    profile      TEXT,
    key          BLOB,
    requested_by BLOB,
    not_before   INTEGER,
    not_after    INTEGER NOT NULL,
    issued_at    INTEGER NOT NULL,
    CHECK ((tunnel IS NULL) = (name IS NULL) AND (tunnel IS NULL) <> (host IS NULL))
) STRICT, WITHOUT ROWID;

-- So far all tunnels of a database were of one organization.
INSERT OR IGNORE INTO issued (fingerprint, serial, tunnel, name, organization, issuer, not_after, issued_at)
    SELECT fingerprint, serial, tunnel, name, (SELECT min(organization) FROM api_keys), 'private', expires_at, issued_at
    FROM certificates;
INSERT OR IGNORE INTO issued (fingerprint, serial, host, issuer, not_after, issued_at)
    SELECT fingerprint, serial, name, 'private', not_after, 0 FROM edge_certificates;

DROP TABLE certificates;
DROP TABLE edge_certificates;
ALTER TABLE issued RENAME TO certificates;

CREATE INDEX certificates_in_order ON certificates (issued_at, fingerprint);
CREATE INDEX certificates_by_tunnel ON certificates (tunnel, issued_at, fingerprint) WHERE tunnel IS NOT NULL;
CREATE INDEX certificates_by_name ON certificates (name, issued_at, fingerprint) WHERE name IS NOT NULL;
CREATE INDEX certificates_by_host ON certificates (host, issued_at, fingerprint) WHERE host IS NOT NULL;
CREATE INDEX certificates_by_serial ON certificates (serial);
CREATE INDEX certificates_by_end ON certificates (not_after);
CREATE INDEX tunnels_by_certificate_end ON tunnels (cert_expires_at) WHERE cert_expires_at IS NOT NULL;
