"""Keys and the signatures that they make over a CertificationRequestInfo."""

import functools
import hashlib
import itertools
import math
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from . import numbers
from .der import NULL, bit_string, context, integer, octet_string, oid, sequence

EC_PUBLIC_KEY = "1.2.840.10045.2.1"
RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
RSA_PSS = "1.2.840.113549.1.1.10"
MGF1 = "1.2.840.113549.1.1.8"
ED25519 = "1.3.101.112"

NAMED_CURVES = {
    "p192": (ec.SECP192R1(), "1.2.840.10045.3.1.1"),
    "p224": (ec.SECP224R1(), "1.3.132.0.33"),
    "p256": (ec.SECP256R1(), "1.2.840.10045.3.1.7"),
    "p384": (ec.SECP384R1(), "1.3.132.0.34"),
    "p521": (ec.SECP521R1(), "1.3.132.0.35"),
    "secp256k1": (ec.SECP256K1(), "1.3.132.0.10"),
    "brainpool256": (ec.BrainpoolP256R1(), "1.3.36.3.3.2.8.1.1.7"),
    "brainpool384": (ec.BrainpoolP384R1(), "1.3.36.3.3.2.8.1.1.11"),
}
GROUP_ORDERS = {
    "p256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
}
DIGESTS = {
    "md5": (hashes.MD5(), "1.2.840.113549.2.5"),
    "sha1": (hashes.SHA1(), "1.3.14.3.2.26"),
    "sha224": (hashes.SHA224(), "2.16.840.1.101.3.4.2.4"),
    "sha256": (hashes.SHA256(), "2.16.840.1.101.3.4.2.1"),
    "sha384": (hashes.SHA384(), "2.16.840.1.101.3.4.2.2"),
    "sha512": (hashes.SHA512(), "2.16.840.1.101.3.4.2.3"),
    "sha512_256": (hashes.SHA512_256(), "2.16.840.1.101.3.4.2.6"),
    "sha3_256": (hashes.SHA3_256(), "2.16.840.1.101.3.4.2.8"),
}
ECDSA_WITH = {
    "sha1": "1.2.840.10045.4.1",
    "sha224": "1.2.840.10045.4.3.1",
    "sha256": "1.2.840.10045.4.3.2",
    "sha384": "1.2.840.10045.4.3.3",
    "sha512": "1.2.840.10045.4.3.4",
    "sha3_256": "2.16.840.1.101.3.4.3.10",
}
RSA_WITH = {
    "md5": "1.2.840.113549.1.1.4",
    "sha1": "1.2.840.113549.1.1.5",
    "sha224": "1.2.840.113549.1.1.14",
    "sha256": "1.2.840.113549.1.1.11",
    "sha384": "1.2.840.113549.1.1.12",
    "sha512": "1.2.840.113549.1.1.13",
    "sha512_256": "1.2.840.113549.1.1.16",
    "sha3_256": "2.16.840.1.101.3.4.3.14",
}


class Key(Protocol):
    """What a request needs of its key."""

    @property
    def spki(self) -> bytes:
        """SubjectPublicKeyInfo."""

    def algorithm(self, digest: str) -> bytes:
        """AlgorithmIdentifier of the signatures."""

    def sign(self, message: bytes, digest: str) -> bytes: ...


@dataclass(frozen=True)
class EcKey:
    curve: str
    label: str = ""

    @functools.cached_property
    def private(self) -> ec.EllipticCurvePrivateKey:
        curve = NAMED_CURVES[self.curve][0]
        return ec.derive_private_key(numbers.below(f"{self.curve} {self.label}", 1 << curve.key_size - 1), curve)

    def point(self, form: str = "uncompressed") -> bytes:
        numbers_ = self.private.public_key().public_numbers()
        size = (self.private.key_size + 7) // 8
        x, y = numbers_.x.to_bytes(size), numbers_.y.to_bytes(size)
        odd = numbers_.y & 1
        match form:
            case "compressed":
                return bytes([2 + odd]) + x
            case "hybrid":
                return bytes([6 + odd]) + x + y
            case _:
                return b"\x04" + x + y

    @property
    def spki(self) -> bytes:
        return ec_spki(oid(NAMED_CURVES[self.curve][1]), self.point())

    def algorithm(self, digest: str) -> bytes:
        return sequence(oid(ECDSA_WITH[digest]))

    def sign(self, message: bytes, digest: str) -> bytes:
        return self.private.sign(message, ec.ECDSA(DIGESTS[digest][0], deterministic_signing=True))

    def sign_pair(self, message: bytes, digest: str = "sha256") -> tuple[int, int]:
        """r and s."""
        return decode_dss_signature(self.sign(message, digest))


