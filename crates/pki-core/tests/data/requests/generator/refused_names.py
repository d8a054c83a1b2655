"""Requests with a sound key and signature that ask for the wrong name or in the wrong way."""

from collections.abc import Iterator

from .der import (
    NULL,
    TRUE,
    bit_string,
    bmp,
    context,
    context_primitive,
    ia5,
    integer,
    octet_string,
    oid,
    printable,
    sequence,
    set_as_given,
    set_of,
    teletex,
    tlv,
    universal,
    utf8,
    visible,
)
from .fixture import Fixture, refuse
from .pkcs10 import (
    BASIC_CONSTRAINTS,
    CERTIFICATE_POLICIES,
    COUNTRY,
    EMPTY_NAME,
    EXTENDED_KEY_USAGE,
    EXTENSION_REQUEST,
    HOST,
    KEY_USAGE,
    NAME_CONSTRAINTS,
    ORGANIZATION,
    SERVER_AUTH,
    SUBJECT_ALT_NAME,
    UNKNOWN_EXTENSION,
    Request,
    asking,
    attribute,
    basic_constraints,
    common_name,
    dns,
    dns_names,
    extended_key_usage,
    extension,
    extension_request,
    key_usage,
    name,
    name_attribute,
    subject,
    subject_alt_name,
)

OTHER_HOST = "other.adit.localhost"
LONG_HOST = f"{'b' * 50}.adit.localhost"

# Why OpenSSL has no verdict of its own.
UNKNOWN_HERE = "OpenSSL 3.0 does not know it"


def fixtures() -> Iterator[Fixture]:
    yield from common_names()
    yield from subject_alt_names()
    yield from long_hosts()
    yield from extension_requests()
    yield from malformed_extensions()


