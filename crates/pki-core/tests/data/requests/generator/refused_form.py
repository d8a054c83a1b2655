"""Requests of the wrong size, armour or structure."""

from collections.abc import Iterator
from dataclasses import replace

from . import accepted, der, keys
from .der import (
    FALSE,
    NULL,
    bit_string,
    context,
    context_primitive,
    integer,
    octet_string,
    oid,
    sequence,
    set_of,
    tlv,
    utf8,
)
from .fixture import Fixture, accept, refuse
from .keys import EcKey, Ed25519Key, RsaKey, rsa_spki
from .pkcs10 import (
    CHALLENGE_PASSWORD,
    HOST,
    LABEL,
    VERSION_1,
    Request,
    armour,
    asking,
    attribute,
    base64_text,
    common_name,
    dns_names,
    lines,
    name_attribute,
    pem,
    unknown_attribute,
)


def fixtures() -> Iterator[Fixture]:
    yield from sizes()
    yield from armours()
    yield from structure()
    yield from versions()


def sizes() -> Iterator[Fixture]:
    limit = accepted.LARGEST
    block = Request().pem()
    for file, data, note in (
        ("by-one.der", accepted.of_size(limit + 1), "one octet of DER too many, in an attribute"),
        ("by-one.pem", b"#" * (limit - len(block)) + b"\n" + block, "one octet too many with text before the block"),
        ("blank-lines.pem", block + b"\n" * (limit - len(block) + 1), "blank lines after the block"),
    ):
        yield refuse(f"too-large-{file}", data, "TooLarge", note)