def ec_spki(parameters: bytes, point: bytes, algorithm: str = EC_PUBLIC_KEY) -> bytes:
    return sequence(sequence(oid(algorithm), parameters), bit_string(point))


@dataclass(frozen=True)
class Ed25519Key:
    label: str = ""

    @property
    def seed(self) -> bytes:
        return numbers.octets(f"ed25519 {self.label}", 32)

    @functools.cached_property
    def private(self) -> ed25519.Ed25519PrivateKey:
        return ed25519.Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def octets(self) -> bytes:
        return self.private.public_key().public_bytes_raw()

    @property
    def spki(self) -> bytes:
        return ed25519_spki(self.octets)

    def algorithm(self, digest: str = "") -> bytes:
        return sequence(oid(ED25519))

    def sign(self, message: bytes, digest: str = "") -> bytes:
        return self.private.sign(message)


def ed25519_spki(octets: bytes, parameters: bytes = b"") -> bytes:
    return sequence(sequence(oid(ED25519), parameters), bit_string(octets))


@dataclass(frozen=True)
class RsaKey:
    """Textbook RSA, so that a key may be as weak as a fixture needs."""

    primes: tuple[int, ...]
    exponent: int = 65537

    @classmethod
    def of_bits(cls, bits: int, label: str = "") -> "RsaKey":
        return cls(tuple(numbers.primes_of_product(f"rsa {bits} {label}", bits)))

    @functools.cached_property
    def modulus(self) -> int:
        return math.prod(self.primes)

    @property
    def size(self) -> int:
        """Octets of a signature."""
        return (self.modulus.bit_length() + 7) // 8

    @functools.cached_property
    def _roots(self) -> list[tuple[int, int]]:
        """For each prime power of the modulus: it, and the exponent that takes the root.

        An even public exponent has roots in the odd part of the group only.
        """
        roots = []
        for prime, group in itertools.groupby(sorted(self.primes)):
            power = len(list(group))
            order = prime ** (power - 1) * (prime - 1)
            if self.exponent % 2 == 0:
                assert order % 4 == 2, "choose primes that are 3 modulo 4"
                order //= 2
            roots.append((prime**power, pow(self.exponent, -1, order)))
        return roots

    @property
    def spki(self) -> bytes:
        return rsa_spki(sequence(integer(self.modulus), integer(self.exponent)))

    @property
    def private(self) -> rsa.RSAPrivateKey:
        """For other programs; the modulus must have two primes."""
        first, second = self.primes
        d = pow(self.exponent, -1, math.lcm(first - 1, second - 1))
        public = rsa.RSAPublicNumbers(self.exponent, self.modulus)
        return rsa.RSAPrivateNumbers(
            first, second, d, d % (first - 1), d % (second - 1), pow(second, -1, first), public
        ).private_key()

    def algorithm(self, digest: str) -> bytes:
        return sequence(oid(RSA_WITH[digest]), NULL)

    def sign(self, message: bytes, digest: str) -> bytes:
        return self.sign_encoded(pkcs1_v1_5(digest_info(message, digest), self.size))

    def sign_pss(self, message: bytes, digest: str, salt_octets: int | None = None) -> bytes:
        return self.sign_encoded(pss(message, digest, self.modulus.bit_length() - 1, salt_octets))

    def sign_encoded(self, encoded: bytes) -> bytes:
        """The root of an encoded message; ValueError where there is none."""
        message = int.from_bytes(encoded)
        signature = 0
        for power, d in self._roots:
            others = self.modulus // power
            signature += pow(message, d, power) * pow(others, -1, power) * others
        signature %= self.modulus
        if pow(signature, self.exponent, self.modulus) != message:
            raise ValueError("this message has no signature")
        return signature.to_bytes(self.size)


def rsa_spki(public_key: bytes, parameters: bytes = NULL, algorithm: str = RSA_ENCRYPTION) -> bytes:
    return sequence(sequence(oid(algorithm), parameters), bit_string(public_key))


def hash_of(message: bytes, digest: str) -> bytes:
    context = hashes.Hash(DIGESTS[digest][0])
    context.update(message)
    return context.finalize()


