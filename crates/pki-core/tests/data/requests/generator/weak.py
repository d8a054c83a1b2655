"""Keys that a certificate authority must not sign, with signatures that are valid all the same."""

import hashlib
import math
from dataclasses import dataclass

from . import numbers
from .keys import Ed25519Key, RsaKey, ed25519_scalar, ed25519_spki


def rsa_with_factors(*factors: int, bits: int = 2048) -> RsaKey:
    """Small primes times two large ones."""
    return RsaKey(tuple(numbers.primes_of_product(f"rsa {bits} {factors}", bits, *factors)))


def rsa_with_exponent(exponent: int) -> RsaKey:
    """2048 bits, with primes for which this exponent has roots.

    They are 2 modulo 3 and 3 modulo 4, which serves the exponents 3 and 2**n.
    """
    odd = exponent // (exponent & -exponent)
    for attempt in range(100):
        primes = numbers.primes_of_product(f"rsa any exponent {attempt}", 2048, residue=11, modulus=12)
        if all(math.gcd(odd, prime - 1) == 1 for prime in primes):
            return RsaKey(tuple(primes), exponent)
    raise AssertionError(f"the exponent {exponent} has a factor that most primes minus one have")


def rsa_square() -> RsaKey:
    prime = numbers.prime("rsa square", 3 << 1022, 1 << 1024)
    return RsaKey((prime, prime))


def rsa_close_primes(bits: int, fermat_rounds: int) -> RsaKey:
    """Two primes that Fermat's method finds in about so many rounds.

    The method tries a = ceil(sqrt(n)), a + 1, ... up to (p + q) / 2, which is
    (q - p)**2 / (8 * sqrt(n)) steps away. No rounds: q is the next prime after p.
    """
    low = 3 << bits // 2 - 2
    first = numbers.prime(f"rsa close {bits} {fermat_rounds}", low, 1 << bits // 2)
    second = numbers.next_prime(first + math.isqrt(8 * fermat_rounds * first))
    return RsaKey((first, second))


def fermat_rounds(key: RsaKey) -> int:
    """How many values of a Fermat's method tries."""
    first, second = key.primes
    ceiling = math.isqrt(key.modulus - 1) + 1
    return (first + second) // 2 - ceiling + 1


# How many primes the broken library multiplied (Nemec et al., "The Return of
# Coppersmith's Attack", 2017, table 1), by bits of the modulus.
_ROCA_PRIMES = {2048: 126, 3072: 126, 4096: 225}


def rsa_roca(bits: int) -> RsaKey:
    """Both primes are k * M + (65537**a mod M), M the product of the first primes (CVE-2017-15361)."""
    product = math.prod(numbers.small_primes(2000)[: _ROCA_PRIMES[bits]])

    def prime(label: str) -> int:
        residue = pow(65537, numbers.below(f"roca a {bits} {label}", 1 << 250), product)
        return numbers.prime(f"roca {bits} {label}", 3 << bits // 2 - 2, 1 << bits // 2, residue, product)

    return RsaKey((prime("p"), prime("q")))


# Ed25519, edwards25519 in affine coordinates (RFC 8032 section 5.1).

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493

Point = tuple[int, int]
IDENTITY: Point = (0, 1)


def add(left: Point, right: Point) -> Point:
    (x1, y1), (x2, y2) = left, right
    product = _D * x1 * x2 * y1 * y2
    x = (x1 * y2 + y1 * x2) * pow(1 + product, -1, _P)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, _P)
    return x % _P, y % _P


def multiply(scalar: int, point: Point) -> Point:
    result = IDENTITY
    for bit in f"{scalar:b}":
        result = add(result, result)
        if bit == "1":
            result = add(result, point)
    return result


def encode(point: Point) -> bytes:
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def point_of(y: int, sign: int = 0) -> Point | None:
    """The point with this y, if there is one."""
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if x * x % _P != square:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    if x * x % _P != square:
        return None
    return (x if x & 1 == sign else -x % _P), y


BASE: Point = point_of(4 * pow(5, -1, _P) % _P) or IDENTITY


def small_order_points() -> list[bytes]:
    """The canonical encodings of the eight points whose order divides 8; the identity is first."""
    for y in range(2, 100):
        point = point_of(y)
        generator = multiply(GROUP_ORDER, point) if point else IDENTITY
        if multiply(4, generator) != IDENTITY:
            return [encode(multiply(times, generator)) for times in range(8)]
    raise AssertionError("half of all points do")


def y_off_curve() -> bytes:
    return next(y.to_bytes(32, "little") for y in range(2, 100) if point_of(y) is None)


def y_not_reduced() -> bytes:
    """A point of large order, its y written as y + p."""
    return next((y + _P).to_bytes(32, "little") for y in range(2, 19) if point_of(y))


def challenge(commitment: bytes, public: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(commitment + public + message).digest(), "little") % GROUP_ORDER


@dataclass(frozen=True)
class SmallOrderKey:
    """Anyone can sign with it: a challenge that is a multiple of 8 takes the key out of the equation."""

    octets: bytes

    @property
    def spki(self) -> bytes:
        return ed25519_spki(self.octets)

    def algorithm(self, digest: str = "") -> bytes:
        return Ed25519Key().algorithm()

    def sign(self, message: bytes, digest: str = "") -> bytes:
        attempt = 0
        while True:
            attempt += 1
            nonce = numbers.below(f"small order {self.octets.hex()} {message.hex()} {attempt}", GROUP_ORDER)
            commitment = encode(multiply(nonce, BASE))
            if challenge(commitment, self.octets, message) % 8 == 0:
                return commitment + nonce.to_bytes(32, "little")


def small_order_commitment(key: Ed25519Key, message: bytes) -> bytes:
    """A signature that holds the equation with the identity as R, which a strict verifier refuses."""
    commitment = encode(IDENTITY)
    scalar = challenge(commitment, key.octets, message) * ed25519_scalar(key.seed) % GROUP_ORDER
    return commitment + scalar.to_bytes(32, "little")
