"""Requests with a key that is not signed. The signature is valid where the key can make one."""

from collections.abc import Iterator
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import x25519

from . import accepted, keys, numbers, weak
from .der import (
    NULL,
    bit_string,
    integer,
    octet_string,
    oid,
    sequence,
)
from .fixture import Fixture, refuse
from .keys import DsaKey, EcKey, Ed448Key, Ed25519Key, RsaKey, ec_spki, ed25519_spki, rsa_spki
from .pkcs10 import (
    Request,
)

# Why OpenSSL has no verdict of its own.
NO_KEY = "OpenSSL does not load this key"
NO_PROOF = "no one has the private key"


def fixtures() -> Iterator[Fixture]:
    yield from key_algorithms()
    yield from curves_and_points()
    yield from edwards_points()
    yield from rsa_keys()


def key_algorithms() -> Iterator[Fixture]:
    yield refuse("key-dsa.pem", Request(key=DsaKey()).pem(), "KeyAlgorithm", "a DSA key that signs well")
    yield refuse("key-ed448.pem", Request(key=Ed448Key()).pem(), "KeyAlgorithm", "an Ed448 key that signs well")
    agreement = x25519.X25519PrivateKey.from_private_bytes(numbers.octets("x25519", 32)).public_key().public_bytes_raw()
    for file, algorithm, octets, note in (
        ("x25519", "1.3.101.110", agreement, "X25519 cannot sign; signed with an Ed25519 key"),
        ("x448", "1.3.101.111", agreement, "the identifier of X448; signed with an Ed25519 key"),
        ("unknown", "1.3.6.1.4.1.55555.4", agreement, "an unknown algorithm; signed with an Ed25519 key"),
    ):
        request = Request(key=Ed25519Key(), spki=sequence(sequence(oid(algorithm)), bit_string(octets)))
        yield refuse(f"key-{file}.pem", request.pem(), "KeyAlgorithm", note, others_disagree=NO_KEY)
    p256 = EcKey("p256")
    curve = oid(keys.NAMED_CURVES["p256"][1])
    for file, algorithm in (("ecdh", "1.3.132.1.12"), ("ecmqv", "1.3.132.1.13")):
        request = Request(spki=ec_spki(curve, p256.point(), algorithm))
        note = f"a P-256 key restricted to {file.upper()} (RFC 5480 section 2.1.2)"
        yield refuse(f"key-{file}.pem", request.pem(), "KeyAlgorithm", note, others_disagree=NO_KEY)
    key = RsaKey.of_bits(2048)
    public_key = sequence(integer(key.modulus), integer(key.exponent))
    pss = accepted.pss_request(key, "sha256")
    for file, request, parameters, algorithm, note in (
        ("rsa-pss", pss, b"", keys.RSA_PSS, "an RSA key restricted to PSS"),
        ("rsa-oaep", Request(key=key), NULL, "1.2.840.113549.1.1.7", "an RSA key restricted to OAEP"),
        ("rsa-sha256", Request(key=key), NULL, keys.RSA_WITH["sha256"], "a signature's identifier as the key's"),
    ):
        request = replace(request, spki=rsa_spki(public_key, parameters, algorithm))
        expected, disagree = ("RsaPss", "") if file == "rsa-pss" else ("KeyAlgorithm", NO_KEY)
        yield refuse(f"key-{file}.pem", request.pem(), expected, note, others_disagree=disagree)

    for file, parameters in (("absent", b""), ("empty-sequence", sequence()), ("integer", integer(0))):
        request = Request(key=key, spki=rsa_spki(public_key, parameters))
        note = f"rsaEncryption whose parameters are not NULL: {file.replace('-', ' ')}"
        yield refuse(f"key-parameters-rsa-{file}.pem", request.pem(), "KeyParameters", note)
    edwards = Ed25519Key()
    for file, parameters in (("null", NULL), ("empty-sequence", sequence())):
        request = Request(key=edwards, spki=ed25519_spki(edwards.octets, parameters))
        note = f"Ed25519 with parameters: {file.replace('-', ' ')}"
        yield refuse(f"key-parameters-ed25519-{file}.pem", request.pem(), "KeyParameters", note, others_disagree=NO_KEY)
    for file, parameters in (("absent", b""), ("null", NULL)):
        request = Request(spki=ec_spki(parameters, p256.point()))
        note = f"id-ecPublicKey without a curve: parameters {file}"
        yield refuse(f"key-parameters-ec-{file}.pem", request.pem(), "KeyParameters", note, others_disagree=NO_KEY)


P256_FIELD = 2**256 - 2**224 + 2**192 + 2**96 - 1
P256_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
P256_BASE = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)