def digest_info(message: bytes, digest: str, parameters: bytes = NULL) -> bytes:
    return sequence(sequence(oid(DIGESTS[digest][1]), parameters), octet_string(hash_of(message, digest)))


def pkcs1_v1_5(info: bytes, size: int) -> bytes:
    return b"\x00\x01" + b"\xff" * (size - 3 - len(info)) + b"\x00" + info


def pss(message: bytes, digest: str, bits: int, salt_octets: int | None = None) -> bytes:
    """EMSA-PSS-ENCODE (RFC 8017 section 9.1.1) with MGF1 over the same digest."""
    hashed = hash_of(message, digest)
    size = (bits + 7) // 8
    salt = numbers.octets(f"salt {hashed.hex()}", len(hashed) if salt_octets is None else salt_octets)
    tail = hash_of(bytes(8) + hashed + salt, digest)
    block = bytes(size - len(salt) - len(tail) - 2) + b"\x01" + salt
    mask = b"".join(hash_of(tail + counter.to_bytes(4), digest) for counter in range(size // len(tail) + 1))
    masked = int.from_bytes(bytes(a ^ b for a, b in zip(block, mask, strict=False)))
    masked &= (1 << 8 * len(block) - (8 * size - bits)) - 1
    return masked.to_bytes(len(block)) + tail + b"\xbc"


def pss_algorithm(
    digest: str,
    *,
    salt_octets: int | None = None,
    mask_digest: str | None = None,
    digest_parameters: bytes = NULL,
    trailer: bytes = b"",
) -> bytes:
    """AlgorithmIdentifier of RSASSA-PSS (RFC 4055); SHA-1 and 20 are defaults, which DER leaves out."""

    def identifier(name: str) -> bytes:
        return sequence(oid(DIGESTS[name][1]), digest_parameters)

    mask = mask_digest or digest
    salt = DIGESTS[digest][0].digest_size if salt_octets is None else salt_octets
    return sequence(
        oid(RSA_PSS),
        sequence(
            context(0, identifier(digest)) if digest != "sha1" else b"",
            context(1, sequence(oid(MGF1), identifier(mask))) if mask != "sha1" else b"",
            context(2, integer(salt)) if salt != 20 else b"",
            trailer,
        ),
    )


@dataclass(frozen=True)
class DsaKey:
    """2048 bits of p, 256 of q."""

    @functools.cached_property
    def _numbers(self) -> tuple[int, int, int, int]:
        q = numbers.prime("dsa q", 1 << 255, 1 << 256)
        p = numbers.prime("dsa p", 1 << 2047, 1 << 2048, 1, 2 * q)
        g = pow(2, (p - 1) // q, p)
        return p, q, g, numbers.below("dsa x", q)

    @property
    def spki(self) -> bytes:
        p, q, g, x = self._numbers
        return sequence(
            sequence(oid("1.2.840.10040.4.1"), sequence(integer(p), integer(q), integer(g))),
            bit_string(integer(pow(g, x, p))),
        )

    def algorithm(self, digest: str) -> bytes:
        assert digest == "sha256"
        return sequence(oid("2.16.840.1.101.3.4.3.2"))

    def sign(self, message: bytes, digest: str) -> bytes:
        p, q, g, x = self._numbers
        hashed = int.from_bytes(hash_of(message, digest))
        nonce = numbers.below(f"dsa nonce {hashed}", q)
        r = pow(g, nonce, p) % q
        return sequence(integer(r), integer(pow(nonce, -1, q) * (hashed + x * r) % q))


@dataclass(frozen=True)
class Ed448Key:
    OID = "1.3.101.113"

    @property
    def private(self) -> ed448.Ed448PrivateKey:
        return ed448.Ed448PrivateKey.from_private_bytes(numbers.octets("ed448", 57))

    @property
    def spki(self) -> bytes:
        return sequence(sequence(oid(self.OID)), bit_string(self.private.public_key().public_bytes_raw()))

    def algorithm(self, digest: str = "") -> bytes:
        return sequence(oid(self.OID))

    def sign(self, message: bytes, digest: str = "") -> bytes:
        return self.private.sign(message)


def to_pkcs8(key: EcKey | Ed25519Key | RsaKey) -> bytes:
    """The private key for programs that read a file."""
    return key.private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def ed25519_scalar(seed: bytes) -> int:
    """The secret scalar of RFC 8032 section 5.1.5."""
    scalar = int.from_bytes(hashlib.sha512(seed).digest()[:32], "little")
    return scalar & ((1 << 254) - 8) | 1 << 254
