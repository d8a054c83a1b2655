"""Requests that the gate must let through."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID

from . import keys, weak
from .der import (
    NULL,
    TRUE,
    bit_string,
    bmp,
    context,
    ia5,
    integer,
    octet_string,
    oid,
    printable,
    sequence,
    set_of,
    teletex,
    utf8,
)
from .fixture import Fixture, accept
from .keys import EcKey, Ed25519Key, RsaKey
from .pkcs10 import (
    CERTIFICATE_POLICIES,
    CHALLENGE_PASSWORD,
    CLIENT_AUTH,
    CODE_SIGNING,
    COUNTRY,
    DOMAIN_COMPONENT,
    EMAIL_ADDRESS,
    EMPTY_NAME,
    HOST,
    LABEL,
    NAME_CONSTRAINTS,
    ORGANIZATION,
    ORGANIZATIONAL_UNIT,
    SERIAL_NUMBER,
    SERVER_AUTH,
    SUBJECT_KEY_IDENTIFIER,
    TLS_FEATURE,
    UNKNOWN_ATTRIBUTE,
    UNKNOWN_EXTENSION,
    UNSTRUCTURED_NAME,
    Request,
    armour,
    asking,
    attribute,
    base64_text,
    basic_constraints,
    common_name,
    dns,
    dns_names,
    extended_key_usage,
    extension,
    extension_request,
    key_usage,
    lines,
    name,
    name_attribute,
    pem,
    subject,
    unknown_attribute,
)

LARGEST = 16 * 1024

# PEM that the lax grammar of RFC 7468 section 3 has, and OpenSSL or pyca does not read.
STRICTER = ("blank-line-between", "blank-lines-inside", "cr", "indented")


def fixtures() -> Iterator[Fixture]:
    yield from key_kinds()
    yield from signature_shapes()
    yield from common_names()
    yield from hosts()
    yield from subject_alt_names()
    yield from asked_for_powers()
    yield from ignored_extensions()
    yield from attributes()
    yield from armours()
    yield from sizes()
    yield from written_by_openssl()
    yield from written_by_pyca()


def key_kinds() -> Iterator[Fixture]:
    for curve in ("p256", "p384", "p521"):
        for digest in ("sha256", "sha384", "sha512"):
            request = Request(key=EcKey(curve), digest=digest)
            yield accept(f"{curve}-{digest}.pem", request.pem(), f"{curve} key, ECDSA with {digest}")
    yield accept("ed25519.pem", Request(key=Ed25519Key()).pem(), "Ed25519")
    for digest in ("sha256", "sha384", "sha512"):
        request = Request(key=RsaKey.of_bits(2048), digest=digest)
        yield accept(f"rsa-2048-{digest}.pem", request.pem(), f"RSA PKCS#1 v1.5 with {digest}")
    for digest in ("sha256", "sha384", "sha512"):
        request = pss_request(RsaKey.of_bits(2048), digest)
        yield accept(f"rsa-2048-pss-{digest}.pem", request.pem(), f"rsaEncryption key, PSS signature with {digest}")
    for bits in (2049, 2056, 3072, 4096, 8192):
        request = Request(key=RsaKey.of_bits(bits))
        yield accept(f"rsa-{bits}.der", request.der(), f"RSA of {bits} bits")
    request = pss_request(RsaKey.of_bits(2049), "sha256")
    yield accept("rsa-2049-pss.der", request.der(), "PSS whose encoded message is an octet shorter than the modulus")
    for exponent, text in ((65539, "65539"), (2**31 - 1, "the largest of 31 bits")):
        request = Request(key=weak.rsa_with_exponent(exponent))
        yield accept(f"rsa-exponent-{exponent}.der", request.der(), f"public exponent {text}")
    for octet, coordinate in ((1, "x"), (33, "y")):
        key = next(key for key in map(EcKey, ["p256"] * 10_000, map(str, range(10_000))) if key.point()[octet] == 0)
        request = Request(key=key)
        yield accept(
            f"p256-short-{coordinate}.pem", request.pem(), f"the point's {coordinate} begins with a zero octet"
        )


def pss_request(key: RsaKey, digest: str, algorithm: bytes | None = None) -> Request:
    algorithm = algorithm or keys.pss_algorithm(digest)
    return Request(key=key, digest=digest, algorithm=algorithm, sign=lambda info: key.sign_pss(info, digest))


def signature_shapes() -> Iterator[Fixture]:
    key = EcKey("p256")
    order = keys.GROUP_ORDERS["p256"]

    def with_s(choose: type[max] | type[min]) -> Request:
        def sign(info: bytes) -> bytes:
            r, s = key.sign_pair(info)
            return sequence(integer(r), integer(choose(s, order - s)))

        return Request(sign=sign)

    yield accept("ecdsa-high-s.pem", with_s(max).pem(), "s in the upper half of the group")
    yield accept("ecdsa-low-s.pem", with_s(min).pem(), "s in the lower half of the group")
    for index, element in enumerate("rs"):
        request = Request().varied(lambda signature, index=index: ecdsa_lengths(signature)[index] < 32)
        yield accept(f"ecdsa-short-{element}.pem", request.pem(), f"{element} is an octet shorter than the group")
    request = Request(key=RsaKey.of_bits(2048)).varied(lambda signature: signature[0] == 0)
    yield accept("rsa-signature-leading-zero.pem", request.pem(), "the signature begins with a zero octet")
    request = Request(key=RsaKey.of_bits(2048), algorithm=sequence(oid(keys.RSA_WITH["sha256"])))
    yield accept("rsa-parameters-absent.pem", request.pem(), "RSA without NULL (RFC 4055 section 5: MUST be accepted)")
    absent = keys.pss_algorithm("sha256", digest_parameters=b"")
    request = pss_request(RsaKey.of_bits(2048), "sha256", absent)
    yield accept(
        "rsa-pss-digest-parameters-absent.pem",
        request.pem(),
        "PSS whose digests have no parameters instead of NULL (RFC 4055 section 2.1: both MUST be accepted)",
    )


def ecdsa_lengths(signature: bytes) -> tuple[int, int]:
    """Octets of r and of s."""
    return signature[3], signature[5 + signature[3]]


def common_names() -> Iterator[Fixture]:
    for kind, encode in (("utf8", utf8), ("printable", printable), ("ia5", ia5)):
        request = Request(subject=subject(encode(HOST)))
        yield accept(f"cn-{kind}.pem", request.pem(), f"common name in a string of type {kind}")
    yield accept("cn-upper-case.pem", Request(subject=subject(HOST.upper())).pem(), "common name in upper case")
    mixed = "My-Agent.aDiT.LocalHost"
    yield accept("cn-mixed-case.pem", Request(subject=subject(printable(mixed))).pem(), "common name in mixed case")
    organization = (ORGANIZATION, utf8("Example Ltd"))
    country = (COUNTRY, printable("NL"))
    email = (EMAIL_ADDRESS, ia5("ops@example.org"))
    for file, values, note in (
        ("full", (country, organization, common_name(HOST), email), "C, O, CN and emailAddress"),
        ("cn-first", (common_name(HOST), organization, country), "common name before O and C"),
        (
            "domain-components",
            ((DOMAIN_COMPONENT, ia5("localhost")), (DOMAIN_COMPONENT, ia5("adit")), common_name(HOST)),
            "two domain components before the common name",
        ),
        (
            "two-units",
            ((ORGANIZATIONAL_UNIT, utf8("a")), (ORGANIZATIONAL_UNIT, utf8("b")), common_name(HOST)),
            "two organizational units",
        ),
        (
            "legacy-strings",
            ((ORGANIZATION, bmp("Ré")), (ORGANIZATIONAL_UNIT, teletex("Mün")), common_name(HOST)),
            "BMPString and TeletexString beside the common name",
        ),
        (
            "other-value-is-a-host",
            ((SERIAL_NUMBER, printable("other.adit.localhost")), common_name(HOST)),
            "serialNumber holds another host",
        ),
    ):
        yield accept(f"subject-{file}.pem", Request(subject=name(*values)).pem(), note)
    rdn = set_of(*(name_attribute(*value) for value in (organization, common_name(HOST))))
    yield accept("subject-multi-valued-rdn.pem", Request(subject=sequence(rdn)).pem(), "O and CN in one RDN")
    rdns = (set_of(name_attribute(*country)), rdn)
    yield accept("subject-multi-valued-last.pem", Request(subject=sequence(*rdns)).pem(), "C, then O and CN in one RDN")


def hosts() -> Iterator[Fixture]:
    label_63 = "a" * 62 + "9"
    host_64 = f"{'b' * 40}.{'c' * 23}"
    host_65 = f"{'b' * 50}.adit.localhost"
    host_253 = ".".join(["d" * 63, "e" * 63, "f" * 63, "g" * 46, "adit.localhost"])
    assert (len(host_64), len(host_65), len(host_253)) == (64, 65, 253)
    for file, host, note in (
        ("1", "a", "one character"),
        ("3", "a.b", "two labels of one character"),
        ("digits", "0.1.adit.localhost", "labels of one digit"),
        ("hyphens", "a--b-c.adit.localhost", "two hyphens in a row"),
        ("punycode", "xn--bcher-kva.adit.localhost", "an internationalized name in its ASCII form"),
        ("63", label_63, "one label of 63 characters"),
        ("64", host_64, "64 characters, the longest common name"),
    ):
        yield accept(f"host-{file}.pem", Request(subject=subject(host)).pem(), f"host: {note}", host)
    request = asking(dns_names(host_64), subject=subject(host_64.upper()))
    yield accept("host-64-upper-case-and-san.pem", request.pem(), "64 characters in CN and SAN", host_64)
    for file, host, extension_, note in (
        ("65", host_65, dns_names(host_65), "65 characters, empty subject"),
        ("65-critical", host_65, dns_names(host_65, critical=True), "65 characters, empty subject, critical SAN"),
        ("65-upper-case", host_65, dns_names(host_65.upper()), "65 characters, empty subject, SAN in upper case"),
        ("253", host_253, dns_names(host_253), "253 characters, empty subject"),
    ):
        yield accept(f"host-{file}.pem", asking(extension_, subject=EMPTY_NAME).pem(), f"host: {note}", host)


def subject_alt_names() -> Iterator[Fixture]:
    for file, extension_, note in (
        ("host", dns_names(HOST), "SAN is the host"),
        ("host-twice", dns_names(HOST, HOST), "SAN names the host twice"),
        ("host-in-two-cases", dns_names(HOST, HOST.title()), "SAN names the host in lower and in mixed case"),
        ("upper-case", dns_names(HOST.upper()), "SAN in upper case"),
        ("critical", dns_names(HOST, critical=True), "SAN is critical"),
        ("host-40-times", dns_names(*[HOST] * 40), "SAN names the host 40 times"),
    ):
        yield accept(f"san-{file}.pem", asking(extension_).pem(), note)
    request = asking(dns_names(HOST.upper()), subject=subject(printable(HOST.upper())))
    yield accept("san-and-cn-upper-case.pem", request.pem(), "CN and SAN in upper case")


def asked_for_powers() -> Iterator[Fixture]:
    for file, extensions, note in (
        ("ca", [basic_constraints(TRUE)], "CA:TRUE"),
        ("ca-critical", [basic_constraints(TRUE, critical=True)], "CA:TRUE, critical"),
        ("ca-path-length", [basic_constraints(TRUE, integer(0), critical=True)], "CA:TRUE, pathlen:0"),
        ("not-ca", [basic_constraints()], "CA:FALSE"),
        ("not-ca-critical", [basic_constraints(critical=True)], "CA:FALSE, critical"),
        ("key-cert-sign", [key_usage(b"\x04", 2)], "keyCertSign"),
        ("key-cert-sign-critical", [key_usage(b"\x06", 1, critical=True)], "keyCertSign and cRLSign, critical"),
        ("decipher-only", [key_usage(b"\x08\x80", 7)], "keyAgreement and decipherOnly: nine bits"),
        ("server-auth", [extended_key_usage(SERVER_AUTH)], "EKU serverAuth"),
        (
            "purposes-critical",
            [extended_key_usage(CLIENT_AUTH, CODE_SIGNING, "2.5.29.37.0", critical=True)],
            "EKU clientAuth, codeSigning and any, critical",
        ),
        ("unknown-purpose", [extended_key_usage("1.3.6.1.4.1.55555.3")], "EKU with a private purpose"),
        (
            "everything",
            [
                basic_constraints(TRUE, critical=True),
                key_usage(b"\xff\x80", 7, critical=True),
                extended_key_usage(SERVER_AUTH, CLIENT_AUTH),
                dns_names(HOST),
            ],
            "CA:TRUE, every key usage, EKU and SAN",
        ),
    ):
        yield accept(f"asks-{file}.pem", asking(*extensions).pem(), f"asks for {note}, which is not given")


def ignored_extensions() -> Iterator[Fixture]:
    netscape = "2.16.840.1.113730.1"
    unknown = [extension(f"{UNKNOWN_EXTENSION}.{arc}", NULL) for arc in range(30)]
    permitted = sequence(context(0, sequence(dns("adit.localhost"))))
    for file, extensions, note in (
        ("subject-key-identifier", [extension(SUBJECT_KEY_IDENTIFIER, octet_string(b"k" * 20))], "SKI"),
        ("unknown-extension", [extension(UNKNOWN_EXTENSION, utf8("?"))], "an extension that no one knows"),
        (
            "unknown-extension-not-der",
            [extension(UNKNOWN_EXTENSION, b"\xff\x00 not DER")],
            "an unknown extension whose content is not DER",
        ),
        ("unknown-extension-empty", [extension(UNKNOWN_EXTENSION, b"")], "an unknown extension without content"),
        (
            "unknown-extension-large-arcs",
            [extension("2.25.329800735698586629295641978511506172918", NULL)],
            "an extension named by a UUID, an arc of 128 bits",
        ),
        ("tls-feature", [extension(TLS_FEATURE, sequence(integer(5)))], "OCSP must-staple"),
        ("policies", [extension(CERTIFICATE_POLICIES, sequence(sequence(oid("2.23.140.1.2.1"))))], "a policy"),
        ("name-constraints", [extension(NAME_CONSTRAINTS, permitted)], "name constraints, not critical"),
        (
            "netscape",
            [extension(f"{netscape}.1", bit_string(b"\x40", 6)), extension(f"{netscape}.13", ia5("made by hand"))],
            "nsCertType and nsComment",
        ),
        ("many-extensions", [*unknown, dns_names(HOST)], "30 unknown extensions and SAN"),
    ):
        yield accept(f"{file}.pem", asking(*extensions).pem(), f"asks for {note}")


def attributes() -> Iterator[Fixture]:
    password = attribute(CHALLENGE_PASSWORD, utf8("secret"))
    requested = extension_request(dns_names(HOST))
    microsoft = [
        attribute("1.3.6.1.4.1.311.13.2.3", ia5("10.0.19045.2")),
        attribute("1.3.6.1.4.1.311.21.20", sequence(integer(5), utf8("pc"), utf8("PC\\me"), utf8("certreq.exe"))),
        attribute("1.3.6.1.4.1.311.13.2.2", sequence(integer(1), bmp("Microsoft Software KSP"), bit_string(b""))),
    ]
    long_tag = b"\xbf\x1f" + NULL[1:]
    for file, given, note in (
        ("challenge-password", [password], "challengePassword"),
        ("challenge-password-printable", [attribute(CHALLENGE_PASSWORD, printable("a b"))], "a PrintableString"),
        ("challenge-password-and-san", [password, requested], "challengePassword and SAN"),
        ("unstructured-name", [attribute(UNSTRUCTURED_NAME, utf8("Optional Company"))], "unstructuredName"),
        ("unknown", [unknown_attribute(b"\x00")], "one that no one knows"),
        (
            "unknown-two-values",
            [attribute(UNKNOWN_ATTRIBUTE, integer(1), integer(2))],
            "an unknown one with two values",
        ),
        ("unknown-twice", [unknown_attribute(b"a"), unknown_attribute(b"b")], "an unknown one twice"),
        ("unknown-long-tag", [attribute(UNKNOWN_ATTRIBUTE, long_tag)], "an unknown one whose value has tag [31]"),
        ("microsoft", [*microsoft, requested], "those of certreq.exe"),
        (
            "microsoft-extensions",
            [attribute("1.3.6.1.4.1.311.2.1.14", sequence(dns_names(HOST)))],
            "Microsoft's own extension request, which is not RFC 2985's",
        ),
    ):
        yield accept(f"attribute-{file}.pem", Request(attributes=tuple(given)).pem(), f"attribute: {note}")
    in_wrong_order = context(0, *sorted([password, requested, unknown_attribute(b"")], reverse=True))
    yield accept(
        "attribute-unsorted.pem",
        Request(attribute_set=in_wrong_order).pem(),
        "the SET OF attributes is not in DER order, and signed so",
        others_disagree="pyca wants the order of DER",
    )
    text = octet_string(pem(b"not a request"))
    yield accept(
        "der-holds-pem.der",
        Request(attributes=(attribute(UNKNOWN_ATTRIBUTE, text),)).der(),
        "DER with a PEM block inside an attribute: still DER",
    )


def armours() -> Iterator[Fixture]:
    request = asking(dns_names(HOST))
    der = request.der()
    text = base64_text(der)
    block = pem(der)
    yield accept("plain.der", der, "DER")
    yield accept("plain-without-extensions.der", Request().der(), "DER, attributes [0] is empty")
    begin, *body, end = block.decode().splitlines()
    openssl_text = run_openssl("req", "-in", "/dev/stdin", "-text", standard_input=block)
    for file, data, note in (
        ("crlf", block.replace(b"\n", b"\r\n"), "lines end with CR LF"),
        ("cr", block.replace(b"\n", b"\r"), "lines end with CR"),
        ("mixed-line-ends", block.replace(b"\n", b"\r\n", 3), "three lines end with CR LF, the others with LF"),
        ("single-line", armour([text]), "the body is one line"),
        ("76-columns", armour(lines(text, 76)), "76 columns"),
        ("uneven-lines", armour([text[:10], text[10:11], *lines(text[11:], 50)]), "lines of 10, 1 and 50 columns"),
        ("long-lines", armour(lines(text, 300)), "300 columns"),
        ("no-final-newline", block.rstrip(), "no newline after the END line"),
        ("blank-lines-after", block + b"\n\n", "two blank lines after the block"),
        ("crlf-blank-line-after", block.replace(b"\n", b"\r\n") + b"\r\n", "CR LF, and a blank line after"),
        ("blank-lines-before", b"\n\n" + block, "two blank lines before the block"),
        ("blank-lines-inside", armour(["", *body, ""]), "blank lines after BEGIN and before END"),
        ("blank-line-between", armour([*body[:2], "", *body[2:]]), "a blank line within the body"),
        ("blanks-at-line-ends", armour([line + "  " for line in body]), "two blanks after each line of the body"),
        (
            "blanks-after-boundaries",
            f"{begin} \n{''.join(body)}\n{end} \n".encode(),
            "a blank after BEGIN and END lines",
        ),
        ("tabs-at-line-ends", armour([line + "\t" for line in body]), "a tab after each line of the body"),
        ("indented", "".join(f"    {line}\n" for line in (begin, *body, end)).encode(), "indented by four blanks"),
        ("spaces-after", block + b" \t \n", "blanks and a tab after the block"),
        ("text-before", b"Request for my-agent, please sign:\n" + block, "a line of text before the block"),
        ("text-dashes-before", b"----- my request -----\n\n" + block, "text with dashes before the block"),
        ("text-utf8-before", "Antrag für den Tunnel:\n".encode() + block, "UTF-8 text before the block"),
        ("text-latin1-before", "Antrag für den Tunnel:\n".encode("latin-1") + block, "text before is not UTF-8"),
        ("openssl-text-before", openssl_text, "the output of `openssl req -text`"),
        ("new-label", pem(der, f"NEW {LABEL}"), f"label NEW {LABEL}"),
        ("new-label-crlf", pem(der, f"NEW {LABEL}").replace(b"\n", b"\r\n"), f"label NEW {LABEL}, CR LF"),
    ):
        disagree = "they read less than RFC 7468" if file in STRICTER else ""
        yield accept(f"pem-{file}.pem", data, f"PEM: {note}", others_disagree=disagree)
    for padding in range(3):
        # A longer attribute moves the end of the body through its three forms.
        padded = next(
            request
            for request in (Request(attributes=(unknown_attribute(bytes(count)),)) for count in range(100))
            if base64_text(request.der()).count("=") == padding
        )
        yield accept(
            f"pem-padding-{padding}.pem", padded.pem(), f"PEM: the body ends with {padding} padding characters"
        )


def sizes() -> Iterator[Fixture]:
    largest = of_size(LARGEST)
    assert len(largest) == LARGEST
    yield accept("largest.der", largest, f"exactly {LARGEST} octets of DER")
    block = Request().pem()
    yield accept(
        "largest.pem", b"#" * (LARGEST - len(block) - 1) + b"\n" + block, f"exactly {LARGEST} octets with text before"
    )


def of_size(octets: int) -> bytes:
    """A request whose DER takes so many octets, thanks to one long attribute."""

    def filled(count: int) -> bytes:
        # Ed25519 signatures all have the same length.
        return Request(key=Ed25519Key(), attributes=(unknown_attribute(bytes(count)),)).der()

    # Near the size wanted, every length field keeps its width.
    return filled(octets - (len(filled(octets)) - octets))


OPENSSL_CONFIG = """
[req]
prompt = no
distinguished_name = subject
attributes = attributes
req_extensions = extensions
string_mask = {string_mask}
[subject]
C = NL
O = Example
CN = {host}
emailAddress = ops@example.org
[attributes]
challengePassword = secret
unstructuredName = unstructured
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = @names
subjectKeyIdentifier = hash
[names]
DNS.1 = {host}
DNS.2 = {host}
"""


def run_openssl(*arguments: str, standard_input: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=standard_input, capture_output=True, check=True).stdout


def written_by_openssl() -> Iterator[Fixture]:
    """Those with an ECDSA or PSS signature are not the same on every run."""
    rsa, edwards = RsaKey.of_bits(2048), Ed25519Key()
    named = ("-subj", f"/CN={HOST}")
    san = ("-addext", f"subjectAltName=DNS:{HOST}")
    pss = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest")
    for file, key, arguments, note in (
        ("p256", EcKey("p256"), named, "-subj"),
        ("p384-sha384", EcKey("p384"), (*named, *san, "-sha384"), "-sha384 -addext subjectAltName"),
        ("p521-sha512", EcKey("p521"), (*named, *san, "-sha512"), "-sha512 -addext subjectAltName"),
        ("ed25519", edwards, (*named, *san), "-addext subjectAltName"),
        ("rsa", rsa, named, "-subj"),
        ("rsa-sha512", rsa, (*named, *san, "-sha512"), "-sha512 -addext subjectAltName"),
        ("rsa-pss", rsa, (*named, *pss, "-sha256"), "-sigopt rsa_padding_mode:pss"),
        ("newhdr", edwards, (*named, "-newhdr"), "-newhdr"),
        ("text", edwards, (*named, *san, "-text"), "-text"),
        ("utf8", edwards, ("-utf8", "-subj", f"/C=NL/O=Müller/CN={HOST}"), "-utf8, a name with an umlaut"),
        ("multi-rdn", edwards, ("-subj", f"/O=Example/OU=Edge+CN={HOST}"), "a multi-valued RDN"),
        ("ca", edwards, (*named, "-addext", "basicConstraints=critical,CA:TRUE"), "-addext CA:TRUE"),
    ):
        made = openssl_request(key, *arguments)
        yield accept(f"openssl-{file}.pem", made, f"openssl req {note}")
    yield accept("openssl-der.der", openssl_request(edwards, *named, "-outform", "DER"), "openssl req -outform DER")
    for string_mask in ("utf8only", "default", "pkix"):
        config = OPENSSL_CONFIG.format(host=HOST, string_mask=string_mask)
        made = openssl_request(edwards, config=config)
        yield accept(f"openssl-config-{string_mask}.pem", made, f"openssl req -config, string_mask = {string_mask}")


def openssl_request(key: EcKey | Ed25519Key | RsaKey, *arguments: str, config: str | None = None) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        key_file, config_file = Path(directory, "key.pem"), Path(directory, "req.cnf")
        key_file.write_bytes(keys.to_pkcs8(key))
        config_file.write_text(config or "[req]\ndistinguished_name = subject\n[subject]\n")
        return run_openssl("req", "-new", "-key", str(key_file), "-config", str(config_file), *arguments)


def written_by_pyca() -> Iterator[Fixture]:
    named = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    )
    san = x509.SubjectAlternativeName([x509.DNSName(HOST)])
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    full = (
        named.add_extension(san, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    for file, builder, key, digest, note in (
        ("plain", named, EcKey("p256"), hashes.SHA256(), "a common name only"),
        (
            "san",
            named.add_extension(san, critical=True),
            EcKey("p384"),
            hashes.SHA256(),
            "critical SAN, P-384 with SHA-256",
        ),
        ("full", full, EcKey("p256"), hashes.SHA512(), "SAN, CA:TRUE, key usage and EKU"),
        ("password", named.add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"secret"), Ed25519Key(), None, "a password"),
        ("rsa", named.add_extension(san, critical=False), RsaKey.of_bits(2048), hashes.SHA384(), "RSA with SHA-384"),
    ):
        deterministic = True if isinstance(key, EcKey) else None
        made = builder.sign(key.private, digest, ecdsa_deterministic=deterministic)
        yield accept(f"pyca-{file}.pem", made.public_bytes(serialization.Encoding.PEM), f"pyca/cryptography: {note}")