def armours() -> Iterator[Fixture]:
    request = Request().der()
    text = base64_text(request)
    block = pem(request)
    body = lines(text)
    private = keys.to_pkcs8(EcKey("p256"))
    own_key = private.decode().splitlines()[1:-1]

    for file, data, note in (
        ("empty", b"", "no octets"),
        ("blank", b" \n\n", "white space"),
        ("text", b"please sign my key\n", "text"),
        ("bare-base64", "\n".join(body).encode(), "base64 without its boundaries"),
        ("end-only", "\n".join([*body, f"-----END {LABEL}-----", ""]).encode(), "the BEGIN line is missing"),
        ("four-dashes", block.replace(b"-----", b"----"), "boundaries of four dashes"),
        (
            "ssh",
            b"---- BEGIN SSH2 PUBLIC KEY ----\n" + body[0].encode() + b"\n---- END SSH2 PUBLIC KEY ----\n",
            "RFC 4716",
        ),
    ):
        yield refuse(f"pem-no-block-{file}.pem", data, "Pem::NoBlock", note)
    utf16 = block.decode().encode("utf-16")
    yield refuse("pem-utf16.pem", utf16, "Pem::Utf16", "UTF-16, as a Windows shell redirects")
    for label, content in (
        ("CERTIFICATE", body),
        ("EC PRIVATE KEY", own_key),
        ("PRIVATE KEY", own_key),
        ("PUBLIC KEY", lines(base64_text(EcKey("p256").spki))),
        ("X509 CRL", body),
        ("CERTIFICATE REQUESTS", body),
    ):
        file = label.lower().replace(" ", "-")
        yield refuse(f"pem-label-{file}.pem", armour(content, label), "Pem::WrongLabel", f"label {label}")
    yield refuse("pem-label-lower-case.pem", armour(body, LABEL.lower()), "Pem::WrongLabel", "the label in lower case")
    yield refuse("pem-key-then-request.pem", private + block, "Pem::WrongLabel", "the private key, then the request")
    for file, data, note in (
        ("twice", block + block, "the same request twice"),
        ("two-requests", block + Request(key=Ed25519Key()).pem(), "two requests"),
        ("then-key", block + private, "the request, then its private key"),
        ("then-certificate", block + armour(body, "CERTIFICATE"), "the request, then another label"),
        ("text-between", block + b"and another:\n" + block, "text between two requests"),
    ):
        yield refuse(f"pem-several-{file}.pem", data, "Pem::SeveralBlocks", note)
    for file, data, note in (
        ("missing", block[: block.index(b"-----END")], "no END line"),
        ("cut", block[: len(block) // 2], "cut in the middle of the body"),
        ("certificate", armour(body, end="CERTIFICATE"), "END CERTIFICATE"),
        ("new", armour(body, end=f"NEW {LABEL}"), "BEGIN without and END with NEW"),
        ("old", armour(body, label=f"NEW {LABEL}", end=LABEL), "BEGIN with and END without NEW"),
        ("four-dashes", block.rstrip()[:-1] + b"\n", "the END line has four dashes at its end"),
    ):
        yield refuse(f"pem-end-{file}.pem", data, "Pem::NoEnd", note)
    padded = next(
        text
        for text in (base64_text(Request(attributes=(unknown_attribute(bytes(count)),)).der()) for count in range(100))
        if text.endswith("=") and not text.endswith("==")
    )
    for file, content, note in (
        ("exclamation", [body[0][:10] + "!" + body[0][11:], *body[1:]], "an exclamation mark in the body"),
        ("url-alphabet", lines("-_" + text[2:]), "the alphabet for URLs: - and _"),
        ("nul", [body[0][:-1] + "\0", *body[1:]], "a NUL in the body"),
        ("empty", [], "the body is empty"),
        ("header", ["Proc-Type: 4,ENCRYPTED", "", *body], "an RFC 1421 header before the body"),
        ("comment", [*body[:2], "# comment", *body[2:]], "a comment within the body"),
        ("no-padding", lines(padded.rstrip("=")), "the padding is missing"),
        ("padding-twice", lines(padded + "="), "one padding character too many"),
        ("padding-inside", lines(padded[:8] + "====" + padded[8:]), "padding in the middle"),
        ("spare-character", lines(padded[:-3]), "the last group of four has one character"),
        ("non-ascii", ["é" + body[0][1:], *body[1:]], "a letter with an accent in the body"),
    ):
        yield refuse(f"pem-base64-{file}.pem", armour(content), "Pem::Base64", note)
    spare_bits = padded[:-2] + chr(ord(padded[-2]) + 1) + "="
    yield refuse(
        "pem-base64-spare-bits.pem", armour(lines(spare_bits)), "Pem::Base64", "the unused bits of the end are not zero"
    )
    for file, after, note in (
        ("word", b"thanks!\n", "a line of text"),
        ("same-line", b"", "text on the END line"),
        ("nul", b"\0", "a NUL octet"),
        ("end-again", f"-----END {LABEL}-----\n".encode(), "a second END line"),
    ):
        data = block + after if after else block.rstrip() + b" thanks\n"
        yield refuse(f"pem-text-after-{file}.pem", data, "Pem::TrailingText", f"after the block: {note}")


def structure() -> Iterator[Fixture]:
    request = asking(dns_names(HOST))
    whole = request.der()
    info, algorithm, signature = request.info(), request.key.algorithm("sha256"), request.signature()

    for file, data, note in (
        ("octet.pem", pem(whole + b"\x00"), "one octet follows inside the PEM"),
        ("octet.der", whole + b"\x00", "one octet follows"),
        ("newline.der", whole + b"\n", "a newline follows the DER"),
        ("request.der", whole + whole, "the request twice"),
        ("null.pem", pem(whole + NULL), "an element follows"),
    ):
        yield refuse(f"trailing-{file}", data, "TrailingData", note)

    # RFC 5272 section 3.2: a CMC request is SignedData around PKIData, and Windows puts it in the armour of a request.
    signed_data = sequence(
        oid("1.2.840.113549.1.7.2"),
        context(0, sequence(integer(3), set_of(), sequence(oid("1.3.6.1.5.5.7.12.2")), set_of())),
    )
    for file, data, note in (
        ("cms.der", signed_data, "a CMC request in CMS"),
        ("cms.pem", pem(signed_data), f"a CMC request in CMS under {LABEL}"),
        ("cms-new-label.pem", pem(signed_data, f"NEW {LABEL}"), f"a CMC request in CMS under NEW {LABEL}"),
    ):
        yield refuse(file, data, "Message", note)

    for file, data, note in (
        ("empty.der", b"", "no octets"),
        ("text.der", b"not DER", "text"),
        ("zeros.der", bytes(64), "zeros"),
        ("null.pem", pem(NULL), "NULL"),
        ("cut-in-signature.pem", pem(whole[:-1]), "the last octet is missing"),
        ("cut-in-half.der", whole[: len(whole) // 2], "half of it"),
        ("cut-in-header.der", whole[:2], "the length is cut"),
        ("length-4-gigabytes.der", b"\x30\x84\xff\xff\xff\xff" + whole[4:], "claims 4 GiB"),
        ("length-of-127-octets.der", b"\x30\xff" + whole[4:], "a length of 127 octets"),
        ("pem-in-pem.pem", pem(request.pem()), "base64 of a PEM block"),
        ("spki.pem", pem(request.key.spki), "only the public key"),
        ("info.pem", pem(info), "only the signed part"),
        ("set.der", b"\x31" + whole[1:], "a SET instead of the outer SEQUENCE"),
        ("long-tag.der", b"\x3f\x10" + whole[1:], "the tag SEQUENCE in long form"),
        ("no-signature.der", sequence(info, algorithm), "the signature is missing"),
        (
            "fourth-element.der",
            sequence(info, algorithm, bit_string(signature), NULL),
            "an element after the signature",
        ),
        ("signature-octet-string.der", replace(request, wrap=octet_string).der(), "the signature is an OCTET STRING"),
        ("signature-bit-string-empty.der", sequence(info, algorithm, tlv(0x03)), "a BIT STRING without content"),
        (
            "signature-constructed.der",
            sequence(info, algorithm, tlv(0x23, bit_string(signature[:9]), bit_string(signature[9:]))),
            "the signature in two parts (BER)",
        ),
        (
            "algorithm-oid-empty.der",
            replace(request, algorithm=sequence(tlv(0x06))).der(),
            "an OBJECT IDENTIFIER without content",
        ),
        (
            "algorithm-oid-padded.der",
            replace(request, algorithm=sequence(padded_oid(algorithm))).der(),
            "an arc of the OBJECT IDENTIFIER begins with 80",
        ),
        (
            "algorithm-oid-cut.der",
            replace(request, algorithm=sequence(tlv(0x06, b"\x2a\x86"))).der(),
            "the last arc of the OBJECT IDENTIFIER is cut",
        ),
        ("length-indefinite.der", b"\x30\x80" + whole[4:] + b"\0\0", "indefinite length (BER)"),
        ("length-long-form.der", b"\x30\x83\x00" + whole[2:], "the outer length is an octet too long (BER)"),
        (
            "length-long-form-inside.der",
            sequence(info, b"\x30\x81" + algorithm[1:], bit_string(signature)),
            "the length of the signature algorithm is an octet too long (BER)",
        ),
    ):
        yield refuse(f"der-{file}", data, "Der", note)

    # The bit that is left out is zero, as DER wants; the rest is the signature without it.
    even = replace(request, wrap=lambda octets: bit_string(octets, 1)).varied(lambda octets: octets[-1] & 1 == 0)
    yield refuse(
        "der-signature-unused-bits.der",
        even.der(),
        "Der",
        "the signature has one unused bit",
        others_disagree="pyca does not look at the number of unused bits",
    )

    spki = request.key.spki
    key_algorithm, point = sequence(oid(keys.EC_PUBLIC_KEY), oid(keys.NAMED_CURVES["p256"][1])), request.key.point()
    password = attribute(CHALLENGE_PASSWORD, utf8("secret"))
    for file, parts, note in (
        ("fifth-element", [VERSION_1, request.subject, spki, context(0), NULL], "an element after the attributes"),
        ("no-version", [request.subject, spki, context(0)], "the version is missing"),
        ("no-subject", [VERSION_1, spki, context(0)], "the subject is missing"),
        ("subject-set", [VERSION_1, b"\x31" + request.subject[1:], spki, context(0)], "the subject is a SET"),
        (
            "subject-rdn-sequence",
            [VERSION_1, sequence(sequence(name_attribute(*common_name(HOST)))), spki, context(0)],
            "an RDN is a SEQUENCE",
        ),
        (
            "subject-attribute-extra",
            [VERSION_1, sequence(set_of(sequence(oid("2.5.4.3"), utf8(HOST), NULL))), spki, context(0)],
            "a third element beside the common name",
        ),
        (
            "subject-attribute-no-value",
            [VERSION_1, sequence(set_of(sequence(oid("2.5.4.3")))), spki, context(0)],
            "a common name without a value",
        ),
        (
            "subject-length-long-form",
            [VERSION_1, b"\x30\x81" + request.subject[1:], spki, context(0)],
            "the subject's length is an octet too long (BER)",
        ),
        (
            "subject-length-indefinite",
            [VERSION_1, b"\x30\x80" + request.subject[2:] + b"\0\0", spki, context(0)],
            "the subject has indefinite length (BER)",
        ),
        (
            "attributes-primitive",
            [VERSION_1, request.subject, spki, context_primitive(0, b"")],
            "attributes has the primitive tag 80",
        ),
        ("attributes-tag-1", [VERSION_1, request.subject, spki, context(1)], "attributes has tag [1]"),
        ("attributes-universal-set", [VERSION_1, request.subject, spki, set_of()], "attributes is a SET without [0]"),
        (
            "attribute-no-values",
            [VERSION_1, request.subject, spki, context(0, sequence(oid(CHALLENGE_PASSWORD)))],
            "an attribute without the SET of values",
        ),
        (
            "attribute-values-sequence",
            [VERSION_1, request.subject, spki, context(0, sequence(oid(CHALLENGE_PASSWORD), sequence(utf8("secret"))))],
            "an attribute's values are a SEQUENCE",
        ),
        (
            "attribute-extra",
            [
                VERSION_1,
                request.subject,
                spki,
                context(0, password[:1] + der.length(len(password)) + password[2:] + NULL),
            ],
            "a third element in an attribute",
        ),
        (
            "spki-unused-bits",
            [VERSION_1, request.subject, sequence(key_algorithm, bit_string(point, 1)), context(0)],
            "the key has one unused bit",
        ),
        (
            "spki-octet-string",
            [VERSION_1, request.subject, sequence(key_algorithm, octet_string(point)), context(0)],
            "the key is an OCTET STRING",
        ),
        (
            "spki-extra",
            [VERSION_1, request.subject, sequence(key_algorithm, bit_string(point), NULL), context(0)],
            "a third element in the SubjectPublicKeyInfo",
        ),
        ("version-padded", [tlv(0x02, b"\0\0"), request.subject, spki, context(0)], "version 0 in two octets"),
        ("version-empty", [tlv(0x02), request.subject, spki, context(0)], "the version is an INTEGER without content"),
        ("version-boolean", [FALSE, request.subject, spki, context(0)], "the version is a BOOLEAN"),
    ):
        data = request_of(sequence(*parts))
        yield refuse(f"der-{file}.der", data, "Der", note)
    # The one part that may be missing.
    yield accept(
        "der-no-attributes.der",
        request_of(sequence(VERSION_1, request.subject, spki)),
        "attributes [0] is left out, which RFC 2986 does not allow and devices do",
        others_disagree="pyca wants attributes [0]; OpenSSL does not",
    )

    modulus = RsaKey.of_bits(2048).modulus
    for file, public_key, note in (
        ("not-a-sequence", set_of(integer(modulus), integer(65537)), "RSAPublicKey is a SET"),
        ("no-exponent", sequence(integer(modulus)), "RSAPublicKey without exponent"),
        ("third-integer", sequence(integer(modulus), integer(65537), integer(1)), "RSAPublicKey with a third INTEGER"),
        ("trailing", sequence(integer(modulus), integer(65537)) + NULL, "an element after RSAPublicKey"),
        (
            "modulus-padded",
            sequence(tlv(0x02, b"\0" + integer(modulus)[4:]), integer(65537)),
            "the modulus has a zero octet too many",
        ),
        (
            "modulus-negative",
            sequence(tlv(0x02, modulus.to_bytes(256)), integer(65537)),
            "the modulus lacks its zero octet and is negative",
        ),
        (
            "exponent-padded",
            sequence(integer(modulus), tlv(0x02, b"\0\x01\0\x01")),
            "the exponent has a zero octet too many",
        ),
    ):
        request = Request(key=RsaKey.of_bits(2048), spki=rsa_spki(public_key))
        yield refuse(f"der-rsa-{file}.der", request.der(), "Der", note)


def padded_oid(algorithm: bytes) -> bytes:
    """The AlgorithmIdentifier's OID with its last arc written 80 xx."""
    identifier = algorithm[4:]
    return tlv(0x06, identifier[:-1], b"\x80", identifier[-1:])


def request_of(info: bytes) -> bytes:
    """A request around a signed part that is wrong, with a signature that is right."""
    request = Request()
    return request.around(info, request.key.sign(info, "sha256"))


def versions() -> Iterator[Fixture]:
    for number, file, note in (
        (1, "1", "version 1 (v2)"),
        (2, "2", "version 2 (v3, as in certificates)"),
        (255, "255", "version 255"),
        (2**70, "2-to-the-70", "a version of 71 bits"),
        (-1, "negative", "version -1"),
    ):
        yield refuse(f"version-{file}.pem", Request(version=integer(number)).pem(), "Version", note)
