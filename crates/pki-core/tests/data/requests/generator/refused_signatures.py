"""Requests whose signature is of the wrong kind, or not of this key over these octets."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from . import accepted, keys, numbers, weak
from .der import (
    NULL,
    context,
    integer,
    oid,
    printable,
    sequence,
    set_of,
    tlv,
    utf8,
)
from .fixture import Fixture, refuse
from .keys import DsaKey, EcKey, Ed448Key, Ed25519Key, RsaKey
from .pkcs10 import (
    CHALLENGE_PASSWORD,
    EMPTY_NAME,
    HOST,
    ORGANIZATION,
    Request,
    attribute,
    common_name,
    dns_names,
    extension_request,
    name,
    pem,
    subject,
    unknown_attribute,
)

# Why OpenSSL has no verdict of its own.
UNKNOWN_HERE = "OpenSSL 3.0 does not know it"


def fixtures() -> Iterator[Fixture]:
    yield from signature_algorithms()
    yield from changed_after_signing()
    yield from signature_values()


def signature_algorithms() -> Iterator[Fixture]:
    rsa, p256, edwards = RsaKey.of_bits(2048), EcKey("p256"), Ed25519Key()
    for file, request, note in (
        ("rsa-md5", Request(key=rsa, digest="md5"), "RSA with MD5"),
        ("rsa-sha1", Request(key=rsa, digest="sha1"), "RSA with SHA-1"),
        ("rsa-4096-sha1", Request(key=RsaKey.of_bits(4096), digest="sha1"), "RSA of 4096 bits with SHA-1"),
        ("p256-sha1", Request(digest="sha1"), "P-256 with SHA-1"),
        ("p384-sha1", Request(key=EcKey("p384"), digest="sha1"), "P-384 with SHA-1"),
        ("p521-sha1", Request(key=EcKey("p521"), digest="sha1"), "P-521 with SHA-1"),
        ("rsa-pss-sha1", accepted.pss_request(rsa, "sha1"), "PSS with SHA-1, all parameters left to their defaults"),
    ):
        yield refuse(f"digest-{file}.pem", request.pem(), "WeakDigest", note)

    for file, request, note in (
        ("rsa-sha224", Request(key=rsa, digest="sha224"), "RSA with SHA-224"),
        ("rsa-sha512-256", Request(key=rsa, digest="sha512_256"), "RSA with SHA-512/256"),
        ("rsa-sha3-256", Request(key=rsa, digest="sha3_256"), "RSA with SHA3-256"),
        ("p256-sha224", Request(digest="sha224"), "P-256 with SHA-224"),
        ("p256-sha3-256", Request(digest="sha3_256"), "P-256 with SHA3-256"),
    ):
        disagree = UNKNOWN_HERE if file in ("rsa-sha512-256", "p256-sha3-256") else ""
        yield refuse(f"signature-{file}.pem", request.pem(), "SignatureAlgorithm", note, others_disagree=disagree)
    for file, key, algorithm, note in (
        ("rsa-encryption", rsa, sequence(oid(keys.RSA_ENCRYPTION), NULL), "rsaEncryption as the signature algorithm"),
        ("ec-public-key", p256, sequence(oid(keys.EC_PUBLIC_KEY)), "id-ecPublicKey as the signature algorithm"),
        ("unknown", p256, sequence(oid("1.3.6.1.4.1.55555.6")), "an unknown signature algorithm"),
        ("dsa-sha256", p256, DsaKey().algorithm("sha256"), "DSA with SHA-256 claimed by a P-256 key"),
        ("ed448", edwards, sequence(oid(Ed448Key.OID)), "Ed448 claimed by an Ed25519 key"),
    ):
        request = Request(key=key, algorithm=algorithm)
        yield refuse(
            f"signature-{file}.pem",
            request.pem(),
            "SignatureAlgorithm",
            note,
            others_disagree="OpenSSL: unknown or another algorithm",
        )

    names = {"rsa": rsa, "p256": p256, "ed25519": edwards}
    for (own, key), (claimed, other) in itertools.permutations(names.items(), 2):
        request = Request(key=key, algorithm=other.algorithm("sha256"))
        note = f"a {own} key, its own signature, and the identifier of {claimed}"
        yield refuse(
            f"mismatch-{own}-as-{claimed}.pem",
            request.pem(),
            "SignatureKeyMismatch",
            note,
            others_disagree="OpenSSL refuses too, or looks at the key only",
        )
    request = Request(key=p256, algorithm=rsa.algorithm("sha256"), sign=lambda info: rsa.sign(info, "sha256"))
    yield refuse(
        "mismatch-p256-signed-by-rsa.pem",
        request.pem(),
        "SignatureKeyMismatch",
        "a P-256 key, signed by an RSA key and saying so",
        others_disagree="OpenSSL refuses too",
    )
    request = Request(key=p256, algorithm=keys.pss_algorithm("sha256"))
    yield refuse(
        "mismatch-p256-as-pss.pem",
        request.pem(),
        "SignatureKeyMismatch",
        "a P-256 key and the identifier of PSS",
        others_disagree="OpenSSL refuses too",
    )

    sha256 = keys.ECDSA_WITH["sha256"]
    for file, key, algorithm, note in (
        ("ecdsa-null", p256, sequence(oid(sha256), NULL), "ECDSA with NULL (RFC 5758: absent)"),
        ("ecdsa-curve", p256, sequence(oid(sha256), oid(keys.NAMED_CURVES["p256"][1])), "ECDSA with the curve"),
        ("ecdsa-p384-null", EcKey("p384"), sequence(oid(sha256), NULL), "ECDSA of P-384 with NULL"),
        ("rsa-empty-sequence", rsa, sequence(oid(keys.RSA_WITH["sha256"]), sequence()), "RSA with an empty SEQUENCE"),
        ("ed25519-null", edwards, sequence(oid(keys.ED25519), NULL), "Ed25519 with NULL (RFC 8410: absent)"),
    ):
        request = Request(key=key, algorithm=algorithm)
        yield refuse(f"signature-parameters-{file}.pem", request.pem(), "SignatureParameters", note)
    for file, algorithm, note in (
        ("absent", sequence(oid(keys.RSA_PSS)), "PSS without parameters"),
        ("null", sequence(oid(keys.RSA_PSS), NULL), "PSS with NULL"),
        ("trailer-2", keys.pss_algorithm("sha256", trailer=context(3, integer(2))), "PSS with trailer field 2"),
        ("other-mask", keys.pss_algorithm("sha256", mask_digest="sha512"), "PSS with SHA-256 and a mask of SHA-512"),
    ):
        request = accepted.pss_request(rsa, "sha256", algorithm)
        yield refuse(
            f"signature-parameters-pss-{file}.pem",
            request.pem(),
            "SignatureParameters",
            note,
            others_disagree="OpenSSL refuses too",
        )


def changed_after_signing() -> Iterator[Fixture]:
    organization = (ORGANIZATION, utf8("Example"))
    changed = (ORGANIZATION, utf8("Examplf"))
    signed_by = {"p256": EcKey("p256"), "p384": EcKey("p384"), "ed25519": Ed25519Key(), "rsa": RsaKey.of_bits(2048)}
    for file, key in signed_by.items():
        good = Request(key=key, subject=name(organization, common_name(HOST)))
        other = replace(good, subject=name(changed, common_name(HOST)))
        data = good.around(other.info(), good.signature())
        yield refuse(
            f"possession-subject-{file}.pem", pem(data), "ProofOfPossession", f"{file}: two bits of O were flipped"
        )
    for file, key, other_key in (
        ("p256", EcKey("p256"), EcKey("p256", "other")),
        ("p521", EcKey("p521"), EcKey("p521", "other")),
        ("ed25519", Ed25519Key(), Ed25519Key("other")),
        ("rsa", RsaKey.of_bits(2048), RsaKey.of_bits(2048, "other")),
    ):
        request = Request(key=key, sign=lambda info, key=other_key: key.sign(info, "sha256"))
        yield refuse(
            f"possession-other-key-{file}.pem", request.pem(), "ProofOfPossession", f"{file}: signed with another key"
        )
        good = Request(key=other_key)
        data = good.around(Request(key=key).info(), good.signature())
        yield refuse(
            f"possession-key-replaced-{file}.pem",
            pem(data),
            "ProofOfPossession",
            f"{file}: the key was replaced after signing",
        )

    def attribute_of(text: str) -> tuple[bytes, ...]:
        return (attribute(CHALLENGE_PASSWORD, utf8(text)),)

    requested = extension_request(dns_names(HOST))
    unknown = unknown_attribute(b"")
    for file, before, after, note in (
        (
            "attribute",
            {"attributes": attribute_of("secret")},
            {"attributes": attribute_of("secres")},
            "a bit of an attribute was flipped",
        ),
        ("attribute-added", {}, {"attributes": attribute_of("secret")}, "an attribute was added"),
        ("attribute-removed", {"attributes": attribute_of("secret")}, {}, "an attribute was removed"),
        (
            "san-case",
            {"attributes": (extension_request(dns_names(HOST.upper())),)},
            {"attributes": (requested,)},
            "SAN was put in lower case",
        ),
        ("cn-case", {"subject": subject(HOST.upper())}, {"subject": subject(HOST)}, "CN was put in lower case"),
        (
            "cn-type",
            {"subject": subject(printable(HOST))},
            {"subject": subject(utf8(HOST))},
            "CN changed its string type",
        ),
        (
            "sorted-signed",
            {"attributes": (unknown, requested)},
            {"attribute_set": context(0, *sorted([unknown, requested], reverse=True))},
            "signed with sorted attributes, sent unsorted",
        ),
        (
            "unsorted-signed",
            {"attribute_set": context(0, *sorted([unknown, requested], reverse=True))},
            {"attributes": (unknown, requested)},
            "signed with unsorted attributes, sent sorted",
        ),
        ("empty-attributes-signed", {"attribute_set": b""}, {}, "signed without attributes [0], sent with it"),
        ("set-signed", {"attribute_set": set_of()}, {}, "signed over the attributes as SET, sent as [0]"),
        ("version-signed", {"version": integer(1)}, {}, "signed with version 1, sent with 0"),
    ):
        good = Request(**before)
        data = good.around(Request(**after).info(), good.signature())
        yield refuse(f"possession-{file}.pem", pem(data), "ProofOfPossession", note)
    good = Request()
    content = good.info()[2 + (good.info()[1] & 0x7F if good.info()[1] & 0x80 else 0) :]
    for file, message, note in (
        ("content-only", content, "signed over the content without its header"),
        ("nothing", b"", "signed over nothing"),
        ("spki-only", good.key.spki, "signed over the key only"),
    ):
        data = good.around(good.info(), good.key.sign(message, "sha256"))
        yield refuse(f"possession-{file}.pem", pem(data), "ProofOfPossession", note)


def signature_values() -> Iterator[Fixture]:
    yield from ecdsa_values()
    yield from rsa_values()
    yield from ed25519_values()


def ecdsa_values() -> Iterator[Fixture]:
    request = Request()
    order = keys.GROUP_ORDERS["p256"]
    r, s = request.key.sign_pair(request.info())
    good = sequence(integer(r), integer(s))
    bare = r.to_bytes(32) + s.to_bytes(32)
    top_bit = request.varied(lambda signature: signature[3] == 33)
    r_top, s_top = top_bit.key.sign_pair(top_bit.info())

    def padded(number: int) -> bytes:
        return tlv(0x02, b"\0" + integer(number)[2:])

    for file, signature, note in (
        ("r-padded", sequence(padded(r), integer(s)), "r has a zero octet too many"),
        ("s-padded", sequence(integer(r), padded(s)), "s has a zero octet too many"),
        ("trailing-inside", sequence(integer(r), integer(s), NULL), "a third element in the signature"),
        ("trailing-octet", good + b"\0", "an octet follows the signature"),
        ("long-form", b"\x30\x81" + good[1:], "the length is an octet too long"),
        ("indefinite", b"\x30\x80" + good[2:] + b"\0\0", "indefinite length"),
        ("raw", bare, "r and s as 64 octets (IEEE P1363)"),
        ("empty", b"", "no octets"),
        ("r-zero", sequence(integer(0), integer(s)), "r is 0"),
        ("s-zero", sequence(integer(r), integer(0)), "s is 0"),
        ("zeros", sequence(integer(0), integer(0)), "r and s are 0 (CVE-2022-21449)"),
        ("orders", sequence(integer(order), integer(order)), "r and s are the group's order"),
        ("ones", sequence(integer(1), integer(1)), "r and s are 1"),
        ("s-plus-order", sequence(integer(r), integer(s + order)), "s + n instead of s"),
        ("r-plus-order", sequence(integer(r + order), integer(s)), "r + n instead of r"),
        ("s-negative", sequence(integer(r), integer(-s)), "s is negative"),
        ("swapped", sequence(integer(s), integer(r)), "r and s swapped"),
        ("set", b"\x31" + good[1:], "a SET instead of the SEQUENCE"),
        ("bit-flipped", good[:-1] + bytes([good[-1] ^ 1]), "the last bit is flipped"),
    ):
        data = request.around(request.info(), signature)
        yield refuse(f"ecdsa-{file}.der", data, "ProofOfPossession", f"ECDSA: {note}")
    unsigned = sequence(tlv(0x02, r_top.to_bytes(32)), integer(s_top))
    data = top_bit.around(top_bit.info(), unsigned)
    yield refuse(
        "ecdsa-r-without-sign-octet.der", data, "ProofOfPossession", "ECDSA: r lacks its zero octet and is negative"
    )
    for file, key, claimed, signed in (
        ("p256", EcKey("p256"), "sha256", "sha384"),
        ("p384", EcKey("p384"), "sha384", "sha256"),
        ("p521", EcKey("p521"), "sha512", "sha256"),
    ):
        request = Request(key=key, digest=claimed, sign=lambda info, key=key, digest=signed: key.sign(info, digest))
        yield refuse(
            f"ecdsa-{file}-other-digest.der",
            request.der(),
            "ProofOfPossession",
            f"{file}: says {claimed}, signed with {signed}",
        )


def rsa_values() -> Iterator[Fixture]:
    key = RsaKey.of_bits(2048)
    request = Request(key=key)
    info, good = request.info(), request.signature()
    known = keys.digest_info(info, "sha256")
    overflowing = request.varied(lambda signature: int.from_bytes(signature) + key.modulus < 1 << 2048)
    encoded = keys.pkcs1_v1_5(known, 256)
    garbage = b"\x00\x01" + b"\xff" * 8 + b"\x00" + known
    for file, signature, note in (
        (
            "no-null",
            key.sign_encoded(keys.pkcs1_v1_5(keys.digest_info(info, "sha256", b""), 256)),
            "DigestInfo without NULL",
        ),
        (
            "digest-only",
            key.sign_encoded(keys.pkcs1_v1_5(keys.hash_of(info, "sha256"), 256)),
            "the digest without DigestInfo",
        ),
        ("other-digest-info", key.sign(info, "sha512"), "says SHA-256, DigestInfo says SHA-512"),
        ("sha1-inside", key.sign(info, "sha1"), "says SHA-256, DigestInfo says SHA-1"),
        ("block-type-2", key.sign_encoded(b"\x00\x02" + encoded[2:]), "padding of block type 2"),
        (
            "block-type-0",
            key.sign_encoded(b"\x00\x00" + bytes(len(encoded) - 2 - len(known)) + known),
            "padding of block type 0",
        ),
        (
            "garbage-after-digest",
            key.sign_encoded(garbage + numbers.octets("garbage", 256 - len(garbage))),
            "octets follow DigestInfo (CVE-2006-4339)",
        ),
        ("padding-not-ff", key.sign_encoded(encoded[:9] + b"\xfe" + encoded[10:]), "a padding octet is FE"),
        ("no-padding", key.sign_encoded(bytes(256 - 32) + keys.hash_of(info, "sha256")), "no padding"),
        ("longer", b"\0" + good, "a zero octet before the signature"),
        ("trailing", good + b"\0", "a zero octet after the signature"),
        ("shorter", good[:-1], "the last octet is missing"),
        ("empty", b"", "no octets"),
        ("zero", bytes(256), "the number 0"),
        ("one", bytes(255) + b"\x01", "the number 1"),
        ("bit-flipped", good[:-1] + bytes([good[-1] ^ 1]), "the last bit is flipped"),
        ("pss", key.sign_pss(info, "sha256"), "says PKCS#1 v1.5, signed with PSS"),
    ):
        yield refuse(f"rsa-signature-{file}.der", request.around(info, signature), "ProofOfPossession", f"RSA: {note}")
    number = int.from_bytes(overflowing.signature()) + key.modulus
    data = overflowing.around(overflowing.info(), number.to_bytes(256))
    yield refuse("rsa-signature-plus-modulus.der", data, "ProofOfPossession", "RSA: s + n instead of s")

    stripped = request.varied(lambda signature: signature[0] == 0)
    data = stripped.around(stripped.info(), stripped.signature()[1:])
    yield refuse(
        "rsa-signature-zero-stripped.der",
        data,
        "ProofOfPossession",
        "RSA: the leading zero octet of the signature is left out",
    )

    pss = accepted.pss_request(key, "sha256")
    encoded = keys.pss(info, "sha256", 2047)
    for file, signature, note in (
        ("salt-20", key.sign_pss(info, "sha256", 20), "the salt has 20 octets, not the 32 of the parameters"),
        ("salt-none", key.sign_pss(info, "sha256", 0), "no salt"),
        ("other-digest", key.sign_pss(info, "sha384"), "says SHA-256, signed with SHA-384"),
        ("pkcs1", good, "says PSS, signed with PKCS#1 v1.5"),
        ("no-trailer", key.sign_encoded(encoded[:-1] + b"\xbb"), "the encoded message does not end with BC"),
        (
            "other-subject",
            key.sign_pss(Request(key=key, subject=EMPTY_NAME).info(), "sha256"),
            "signed over another subject",
        ),
    ):
        yield refuse(f"rsa-pss-{file}.der", pss.around(info, signature), "ProofOfPossession", f"PSS: {note}")


def ed25519_values() -> Iterator[Fixture]:
    key = Ed25519Key()
    request = Request(key=key)
    info, good = request.info(), request.signature()
    scalar = int.from_bytes(good[32:], "little")
    for file, signature, note in (
        (
            "s-plus-order",
            good[:32] + (scalar + weak.GROUP_ORDER).to_bytes(32, "little"),
            "S + L instead of S (RFC 8032 section 5.1.7)",
        ),
        ("short", good[:-1], "63 octets"),
        ("long", good + b"\0", "65 octets"),
        ("empty", b"", "no octets"),
        ("zeros", bytes(64), "64 zero octets"),
        ("bit-flipped", bytes([good[0] ^ 1]) + good[1:], "the first bit is flipped"),
        ("prehashed", key.sign(keys.hash_of(info, "sha512")), "signed over the SHA-512 of the request"),
        (
            "r-small-order",
            weak.small_order_commitment(key, info),
            "R is the identity: valid in RFC 8032, refused by strict verifiers",
        ),
    ):
        disagree = "the equation holds, and OpenSSL does not look at the order of R" if file == "r-small-order" else ""
        yield refuse(
            f"ed25519-signature-{file}.der",
            request.around(info, signature),
            "ProofOfPossession",
            f"Ed25519: {note}",
            others_disagree=disagree,
        )
