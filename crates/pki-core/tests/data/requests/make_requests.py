#!/usr/bin/env python3
"""Writes the requests that judge the CSR gate, and `index.tsv`, which says what the gate must answer.

Run it here, with Python 3.11, OpenSSL 3 and pyca/cryptography 50:

    python3 -m venv /tmp/requests && /tmp/requests/bin/pip install cryptography==50.0.2
    /tmp/requests/bin/python make_requests.py

It replaces every `accept-*` and `refuse-*` file, then asks OpenSSL and pyca
about them: what must be accepted is verified by both, what is refused for its
key or its names alone is verified by OpenSSL, what is refused for its signature
by neither, and pyca does not read what is not DER. It ends with status 1 if one
of them says something else, unless the fixture gives the reason.

Keys come from fixed labels and signatures are deterministic, so a second run
writes the same octets. Only the four requests that `openssl req` signs with
ECDSA or PSS differ, and those that its version shapes.

`index.tsv` has the columns file, host (the DNS name handed to the gate),
expected and note. Expected is `ok` or the variant of `CsrError`, with those of
`PemError` as `Pem::NoBlock` and those of `KeyError` without a prefix; where
backends may differ, both stand there with a `|` between. It was
written from the specification, not from what the gate does.
"""

import sys
from pathlib import Path

sys.dont_write_bytecode = True

from generator import accepted, check, refused  # noqa: E402 -- after the line above
from generator.fixture import Fixture  # noqa: E402

HERE = Path(__file__).parent
LARGEST_TOTAL = 400 * 1024


def main() -> int:
    fixtures = sorted([*accepted.fixtures(), *refused.fixtures()], key=lambda fixture: fixture.file)
    files = [fixture.file for fixture in fixtures]
    assert len(files) == len(set(files)), "two fixtures have one name"
    octets = sum(len(fixture.data) for fixture in fixtures)
    assert octets <= LARGEST_TOTAL, "the fixtures take too much room"
    write(fixtures)
    findings = list(check.findings(fixtures, HERE))
    for finding in findings:
        print(f"make_requests: {finding}", file=sys.stderr)
    passing = sum(fixture.is_accepted for fixture in fixtures)
    print(f"{passing} to accept, {len(fixtures) - passing} to refuse, {octets} octets")
    return 1 if findings else 0


def write(fixtures: list[Fixture]) -> None:
    for pattern in ("accept-*.pem", "accept-*.der", "refuse-*.pem", "refuse-*.der"):
        for old in HERE.glob(pattern):
            old.unlink()
    rows = ["file\thost\texpected\tnote"]
    for fixture in fixtures:
        (HERE / fixture.file).write_bytes(fixture.data)
        rows.append(f"{fixture.file}\t{fixture.host}\t{fixture.expected}\t{fixture.note}")
    (HERE / "index.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
