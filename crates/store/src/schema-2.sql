-- Version 2: what the certificates API keeps beside its directory.

CREATE TABLE client_certificates (
    serial    TEXT PRIMARY KEY,
    key       BLOB NOT NULL,
    not_after INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row, or none when no certificate of the admin was just superseded.
CREATE TABLE grace (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    serials   TEXT NOT NULL,
    successor TEXT NOT NULL,
    until     INTEGER NOT NULL
) STRICT;