def common_names() -> Iterator[Fixture]:
    organization, country = (ORGANIZATION, utf8("Example")), (COUNTRY, printable("NL"))
    own = common_name(HOST)
    for file, request, note in (
        ("empty-subject", Request(subject=EMPTY_NAME), "an empty subject"),
        ("empty-subject-with-san", asking(dns_names(HOST), subject=EMPTY_NAME), "an empty subject, and a SAN"),
        ("no-cn", Request(subject=name(country, organization)), "C and O only"),
        ("no-cn-with-san", asking(dns_names(HOST), subject=name(organization)), "O only, and a SAN"),
        ("host-in-other-attribute", Request(subject=name((ORGANIZATION, utf8(HOST)))), "the host stands in O"),
        ("host-in-surname", Request(subject=name(("2.5.4.4", utf8(HOST)))), "the host stands in surname, 2.5.4.4"),
    ):
        yield refuse(f"cn-missing-{file}.pem", request.pem(), "CommonNameMissing", note)
    both = sequence(set_of(name_attribute(*own), name_attribute(*common_name(OTHER_HOST))))
    both_in_multi = sequence(set_of(name_attribute(*organization), name_attribute(*own)), set_of(name_attribute(*own)))
    for file, value, note in (
        ("same", name(own, own), "the host twice"),
        ("host-first", name(own, common_name(OTHER_HOST)), "the host, then another"),
        ("host-last", name(common_name(OTHER_HOST), own), "another, then the host"),
        ("one-rdn", both, "two in one RDN"),
        ("multi-valued-rdn", both_in_multi, "one beside O, one alone"),
        ("three", name(own, organization, own, own), "three"),
        ("other-types", name(common_name(printable(HOST)), common_name(ia5(HOST))), "the host in two string types"),
    ):
        yield refuse(
            f"cn-repeated-{file}.pem", Request(subject=value).pem(), "CommonNameRepeated", f"common names: {note}"
        )
    for kind, encode in (("bmp", bmp), ("universal", universal), ("teletex", teletex), ("visible", visible)):
        request = Request(subject=subject(encode(HOST)))
        note = f"the host in a string of type {kind}"
        disagree = UNKNOWN_HERE if kind == "visible" else ""
        yield refuse(f"cn-type-{kind}.pem", request.pem(), "CommonNameType", note, others_disagree=disagree)
    for file, value, note in (
        ("nul", f"{HOST}\0", "a NUL after the host"),
        ("nul-inside", f"{HOST}\0.example.org", "a NUL, then another domain"),
        ("nul-first", f"\0{HOST}", "a NUL before the host"),
        ("blank-before", f" {HOST}", "a blank before the host"),
        ("blank-after", f"{HOST} ", "a blank after the host"),
        ("blank-inside", "my agent.adit.localhost", "a blank inside"),
        ("newline", f"{HOST}\n", "a newline after the host"),
        ("crlf", f"{HOST}\r\nX: y", "CR LF and more after the host"),
        ("tab", f"\t{HOST}", "a tab before the host"),
        ("escape", f"\x1b[2J{HOST}", "a terminal's escape sequence before the host"),
        ("delete", f"{HOST}\x7f", "a DEL after the host"),
        ("idn", "my-ägent.adit.localhost", "an umlaut"),
        ("cyrillic", HOST.replace("a", "\u0430", 1), "a Cyrillic a"),
        ("full-width-dot", HOST.replace(".", "\uff0e", 1), "a full-width dot"),
        ("zero-width", f"{HOST[:2]}\u200b{HOST[2:]}", "a zero-width blank"),
        ("bom", f"\ufeff{HOST}", "a byte order mark before the host"),
        ("no-break-space", f"{HOST}\u00a0", "a no-break blank after the host"),
    ):
        yield refuse(
            f"cn-character-{file}.pem",
            Request(subject=subject(value)).pem(),
            "CommonNameCharacter",
            f"common name: {note}",
        )
    request = Request(subject=subject("\u212aiosk.adit.localhost"))
    yield refuse(
        "cn-character-kelvin.pem",
        request.pem(),
        "CommonNameCharacter",
        "the Kelvin sign, whose lower case is k",
        "kiosk.adit.localhost",
    )
    for file, text in (("ia5", ia5), ("printable", printable)):
        request = Request(subject=subject(text(f"{HOST} ")))
        yield refuse(
            f"cn-character-blank-{file}.pem",
            request.pem(),
            "CommonNameCharacter",
            f"a blank after the host, type {file}",
        )
    for file, value, note in (
        ("leftmost", "*.adit.localhost", "the leftmost label"),
        ("alone", "*", "an asterisk alone"),
        ("part", "my-*.adit.localhost", "part of a label"),
        ("inside", "my-agent.*.localhost", "a label in the middle"),
        ("of-host", f"*.{HOST}", "every name under the host"),
    ):
        yield refuse(
            f"cn-wildcard-{file}.pem", Request(subject=subject(value)).pem(), "CommonNameWildcard", f"wildcard: {note}"
        )
    for file, value, host, note in (
        ("65", "a" * 65, HOST, "65 characters"),
        ("100", f"{'a' * 50}.{'b' * 49}", HOST, "100 characters"),
        ("1000", f"{'a' * 50}." * 19 + "b" * 31, HOST, "1000 characters"),
    ):
        yield refuse(
            f"cn-too-long-{file}.pem",
            Request(subject=subject(value)).pem(),
            "CommonNameTooLong",
            f"common name: {note}",
            host,
        )
    request = asking(dns_names(LONG_HOST), subject=subject(LONG_HOST))
    yield refuse(
        "cn-too-long-host-and-san.pem",
        request.pem(),
        "CommonNameUnexpected",
        "the host of 65 characters in CN and SAN",
        LONG_HOST,
    )
    for file, value, note in (
        ("other", OTHER_HOST, "another tunnel"),
        ("sub-domain", f"www.{HOST}", "a name under the host"),
        ("sub-sub-domain", f"a.b.{HOST}", "two labels under the host"),
        ("zone", "adit.localhost", "the zone"),
        ("label", "my-agent", "the first label only"),
        ("trailing-dot", f"{HOST}.", "a trailing dot"),
        ("leading-dot", f".{HOST}", "a leading dot"),
        ("prefix", HOST[:-1], "the last letter is missing"),
        ("suffix", f"{HOST}s", "a letter follows"),
        ("glued", f"x{HOST}", "a letter before"),
        ("domain-after", f"{HOST}.example.org", "another domain follows"),
        ("underscore", HOST.replace("-", "_"), "an underscore for the hyphen"),
        ("punycode", "xn--my-gent-9ta.adit.localhost", "an internationalized name"),
        ("address", "127.0.0.1", "an IP address"),
        ("64", f"{'a' * 49}.adit.localhost", "64 characters"),
    ):
        yield refuse(
            f"cn-mismatch-{file}.pem",
            Request(subject=subject(value)).pem(),
            "CommonNameMismatch",
            f"common name: {note}",
        )
    request = asking(dns_names(HOST), subject=subject(OTHER_HOST))
    yield refuse(
        "cn-mismatch-with-right-san.pem", request.pem(), "CommonNameMismatch", "another tunnel in CN, the host in SAN"
    )
    request = Request(subject=subject(""))
    yield refuse("cn-mismatch-empty.pem", request.pem(), "CommonNameMismatch", "a common name of no characters")
    request = Request(subject=subject(f"{HOST}:443"))
    yield refuse("cn-mismatch-port.pem", request.pem(), "CommonNameMismatch", "a port follows the host")


