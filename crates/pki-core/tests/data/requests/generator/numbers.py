"""Octets and primes that are the same on every run, so that a new fixture changes no old one."""

import functools
import hashlib
import itertools
import math


def octets(label: str, count: int) -> bytes:
    """As many octets as wanted; another label gives other octets."""
    return hashlib.shake_256(label.encode()).digest(count)


def below(label: str, limit: int) -> int:
    """1 <= number < limit, without a bias that would matter here."""
    return 1 + int.from_bytes(octets(label, limit.bit_length() // 8 + 9)) % (limit - 1)


def small_primes(limit: int) -> list[int]:
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for number in range(2, math.isqrt(limit) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(sieve[number * number :: number]))
    return [number for number in range(limit) if sieve[number]]


_SMALL = small_primes(20_000)


def is_prime(number: int) -> bool:
    """Trial division, then 16 rounds of Miller-Rabin."""
    for prime in _SMALL:
        if number % prime == 0:
            return number == prime
    twos = ((number - 1) & -(number - 1)).bit_length() - 1
    odd = (number - 1) >> twos
    for base in _SMALL[:16]:
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


@functools.cache
def next_prime(number: int, residue: int = 1, modulus: int = 2) -> int:
    """The smallest prime > number that is `residue` modulo `modulus`."""
    start = number + 1 + (residue - number - 1) % modulus
    return next(candidate for candidate in itertools.count(start, modulus) if is_prime(candidate))


def prime(label: str, low: int, high: int, residue: int = 1, modulus: int = 2) -> int:
    """A prime in low..high, which are far apart."""
    found = next_prime(low + below(label, high - low - (high - low) // 256), residue, modulus)
    assert low < found < high
    return found


def primes_of_product(label: str, bits: int, *given: int, residue: int = 1, modulus: int = 2) -> list[int]:
    """Primes, `given` among them, whose product has exactly so many bits.

    Two new primes make most moduli. The largest get more primes of about 2048
    bits (RFC 8017 allows it): who sees the modulus cannot tell, and it is quick.
    """
    primes = list(given)
    count = max(2, -(-(bits - math.prod(given).bit_length()) // 2200))
    each = (bits - math.prod(given).bit_length()) // count
    for index in range(count - 1):
        primes.append(prime(f"{label} {index}", 3 << each - 2, 1 << each, residue, modulus))
    rest = math.prod(primes)
    primes.append(prime(f"{label} last", (1 << bits - 1) // rest + 1, (1 << bits) // rest, residue, modulus))
    assert math.prod(primes).bit_length() == bits
    return primes
