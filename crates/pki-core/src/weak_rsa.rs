//! RSA keys that are broken from birth.
//!
//! The checks look at the modulus alone, so they cost microseconds: one pass
//! for its residues by small primes serves trial division and the ROCA
//! fingerprint, and Fermat's method takes exact square roots only where the
//! residues leave one possible.

use num_bigint::BigUint;

use crate::key::{KeyError, RsaNumbers, bit_length};

const MIN_BITS: u32 = 2048;
const MAX_BITS: u32 = 8192;
/// CA/Browser Forum Baseline Requirements 6.1.6.
const MIN_EXPONENT: u64 = 65_537;
/// What Go's and other TLS stacks hold in an int.
const MAX_EXPONENT: u64 = (1 << 31) - 1;
/// The CA/Browser Forum asks for 100 rounds.
const FERMAT_ROUNDS: u64 = 100;

pub(crate) fn check(key: RsaNumbers<'_>) -> Result<(), KeyError> {
    let bits = bit_length(key.modulus);
    if !(MIN_BITS..=MAX_BITS).contains(&bits) {
        return Err(KeyError::RsaModulusSize { bits });
    }
    if !is_good_exponent(key.exponent) {
        return Err(KeyError::RsaExponent);
    }
    let modulus = BigUint::from_bytes_be(key.modulus);
    let residues = Residues::of(&modulus);
    if let Some(factor) = residues.zero() {
        return Err(KeyError::RsaSmallFactor { factor });
    }
    if residues.have_roca_fingerprint() {
        return Err(KeyError::RsaRoca);
    }
    if has_close_primes(&modulus, &residues) {
        return Err(KeyError::RsaClosePrimes);
    }
    Ok(())
}

fn is_good_exponent(exponent: &[u8]) -> bool {
    if exponent.len() > 8 {
        return false;
    }
    let exponent = exponent.iter().fold(0, |number: u64, octet| number << 8 | u64::from(*octet));
    exponent % 2 == 1 && (MIN_EXPONENT..=MAX_EXPONENT).contains(&exponent)
}

/// Primes up to 751, as certificate authorities divide by.
const PRIMES: [u32; 133] = primes();
/// The primes of the ROCA fingerprint are the odd ones up to 167.
const ROCA_PRIMES: usize = 38;
/// Products of neighbouring primes, each under 2^63: one long division of
/// the modulus by each gives the residues of all.
const GROUPS: [Group; 18] = groups();
/// The first group is 2 to 47; Fermat's method sieves with it.
const SIEVE_PRIMES: usize = GROUPS[0].end;

#[derive(Clone, Copy)]
struct Group {
    start: usize,
    end: usize,
    product: u64,
}

struct Residues([u32; PRIMES.len()]);

impl Residues {
    fn of(number: &BigUint) -> Self {
        let mut residues = [0; PRIMES.len()];
        let digits = number.to_u64_digits();
        for group in &GROUPS {
            let remainder = remainder(&digits, group.product);
            for (residue, prime) in residues[group.start..group.end].iter_mut().zip(&PRIMES[group.start..group.end]) {
                #[expect(clippy::cast_possible_truncation, reason = "less than a prime of 10 bits")]
                let rest = (remainder % u64::from(*prime)) as u32;
                *residue = rest;
            }
        }
        Self(residues)
    }

    /// The smallest prime that divides the number.
    fn zero(&self) -> Option<u32> {
        self.0.iter().position(|residue| *residue == 0).map(|at| PRIMES[at])
    }

    /// ROCA primes are k * M + (65537^a mod M), so their product is a power
    /// of 65537 modulo each of M's factors. Of other moduli, 4 in 10^9 are.
    fn have_roca_fingerprint(&self) -> bool {
        self.0[1..=ROCA_PRIMES]
            .iter()
            .zip(&POWERS_OF_65537)
            .all(|(residue, powers)| powers[(*residue / 64) as usize] >> (*residue % 64) & 1 == 1)
    }
}

/// The number modulo `divisor`, digit by digit from the top.
fn remainder(digits: &[u64], divisor: u64) -> u64 {
    digits.iter().rev().fold(0, |rest, digit| {
        #[expect(clippy::cast_possible_truncation, reason = "less than the 64-bit divisor")]
        let rest = ((u128::from(rest) << 64 | u128::from(*digit)) % u128::from(divisor)) as u64;
        rest
    })
}

