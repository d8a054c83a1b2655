"""CertificationRequests (RFC 2986) and the text around them (RFC 7468)."""

import base64
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace

from .der import (
    TRUE,
    bit_string,
    context,
    context_primitive,
    integer,
    octet_string,
    oid,
    sequence,
    set_as_given,
    set_of,
    utf8,
)
from .keys import EcKey, Key

HOST = "my-agent.adit.localhost"

COMMON_NAME = "2.5.4.3"
COUNTRY = "2.5.4.6"
ORGANIZATION = "2.5.4.10"
ORGANIZATIONAL_UNIT = "2.5.4.11"
SERIAL_NUMBER = "2.5.4.5"
EMAIL_ADDRESS = "1.2.840.113549.1.9.1"
DOMAIN_COMPONENT = "0.9.2342.19200300.100.1.25"

CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"
UNSTRUCTURED_NAME = "1.2.840.113549.1.9.2"
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
UNKNOWN_ATTRIBUTE = "1.3.6.1.4.1.55555.1"

SUBJECT_KEY_IDENTIFIER = "2.5.29.14"
KEY_USAGE = "2.5.29.15"
SUBJECT_ALT_NAME = "2.5.29.17"
BASIC_CONSTRAINTS = "2.5.29.19"
NAME_CONSTRAINTS = "2.5.29.30"
CERTIFICATE_POLICIES = "2.5.29.32"
EXTENDED_KEY_USAGE = "2.5.29.37"
TLS_FEATURE = "1.3.6.1.5.5.7.1.24"
UNKNOWN_EXTENSION = "1.3.6.1.4.1.55555.2"

SERVER_AUTH = "1.3.6.1.5.5.7.3.1"
CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
CODE_SIGNING = "1.3.6.1.5.5.7.3.3"


# Names.


def name_attribute(kind: str, value: bytes) -> bytes:
    return sequence(oid(kind), value)


def name(*values: tuple[str, bytes]) -> bytes:
    """A Name with one attribute in each RDN."""
    return sequence(*(set_of(name_attribute(kind, value)) for kind, value in values))


def common_name(value: bytes | str) -> tuple[str, bytes]:
    return COMMON_NAME, utf8(value) if isinstance(value, str) else value


def subject(value: bytes | str) -> bytes:
    """A Name that is one common name; text becomes a UTF8String."""
    return name(common_name(value))


EMPTY_NAME = sequence()


# Extensions and attributes.


def extension(kind: str, value: bytes, critical: bool = False) -> bytes:
    return sequence(oid(kind), TRUE if critical else b"", octet_string(value))


def dns(host: str | bytes) -> bytes:
    return context_primitive(2, host.encode() if isinstance(host, str) else host)


def subject_alt_name(*names: bytes, critical: bool = False) -> bytes:
    return extension(SUBJECT_ALT_NAME, sequence(*names), critical)


def dns_names(*hosts: str, critical: bool = False) -> bytes:
    return subject_alt_name(*map(dns, hosts), critical=critical)


def basic_constraints(*content: bytes, critical: bool = False) -> bytes:
    return extension(BASIC_CONSTRAINTS, sequence(*content), critical)


def extended_key_usage(*purposes: str, critical: bool = False) -> bytes:
    return extension(EXTENDED_KEY_USAGE, sequence(*map(oid, purposes)), critical)


def key_usage(octets: bytes, unused_bits: int, critical: bool = False) -> bytes:
    return extension(KEY_USAGE, bit_string(octets, unused_bits), critical)


def attribute(kind: str, *values: bytes) -> bytes:
    return sequence(oid(kind), set_as_given(*values))


def extension_request(*extensions: bytes) -> bytes:
    return attribute(EXTENSION_REQUEST, sequence(*extensions))


def unknown_attribute(octets: bytes) -> bytes:
    return attribute(UNKNOWN_ATTRIBUTE, octet_string(octets))


# The request.

VERSION_1 = integer(0)


@dataclass(frozen=True)
class Request:
    """What is signed, and how. A field that is None follows from the others."""

    key: Key = EcKey("p256")
    digest: str = "sha256"
    version: bytes = VERSION_1
    subject: bytes = subject(HOST)
    spki: bytes | None = None
    attributes: tuple[bytes, ...] = ()
    attribute_set: bytes | None = None
    """The whole of `attributes [0]`, sorted by default."""
    algorithm: bytes | None = None
    sign: Callable[[bytes], bytes] | None = None
    wrap: Callable[[bytes], bytes] = bit_string
    """Makes the last element of the signature's octets."""

    def info(self) -> bytes:
        """CertificationRequestInfo, the signed part."""
        attributes = self.attribute_set
        if attributes is None:
            attributes = context(0, *sorted(self.attributes))
        return sequence(self.version, self.subject, self.spki or self.key.spki, attributes)

    def signature(self) -> bytes:
        return self.sign(self.info()) if self.sign else self.key.sign(self.info(), self.digest)

    def der(self) -> bytes:
        return self.around(self.info(), self.signature())

    def pem(self) -> bytes:
        return pem(self.der())

    def around(self, info: bytes, signature: bytes) -> bytes:
        """A signed part and a signature that need not belong together."""
        algorithm = self.key.algorithm(self.digest) if self.algorithm is None else self.algorithm
        return sequence(info, algorithm, self.wrap(signature))

    def varied(self, wanted: Callable[[bytes], bool]) -> "Request":
        """Adds an attribute that differs until the signature is as wanted."""
        for attempt in range(100_000):
            request = replace(self, attributes=(*self.attributes, unknown_attribute(attempt.to_bytes(4))))
            try:
                if wanted(request.signature()):
                    return request
            except ValueError:
                continue
        raise AssertionError("no such signature")


def asking(*extensions: bytes, **fields: object) -> Request:
    """A request for some extensions."""
    return Request(attributes=(extension_request(*extensions),), **fields)


# PEM.

LABEL = "CERTIFICATE REQUEST"


def base64_text(der: bytes) -> str:
    return base64.b64encode(der).decode()


def lines(text: str, columns: int = 64) -> list[str]:
    return textwrap.wrap(text, columns)


def armour(body: list[str], label: str = LABEL, end: str | None = None, line_end: str = "\n") -> bytes:
    """BEGIN line, body and END line."""
    block = [f"-----BEGIN {label}-----", *body, f"-----END {label if end is None else end}-----"]
    return "".join(line + line_end for line in block).encode()


def pem(der: bytes, label: str = LABEL) -> bytes:
    return armour(lines(base64_text(der)), label)