def subject_alt_names() -> Iterator[Fixture]:
    yield refuse("san-empty.der", asking(subject_alt_name()).der(), "SubjectAltNameEmpty", "SAN without an entry")
    yield refuse(
        "san-empty-critical.der",
        asking(subject_alt_name(critical=True)).der(),
        "SubjectAltNameEmpty",
        "critical SAN without an entry",
    )
    kinds = {
        "other-name": context(0, oid("1.3.6.1.4.1.311.20.2.3"), context(0, utf8("me@example.org"))),
        "email": context_primitive(1, b"me@example.org"),
        "email-of-host": context_primitive(1, HOST.encode()),
        "x400": context(3, sequence()),
        "directory-name": context(4, subject(HOST)),
        "edi-party": context(5, context(1, utf8(HOST))),
        "uri": context_primitive(6, f"https://{HOST}/".encode()),
        "ipv4": context_primitive(7, bytes([127, 0, 0, 1])),
        "ipv6": context_primitive(7, bytes(15) + b"\x01"),
        "registered-id": context_primitive(8, oid("1.3.6.1.4.1.55555.7")[2:]),
    }
    for kind, entry in kinds.items():
        yield refuse(
            f"san-type-{kind}.der", asking(subject_alt_name(entry)).der(), "SubjectAltNameType", f"SAN: {kind}"
        )
    for kind in ("ipv4", "email", "uri"):
        request = asking(subject_alt_name(dns(HOST), kinds[kind]))
        yield refuse(
            f"san-type-host-and-{kind}.der", request.der(), "SubjectAltNameType", f"SAN: the host, then {kind}"
        )
    request = asking(subject_alt_name(kinds["ipv6"], dns(HOST)))
    yield refuse("san-type-ipv6-and-host.der", request.der(), "SubjectAltNameType", "SAN: IPv6, then the host")
    for file, hosts, note in (
        ("other", [OTHER_HOST], "another tunnel"),
        ("host-and-other", [HOST, OTHER_HOST], "the host, then another tunnel"),
        ("other-and-host", [OTHER_HOST, HOST], "another tunnel, then the host"),
        ("thirtieth", [*[HOST] * 29, OTHER_HOST], "another tunnel after 29 times the host"),
        ("sub-domain", [f"www.{HOST}"], "a name under the host"),
        ("zone", ["adit.localhost"], "the zone"),
        ("trailing-dot", [f"{HOST}."], "a trailing dot"),
        ("leading-dot", [f".{HOST}"], "a leading dot"),
        ("domain-after", [f"{HOST}.example.org"], "another domain follows"),
        ("prefix", [HOST[:-1]], "the last letter is missing"),
        ("address", ["127.0.0.1"], "an IP address as dNSName"),
        ("empty-entry", [""], "an entry of no characters"),
        ("host-and-empty-entry", [HOST, ""], "the host, then an entry of no characters"),
    ):
        yield refuse(
            f"san-mismatch-{file}.der", asking(dns_names(*hosts)).der(), "SubjectAltNameMismatch", f"SAN: {note}"
        )
    for file, hosts, note in (
        ("leftmost", ["*.adit.localhost"], "the leftmost label"),
        ("alone", ["*"], "an asterisk alone"),
        ("part", ["my-*.adit.localhost"], "part of a label"),
        ("host-and-wildcard", [HOST, f"*.{HOST}"], "the host and every name under it"),
    ):
        yield refuse(
            f"san-wildcard-{file}.der",
            asking(dns_names(*hosts)).der(),
            "SubjectAltNameWildcard",
            f"SAN: wildcard, {note}",
        )
    own = HOST.encode()
    for file, entry, note in (
        ("nul", own + b"\0", "a NUL after the host"),
        ("nul-inside", own + b"\0.example.org", "a NUL, then another domain"),
        ("blank-before", b" " + own, "a blank before the host"),
        ("blank-after", own + b" ", "a blank after the host"),
        ("blank-only", b" ", "a blank (RFC 5280 section 4.2.1.6 forbids it)"),
        ("newline", own + b"\n", "a newline after the host"),
        ("latin1", b"my-\xe4gent.adit.localhost", "an octet E4"),
        ("utf8", "my-ägent.adit.localhost".encode(), "UTF-8"),
        ("high-bit", bytes([own[0] | 0x80]) + own[1:], "the top bit of the first octet is set"),
        ("list", f"{HOST} {HOST}".encode(), "two hosts in one entry"),
    ):
        yield refuse(
            f"san-character-{file}.der",
            asking(subject_alt_name(dns(entry))).der(),
            "SubjectAltNameCharacter",
            f"SAN: {note}",
        )


