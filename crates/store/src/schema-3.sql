-- Version 3.

-- What the edge has issued for its own names: every one that a visitor may have seen.
CREATE TABLE edge_certificates (
    serial      BLOB PRIMARY KEY,
    name        TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    not_after   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX edge_certificates_by_name ON edge_certificates (name, not_after);

-- The directory of the certificates API says it itself.
DROP TABLE grace;