/// Fermat: if the primes are close, n = a^2 - b^2 with a near the root of n.
fn has_close_primes(modulus: &BigUint, residues: &Residues) -> bool {
    let mut root = modulus.sqrt();
    if &root * &root < *modulus {
        root += 1u32;
    }
    let first = remainder(&root.to_u64_digits(), GROUPS[0].product);
    (0..FERMAT_ROUNDS).filter(|round| may_be_square(first + round, residues)).any(|round| {
        let a = &root + round;
        let square = &a * &a - modulus;
        let b = square.sqrt();
        &b * &b == square
    })
}

/// Is a^2 - n a square modulo every prime of the sieve?
fn may_be_square(a: u64, modulus: &Residues) -> bool {
    (0..SIEVE_PRIMES).all(|at| {
        let prime = u64::from(PRIMES[at]);
        let a = a % prime;
        let difference = (a * a + prime - u64::from(modulus.0[at])) % prime;
        SQUARES[at] >> difference & 1 == 1
    })
}

/// Bit r of entry i: r is a square modulo the i-th prime.
const SQUARES: [u64; SIEVE_PRIMES] = {
    let mut table = [0; SIEVE_PRIMES];
    let mut at = 0;
    while at < SIEVE_PRIMES {
        let prime = PRIMES[at] as u64;
        let mut root = 0;
        while root < prime {
            table[at] |= 1 << (root * root % prime);
            root += 1;
        }
        at += 1;
    }
    table
};

/// Bit r of entry i: r is a power of 65537 modulo the i-th odd prime.
const POWERS_OF_65537: [[u64; 3]; ROCA_PRIMES] = {
    let mut table = [[0; 3]; ROCA_PRIMES];
    let mut at = 0;
    while at < ROCA_PRIMES {
        let prime = PRIMES[at + 1] as u64;
        let mut power = 1;
        while table[at][(power / 64) as usize] >> (power % 64) & 1 == 0 {
            table[at][(power / 64) as usize] |= 1 << (power % 64);
            power = power * 65_537 % prime;
        }
        at += 1;
    }
    table
};

const fn primes<const N: usize>() -> [u32; N] {
    let mut primes = [0; N];
    let mut found = 0;
    let mut candidate = 2;
    while found < N {
        let mut divisor = 0;
        while divisor < found && candidate % primes[divisor] != 0 {
            divisor += 1;
        }
        if divisor == found {
            primes[found] = candidate;
            found += 1;
        }
        candidate += 1;
    }
    primes
}

const fn groups<const N: usize>() -> [Group; N] {
    let mut groups = [Group { start: 0, end: 0, product: 1 }; N];
    let mut group = 0;
    let mut at = 0;
    while at < PRIMES.len() {
        let prime = PRIMES[at] as u64;
        if groups[group].product > (1 << 63) / prime {
            group += 1;
            groups[group].start = at;
        }
        groups[group].product *= prime;
        at += 1;
        groups[group].end = at;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_what_they_say() {
        assert_eq!((PRIMES[0], PRIMES[132], PRIMES[ROCA_PRIMES]), (2, 751, 167));
        assert_eq!(GROUPS[17].end, PRIMES.len());
        assert!(GROUPS.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(GROUPS[0].product, PRIMES[..SIEVE_PRIMES].iter().map(|prime| u64::from(*prime)).product());
        assert!(SIEVE_PRIMES >= 15 && PRIMES[SIEVE_PRIMES - 1] < 64);
    }

    #[test]
    fn residues_agree_with_plain_division() {
        let number = BigUint::parse_bytes(&[b'7'; 600], 10).expect("digits");
        let residues = Residues::of(&number);
        for (residue, prime) in residues.0.iter().zip(PRIMES) {
            assert_eq!(BigUint::from(*residue), &number % prime);
        }
    }

    #[test]
    fn squares_pass_the_sieve() {
        // n = p * q with q just above p: the first rounds find it.
        let p = (BigUint::from(1u32) << 1100u32) + 7u32;
        let q = &p + 2u32 * 50_000u32;
        let n = &p * &q;
        assert!(has_close_primes(&n, &Residues::of(&n)));
        let far = &p * ((BigUint::from(3u32) << 1099u32) + 11u32);
        assert!(!has_close_primes(&far, &Residues::of(&far)));
    }
}