def long_hosts() -> Iterator[Fixture]:
    usage = key_usage(b"\x80", 7)
    for file, request, expected, note in (
        ("no-san", Request(subject=EMPTY_NAME), "SubjectAltNameMissing", "empty subject and no SAN"),
        (
            "other-extension",
            asking(usage, subject=EMPTY_NAME),
            "SubjectAltNameMissing",
            "empty subject and only a key usage",
        ),
        (
            "san-empty",
            asking(subject_alt_name(), subject=EMPTY_NAME),
            "SubjectAltNameEmpty",
            "empty subject, empty SAN",
        ),
        (
            "san-other",
            asking(dns_names(OTHER_HOST), subject=EMPTY_NAME),
            "SubjectAltNameMismatch",
            "empty subject, another host in SAN",
        ),
        (
            "san-cut",
            asking(dns_names(LONG_HOST[:64]), subject=EMPTY_NAME),
            "SubjectAltNameMismatch",
            "empty subject, SAN cut to 64 characters",
        ),
        (
            "cn-cut",
            asking(dns_names(LONG_HOST), subject=subject(LONG_HOST[:64])),
            "CommonNameUnexpected",
            "CN cut to 64 characters, SAN right",
        ),
    ):
        yield refuse(f"host-65-{file}.pem", request.pem(), expected, f"host of 65 characters: {note}", LONG_HOST)


# Attributes and extensions.