def curves_and_points() -> Iterator[Fixture]:
    for curve in ("p192", "p224", "secp256k1", "brainpool256", "brainpool384"):
        yield refuse(f"curve-{curve}.pem", Request(key=EcKey(curve)).pem(), "Curve", f"a key on {curve}")
    p256 = EcKey("p256")
    own_point = p256.point()
    for file, curve, note in (
        ("sm2", "1.2.156.10197.1.301", "a P-256 point under the identifier of SM2"),
        ("unknown", "1.3.6.1.4.1.55555.5", "an unknown curve"),
    ):
        request = Request(spki=ec_spki(oid(curve), own_point))
        yield refuse(f"curve-{file}.pem", request.pem(), "Curve", note, others_disagree=NO_KEY)

    order = keys.GROUP_ORDERS["p256"]
    for file, base, cofactor, note, disagree in (
        ("p256", P256_BASE, integer(1), "P-256 spelled out", ""),
        ("p256-no-cofactor", P256_BASE, b"", "P-256 spelled out, without cofactor", ""),
        ("p256-other-base", own_point, integer(1), "P-256 whose base point is the key (CVE-2020-0601)", NO_PROOF),
    ):
        field = sequence(oid("1.2.840.10045.1.1"), integer(P256_FIELD))
        curve = sequence(octet_string((P256_FIELD - 3).to_bytes(32)), octet_string(P256_B.to_bytes(32)))
        parameters = sequence(integer(1), field, curve, octet_string(base), integer(order), cofactor)
        request = Request(spki=ec_spki(parameters, own_point))
        yield refuse(f"curve-explicit-{file}.pem", request.pem(), "ExplicitCurve", note, others_disagree=disagree)

    for curve in ("p256", "p384", "p521"):
        key = EcKey(curve)
        for form in ("compressed", "hybrid"):
            request = Request(key=key, spki=ec_spki(oid(keys.NAMED_CURVES[curve][1]), key.point(form)))
            yield refuse(f"point-{form}-{curve}.pem", request.pem(), "PointForm", f"a {form} point on {curve}")
    named = oid(keys.NAMED_CURVES["p256"][1])
    for file, point, note in (
        ("infinity", b"\x00", "the point at infinity"),
        ("empty", b"", "a key without octets"),
        ("unknown-form", b"\x05" + own_point[1:], "a point that begins with 05"),
        ("no-form", own_point[1:], "x and y without 04"),
        ("short", own_point[:-1], "the last octet of y is missing"),
        ("long", own_point + b"\x00", "an octet follows y"),
        ("of-p384", EcKey("p384").point(), "a P-384 point under the identifier of P-256"),
    ):
        request = Request(spki=ec_spki(named, point))
        yield refuse(f"point-{file}.pem", request.pem(), "PointForm", note, others_disagree=NO_KEY)

    x, y = own_point[1:33], own_point[33:]
    root = next(root for root in range(1, 100) if p256_y(root) is not None)
    for file, point, note in (
        ("y-plus-1", b"\x04" + x + bytes([*y[:-1], y[-1] ^ 1]), "the last bit of y is flipped"),
        ("zero", b"\x04" + bytes(64), "x and y are zero"),
        (
            "x-not-reduced",
            b"\x04" + (root + P256_FIELD).to_bytes(32) + p256_y(root).to_bytes(32),
            "a point with x written as x + p",
        ),
        ("all-ones", b"\x04" + b"\xff" * 64, "x and y are not below p"),
        ("swapped", b"\x04" + y + x, "x and y swapped"),
    ):
        request = Request(spki=ec_spki(named, point))
        yield refuse(f"point-off-p256-{file}.pem", request.pem(), "PointNotOnCurve", note, others_disagree=NO_KEY)
    for curve in ("p384", "p521"):
        key = EcKey(curve)
        point = key.point()
        spki = ec_spki(oid(keys.NAMED_CURVES[curve][1]), point[:-1] + bytes([point[-1] ^ 1]))
        request = Request(key=key, spki=spki)
        note = f"{curve}: the last bit of y is flipped"
        yield refuse(f"point-off-{curve}.pem", request.pem(), "PointNotOnCurve", note, others_disagree=NO_KEY)


