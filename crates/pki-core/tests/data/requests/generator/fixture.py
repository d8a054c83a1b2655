"""One file and what the gate must say about it."""

from dataclasses import dataclass

from .pkcs10 import HOST

ACCEPTED = "ok"


@dataclass(frozen=True)
class Fixture:
    file: str
    data: bytes
    expected: str
    note: str
    host: str = HOST
    others_disagree: str = ""
    """Why OpenSSL or pyca says something else than `check` expects; empty if they do not."""

    @property
    def is_accepted(self) -> bool:
        return self.expected == ACCEPTED

    @property
    def is_der(self) -> bool:
        return self.file.endswith(".der")


def accept(file: str, data: bytes, note: str, host: str = HOST, others_disagree: str = "") -> Fixture:
    return Fixture(f"accept-{file}", data, ACCEPTED, note, host, others_disagree)


def refuse(file: str, data: bytes, expected: str, note: str, host: str = HOST, others_disagree: str = "") -> Fixture:
    return Fixture(f"refuse-{file}", data, expected, note, host, others_disagree)