def extension_requests() -> Iterator[Fixture]:
    san, usage = dns_names(HOST), key_usage(b"\x80", 7)
    for file, given, note in (
        ("two-attributes", [extension_request(san), extension_request(usage)], "two attributes"),
        ("same-twice", [extension_request(san), extension_request(san)], "the same attribute twice"),
        ("two-values", [attribute(EXTENSION_REQUEST, sequence(san), sequence(usage))], "one attribute with two values"),
        ("same-value-twice", [attribute(EXTENSION_REQUEST, sequence(san), sequence(san))], "the same value twice"),
        ("no-value", [attribute(EXTENSION_REQUEST)], "one attribute without a value"),
        (
            "three",
            [extension_request(san), attribute(EXTENSION_REQUEST, sequence(usage), sequence(san))],
            "two attributes, three values",
        ),
    ):
        yield refuse(
            f"extension-request-{file}.der",
            Request(attributes=tuple(given)).der(),
            "ExtensionRequestCount",
            f"extensionRequest: {note}",
        )
    for file, extensions, note in (
        ("san", [san, san], "the same SAN twice"),
        ("san-two-forms", [san, dns_names(HOST.upper(), critical=True)], "SAN twice, once critical and in upper case"),
        ("key-usage", [usage, usage], "key usage twice"),
        ("basic-constraints", [basic_constraints(), basic_constraints(TRUE)], "CA:FALSE and CA:TRUE"),
        (
            "purposes",
            [extended_key_usage(SERVER_AUTH), san, extended_key_usage(SERVER_AUTH)],
            "EKU before and after SAN",
        ),
        (
            "unknown",
            [extension(UNKNOWN_EXTENSION, NULL), extension(UNKNOWN_EXTENSION, TRUE)],
            "an unknown extension twice",
        ),
        (
            "far-apart",
            [san, *(extension(f"{UNKNOWN_EXTENSION}.{arc}", NULL) for arc in range(20)), san],
            "20 extensions between two SANs",
        ),
    ):
        yield refuse(f"duplicate-{file}.der", asking(*extensions).der(), "DuplicateExtension", note)
    for file, extension_, note in (
        ("unknown", extension(UNKNOWN_EXTENSION, NULL, critical=True), "an unknown extension"),
        (
            "ct-poison",
            extension("1.3.6.1.4.1.11129.2.4.3", NULL, critical=True),
            "the poison of certificate transparency",
        ),
        (
            "name-constraints",
            extension(NAME_CONSTRAINTS, sequence(context(0, sequence(dns("adit.localhost")))), critical=True),
            "name constraints",
        ),
        (
            "policies",
            extension(CERTIFICATE_POLICIES, sequence(sequence(oid("2.23.140.1.2.1"))), critical=True),
            "certificate policies",
        ),
        ("inhibit-any-policy", extension("2.5.29.54", integer(0), critical=True), "inhibitAnyPolicy"),
    ):
        yield refuse(f"critical-{file}.der", asking(extension_).der(), "CriticalExtension", f"critical: {note}")
    request = asking(dns_names(HOST), extension(UNKNOWN_EXTENSION, NULL, critical=True))
    yield refuse(
        "critical-unknown-after-san.der", request.der(), "CriticalExtension", "critical: an unknown extension after SAN"
    )