def p256_y(x: int) -> int | None:
    """A y for this x, if there is one."""
    square = (x**3 - 3 * x + P256_B) % P256_FIELD
    y = pow(square, (P256_FIELD + 1) // 4, P256_FIELD)
    return y if y * y % P256_FIELD == square else None


def edwards_points() -> Iterator[Fixture]:
    for number, octets in enumerate(weak.small_order_points()):
        order = 8 // max(1, (number & -number) if number else 8)
        request = Request(key=weak.SmallOrderKey(octets))
        note = f"a point of order {order}, with a signature that holds the equation"
        yield refuse(f"ed25519-order-{order}-{number}.pem", request.pem(), "Ed25519Point", note)
    key = Ed25519Key()
    for file, octets, note in (
        ("short", key.octets[:-1], "31 octets"),
        ("long", key.octets + b"\0", "33 octets"),
        ("empty", b"", "no octets"),
        ("not-reduced", weak.y_not_reduced(), "y is written as y + p"),
        ("identity-not-reduced", (2**255 - 18).to_bytes(32, "little"), "the identity with y written as p + 1"),
        ("identity-negative-zero", b"\x01" + bytes(30) + b"\x80", "the identity with the sign of x set"),
        ("octet-string", octet_string(key.octets), "an OCTET STRING within the BIT STRING"),
    ):
        request = Request(key=key, spki=ed25519_spki(octets))
        yield refuse(f"ed25519-{file}.pem", request.pem(), "Ed25519Point", note, others_disagree=NO_KEY)
    # AWS-LC reads the point when it verifies and does not tell the two apart.
    yield refuse(
        "ed25519-off-curve.pem",
        Request(key=key, spki=ed25519_spki(weak.y_off_curve())).pem(),
        "Ed25519Point|ProofOfPossession",
        "no point has this y",
        others_disagree=NO_KEY,
    )


def rsa_keys() -> Iterator[Fixture]:
    for bits in (1024, 1536, 2040, 2047, 8193, 8200):
        request = Request(key=RsaKey.of_bits(bits))
        yield refuse(f"rsa-size-{bits}.der", request.der(), "RsaModulusSize", f"a modulus of {bits} bits")

    for exponent in (3, 5, 17, 257, 65535, 65536 - 5, 2**31 + 11, 2**32 + 15, 2**64 + 13, 2**2000 + 1):
        file = str(exponent) if exponent < 2**40 else f"of-{exponent.bit_length()}-bits"
        request = Request(key=weak.rsa_with_exponent(exponent))
        yield refuse(f"rsa-exponent-{file}.der", request.der(), "RsaExponent", f"public exponent {file}")
    yield refuse(
        "rsa-exponent-1.der",
        Request(key=RsaKey(RsaKey.of_bits(2048).primes, 1)).der(),
        "RsaExponent",
        "public exponent 1",
    )
    for exponent in (2, 65536, 65538, 2**20):
        # An even exponent has a root for one message in four.
        request = Request(key=weak.rsa_with_exponent(exponent)).varied(lambda signature: True)
        yield refuse(
            f"rsa-exponent-{exponent}.der", request.der(), "RsaExponent", f"the even public exponent {exponent}"
        )
    key = RsaKey.of_bits(2048)
    request = Request(key=key, spki=rsa_spki(sequence(integer(key.modulus), integer(0))))
    yield refuse("rsa-exponent-0.der", request.der(), "RsaExponent", "public exponent 0", others_disagree=NO_PROOF)

    for factors in ((2,), (3,), (5,), (101,), (743,), (751,), (3, 5, 7), (3, 3)):
        key = weak.rsa_with_factors(*factors)
        file = "-".join(map(str, factors))
        note = f"the modulus is divisible by {' and '.join(map(str, factors))}"
        disagree = NO_KEY if 2 in factors else ""
        yield refuse(f"rsa-factor-{file}.der", Request(key=key).der(), "RsaSmallFactor", note, others_disagree=disagree)
    key = weak.rsa_with_factors(751, bits=4096)
    yield refuse("rsa-factor-751-4096.der", Request(key=key).der(), "RsaSmallFactor", "4096 bits, divisible by 751")

    for bits in (2048, 3072, 4096):
        request = Request(key=weak.rsa_roca(bits))
        yield refuse(f"rsa-roca-{bits}.der", request.der(), "RsaRoca", f"{bits} bits with the ROCA fingerprint")

    for bits, rounds in ((2048, 0), (2048, 10), (2048, 60), (2048, 97), (3072, 0), (4096, 30)):
        key = weak.rsa_close_primes(bits, rounds)
        counted = weak.fermat_rounds(key)
        assert counted <= 100
        yield refuse(
            f"rsa-close-{bits}-{rounds}.der",
            Request(key=key).der(),
            "RsaClosePrimes",
            f"{bits} bits, Fermat's method takes {counted} rounds",
        )
    yield refuse(
        "rsa-close-square.der",
        Request(key=weak.rsa_square()).der(),
        "RsaClosePrimes",
        "the modulus is the square of a prime",
    )
