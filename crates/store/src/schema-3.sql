-- Version 3: what the edge issues for its own names.

-- As `certificates`: every one that a visitor may have been shown.
CREATE TABLE edge_certificates (
    serial      BLOB PRIMARY KEY,
    name        TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    not_after   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX edge_certificates_by_name ON edge_certificates (name, not_after);