def malformed_extensions() -> Iterator[Fixture]:
    host = dns(HOST)
    san = sequence(host)
    for kind, identifier, contents in (
        (
            "san",
            SUBJECT_ALT_NAME,
            {
                "no-content": (b"", "no content"),
                "not-a-sequence": (octet_string(host), "an OCTET STRING"),
                "set": (b"\x31" + san[1:], "a SET"),
                "bare": (host, "a name without its SEQUENCE"),
                "trailing": (san + b"\0", "an octet follows the SEQUENCE"),
                "cut": (san[:-1], "the last octet is missing"),
                "length-too-long": (b"\x30\x81" + san[1:], "a length in long form (BER)"),
                "indefinite": (b"\x30\x80" + host + b"\0\0", "indefinite length (BER)"),
                "entry-cut": (sequence(host, b"\x82\x7f"), "the second entry is cut"),
                "universal-tag": (sequence(ia5(HOST)), "an IA5String without its tag [2]"),
                "constructed": (sequence(context(2, ia5(HOST))), "a dNSName with the constructed tag A2"),
            },
        ),
        (
            "basic-constraints",
            BASIC_CONSTRAINTS,
            {
                "no-content": (b"", "no content"),
                "boolean": (TRUE, "TRUE without its SEQUENCE"),
                "boolean-01": (sequence(tlv(0x01, b"\x01")), "TRUE written as 01 (BER)"),
                "boolean-long": (sequence(tlv(0x01, b"\xff\xff")), "a BOOLEAN of two octets"),
                "trailing": (sequence(TRUE) + b"\0", "an octet follows the SEQUENCE"),
                "trailing-inside": (sequence(TRUE, integer(0), NULL), "a third element"),
                "path-length-negative": (sequence(TRUE, integer(-1)), "pathlen:-1"),
                "path-length-string": (sequence(TRUE, octet_string(b"\0")), "pathlen is an OCTET STRING"),
                "path-length-padded": (sequence(TRUE, tlv(0x02, b"\0\0")), "pathlen:0 in two octets"),
            },
        ),
        (
            "key-usage",
            KEY_USAGE,
            {
                "no-content": (b"", "no content"),
                "octet-string": (octet_string(b"\x80"), "an OCTET STRING"),
                "bit-string-empty": (tlv(0x03), "a BIT STRING without content"),
                "unused-8": (bit_string(b"\x80", 8), "eight unused bits"),
                "unused-of-nothing": (bit_string(b"", 3), "unused bits of no octet"),
                "trailing": (bit_string(b"\x80", 7) + b"\0", "an octet follows"),
                "sequence": (sequence(bit_string(b"\x80", 7)), "a SEQUENCE around it"),
            },
        ),
        (
            "purposes",
            EXTENDED_KEY_USAGE,
            {
                "no-content": (b"", "no content"),
                "empty": (sequence(), "no purpose (RFC 5280: 1..MAX)"),
                "oid": (oid(SERVER_AUTH), "a purpose without its SEQUENCE"),
                "integer": (sequence(integer(1)), "an INTEGER as purpose"),
                "trailing": (sequence(oid(SERVER_AUTH)) + b"\0", "an octet follows the SEQUENCE"),
                "oid-cut": (sequence(tlv(0x06, b"\x2b\x86")), "the last arc of a purpose is cut"),
                "oid-empty": (sequence(tlv(0x06)), "a purpose without arcs"),
            },
        ),
    ):
        for file, (content, note) in contents.items():
            request = asking(extension(identifier, content))
            yield refuse(f"malformed-{kind}-{file}.der", request.der(), "MalformedExtension", f"{kind}: {note}")

    plain = sequence(oid(UNKNOWN_EXTENSION), octet_string(NULL))
    for file, value, note in (
        ("list-octet-string", octet_string(plain), "extensionRequest holds an OCTET STRING"),
        ("list-set", set_as_given(plain), "extensionRequest holds a SET"),
        ("one-not-in-list", plain, "extensionRequest holds one extension without the list"),
        ("value-null", sequence(sequence(oid(UNKNOWN_EXTENSION), NULL)), "an extension's value is NULL"),
        ("value-missing", sequence(sequence(oid(UNKNOWN_EXTENSION))), "an extension without a value"),
        ("value-bare", sequence(sequence(oid(SUBJECT_ALT_NAME), san)), "SAN without its OCTET STRING"),
        (
            "fourth-element",
            sequence(sequence(oid(UNKNOWN_EXTENSION), TRUE, octet_string(NULL), NULL)),
            "a fourth element in an extension",
        ),
        (
            "critical-01",
            sequence(sequence(oid(SUBJECT_ALT_NAME), tlv(0x01, b"\x01"), octet_string(san))),
            "critical written as 01 (BER)",
        ),
        (
            "critical-integer",
            sequence(sequence(oid(SUBJECT_ALT_NAME), integer(1), octet_string(san))),
            "critical is an INTEGER",
        ),
        ("order", sequence(sequence(octet_string(NULL), oid(UNKNOWN_EXTENSION))), "the value before the identifier"),
        ("cut", sequence(plain[:-1]), "the last octet of an extension is missing"),
    ):
        request = Request(attributes=(attribute(EXTENSION_REQUEST, value),))
        yield refuse(f"der-extension-{file}.pem", request.pem(), "Der", note)
