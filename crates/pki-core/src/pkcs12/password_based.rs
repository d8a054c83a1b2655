//! Password-based cryptography of PKCS #12: schemes with their parameters,
//! MACs, and the key derivation of RFC 7292 appendix B.

use std::fmt;

use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use hmac::digest::block_api::BlockSizeUser;
use hmac::{EagerHash, Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Encryption, Failure, Pkcs12Error, read_algorithm, read_iterations, unsupported, write_algorithm};
use crate::der::{self, Reader, Tlv, Writer};
use crate::oid;

/// A password in the two forms that key derivations take.
pub(super) struct Password {
    pub(super) utf8: Zeroizing<Vec<u8>>,
    /// UTF-16, big-endian, with two octets of zero at the end (RFC 7292 appendix B.1).
    pub(super) bmp: Zeroizing<Vec<u8>>,
}

impl Password {
    pub(super) fn new(password: &str) -> Self {
        // All of it at once: a buffer that grows leaves copies behind.
        let mut bmp = Zeroizing::new(Vec::with_capacity(2 * password.len() + 2));
        bmp.extend(password.encode_utf16().flat_map(u16::to_be_bytes));
        bmp.extend([0, 0]);
        Self { utf8: Zeroizing::new(password.as_bytes().to_vec()), bmp }
    }
}

/// How one part is encrypted: an AlgorithmIdentifier with its parameters.
pub(super) struct Scheme<'a> {
    cipher: Cipher,
    derivation: Derivation<'a>,
    salt: &'a [u8],
    pub(super) iterations: u32,
}

#[derive(Clone, Copy)]
enum Cipher {
    Aes128,
    Aes192,
    Aes256,
    TripleDes,
}

enum Derivation<'a> {
    /// PBES2 with PBKDF2, HMAC with this hash and an initialization vector (RFC 8018).
    Pbkdf2 { hash: Hash, iv: &'a [u8] },
    /// The derivation of RFC 7292 appendix B with SHA-1, also of the initialization vector.
    Pkcs12,
}

/// Enough against tables, and as OpenSSL does it.
pub(super) const LEGACY_ITERATIONS: u32 = 2048;

/// What keychains were ever tried with.
pub(super) const LEGACY_SALT: usize = 8;

/// For passwords of 128 random bits one iteration would do. This many make a
/// weaker one somewhat dearer to guess and take a server three milliseconds.
pub(super) const AES_ITERATIONS: u32 = 10_000;

impl<'a> Scheme<'a> {
    pub(super) fn new(encryption: Encryption, salt: &'a [u8; 16], iv: &'a [u8; 16]) -> Self {
        match encryption {
            Encryption::Aes256 => Self {
                cipher: Cipher::Aes256,
                derivation: Derivation::Pbkdf2 { hash: Hash::Sha256, iv },
                salt,
                iterations: AES_ITERATIONS,
            },
            Encryption::Legacy => Self {
                cipher: Cipher::TripleDes,
                derivation: Derivation::Pkcs12,
                salt: &salt[..LEGACY_SALT],
                iterations: LEGACY_ITERATIONS,
            },
        }
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, Failure> {
        let (id, mut parameters) = read_algorithm(reader, "AlgorithmIdentifier of the encryption")?;
        let mut fields = match id {
            oid::PBE_SHA1_3DES | oid::PBES2 => {
                parameters.element(der::SEQUENCE, "parameters of the encryption")?.reader()
            }
            id => return Err(unsupported("encryption of algorithm", id).into()),
        };
        parameters.end("the end of the parameters")?;
        let scheme = if id == oid::PBE_SHA1_3DES {
            let salt = fields.element(der::OCTET_STRING, "salt")?.value;
            let iterations = read_iterations(&fields.element(der::INTEGER, "iterations")?)?;
            Self { cipher: Cipher::TripleDes, derivation: Derivation::Pkcs12, salt, iterations }
        } else {
            Self::read_pbes2(&mut fields)?
        };
        fields.end("the end of the parameters")?;
        Ok(scheme)
    }

    /// PBES2-params (RFC 8018 appendix A.4).
    fn read_pbes2(fields: &mut Reader<'a>) -> Result<Self, Failure> {
        let Pbkdf2 { hash, salt, iterations, key_length } = Pbkdf2::read(fields)?;
        let (id, mut parameters) = read_algorithm(fields, "encryptionScheme")?;
        let ciphers = [Cipher::Aes128, Cipher::Aes192, Cipher::Aes256, Cipher::TripleDes];
        let cipher = ciphers.into_iter().find(|cipher| cipher.identifier() == id);
        let cipher = cipher.ok_or_else(|| unsupported("encryption of algorithm", id))?;
        let iv = parameters.element(der::OCTET_STRING, "initialization vector")?;
        parameters.end("the end of the encryptionScheme")?;
        if iv.value.len() != cipher.block_length() {
            return Err(iv.error("initialization vector of one block").into());
        }
        if let Some(length) = key_length
            && length.small_integer()? != cipher.key_length() as u64
        {
            return Err(length.error("keyLength of the cipher").into());
        }
        Ok(Self { cipher, derivation: Derivation::Pbkdf2 { hash, iv: iv.value }, salt, iterations })
    }

    pub(super) fn write(&self, writer: &mut Writer) {
        let salt_and_iterations = |writer: &mut Writer| {
            writer.element(der::OCTET_STRING, self.salt);
            writer.unsigned_integer(&self.iterations.to_be_bytes());
        };
        match &self.derivation {
            Derivation::Pkcs12 => write_algorithm(writer, oid::PBE_SHA1_3DES, |parameters| {
                parameters.nested(der::SEQUENCE, salt_and_iterations);
            }),
            Derivation::Pbkdf2 { hash, iv } => write_algorithm(writer, oid::PBES2, |parameters| {
                parameters.nested(der::SEQUENCE, |pbes2| {
                    write_algorithm(pbes2, oid::PBKDF2, |parameters| {
                        parameters.nested(der::SEQUENCE, |pbkdf2| {
                            salt_and_iterations(pbkdf2);
                            write_algorithm(pbkdf2, hash.hmac_identifier(), |null| null.element(der::NULL, &[]));
                        });
                    });
                    write_algorithm(pbes2, self.cipher.identifier(), |parameters| {
                        parameters.element(der::OCTET_STRING, iv);
                    });
                });
            }),
        }
    }

    fn key_and_iv(&self, password: &Password) -> (Zeroizing<Vec<u8>>, Zeroizing<Vec<u8>>) {
        match self.derivation {
            Derivation::Pkcs12 => {
                let derive =
                    |purpose, length| derive::<Sha1>(&password.bmp, self.salt, purpose, self.iterations, length);
                (derive(Purpose::Key, self.cipher.key_length()), derive(Purpose::Iv, self.cipher.block_length()))
            }
            Derivation::Pbkdf2 { hash, iv } => {
                let mut key = Zeroizing::new(vec![0; self.cipher.key_length()]);
                hash.pbkdf2(&password.utf8, self.salt, self.iterations, &mut key);
                (key, Zeroizing::new(iv.to_vec()))
            }
        }
    }

    pub(super) fn encrypt(&self, password: &Password, plain: &[u8]) -> Result<Vec<u8>, Pkcs12Error> {
        let (key, iv) = self.key_and_iv(password);
        let encrypted = match self.cipher {
            Cipher::Aes128 => encrypt::<aes::Aes128>(&key, &iv, plain),
            Cipher::Aes192 => encrypt::<aes::Aes192>(&key, &iv, plain),
            Cipher::Aes256 => encrypt::<aes::Aes256>(&key, &iv, plain),
            Cipher::TripleDes => encrypt::<des::TdesEde3>(&key, &iv, plain),
        };
        // Key, vector and buffer have the lengths that the cipher asks for.
        encrypted.ok_or(Pkcs12Error::Decryption)
    }

    pub(super) fn decrypt(&self, password: &Password, encrypted: &[u8]) -> Result<Zeroizing<Vec<u8>>, Pkcs12Error> {
        let (key, iv) = self.key_and_iv(password);
        let plain = match self.cipher {
            Cipher::Aes128 => decrypt::<aes::Aes128>(&key, &iv, encrypted),
            Cipher::Aes192 => decrypt::<aes::Aes192>(&key, &iv, encrypted),
            Cipher::Aes256 => decrypt::<aes::Aes256>(&key, &iv, encrypted),
            Cipher::TripleDes => decrypt::<des::TdesEde3>(&key, &iv, encrypted),
        };
        plain.ok_or(Pkcs12Error::Decryption)
    }
}

impl fmt::Display for Scheme<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cipher = self.cipher.name();
        match self.derivation {
            Derivation::Pkcs12 => write!(f, "{cipher} with a key by SHA-1, {} iterations", self.iterations),
            Derivation::Pbkdf2 { hash, .. } => {
                write!(f, "{cipher} with a key by PBKDF2-HMAC-{}, {} iterations", hash.name(), self.iterations)
            }
        }
    }
}

impl Cipher {
    fn name(self) -> &'static str {
        match self {
            Self::Aes128 => "AES-128-CBC",
            Self::Aes192 => "AES-192-CBC",
            Self::Aes256 => "AES-256-CBC",
            Self::TripleDes => "3DES-CBC",
        }
    }

    pub(super) fn identifier(self) -> &'static [u8] {
        match self {
            Self::Aes128 => oid::AES_128_CBC,
            Self::Aes192 => oid::AES_192_CBC,
            Self::Aes256 => oid::AES_256_CBC,
            Self::TripleDes => oid::DES_EDE3_CBC,
        }
    }

    fn key_length(self) -> usize {
        match self {
            Self::Aes128 => 16,
            Self::Aes192 | Self::TripleDes => 24,
            Self::Aes256 => 32,
        }
    }

    fn block_length(self) -> usize {
        match self {
            Self::TripleDes => 8,
            _ => 16,
        }
    }
}

macro_rules! with_digest {
    ($hash:expr, $digest:ident => $use:expr) => {
        match $hash {
            Hash::Sha1 => {
                type $digest = Sha1;
                $use
            }
            Hash::Sha224 => {
                type $digest = Sha224;
                $use
            }
            Hash::Sha256 => {
                type $digest = Sha256;
                $use
            }
            Hash::Sha384 => {
                type $digest = Sha384;
                $use
            }
            Hash::Sha512 => {
                type $digest = Sha512;
                $use
            }
        }
    };
}

/// PBKDF2 with its parameters (RFC 8018 appendix A.2).
struct Pbkdf2<'a> {
    hash: Hash,
    salt: &'a [u8],
    iterations: u32,
    key_length: Option<Tlv<'a>>,
}

impl<'a> Pbkdf2<'a> {
    fn read(fields: &mut Reader<'a>) -> Result<Self, Failure> {
        let (derivation, mut parameters) = read_algorithm(fields, "keyDerivationFunc")?;
        if derivation != oid::PBKDF2 {
            return Err(unsupported("key derivation of algorithm", derivation).into());
        }
        let mut pbkdf2 = parameters.element(der::SEQUENCE, "PBKDF2-params")?.reader();
        parameters.end("the end of the PBKDF2-params")?;
        let salt = pbkdf2.element(der::OCTET_STRING, "salt")?.value;
        let iterations = read_iterations(&pbkdf2.element(der::INTEGER, "iterationCount")?)?;
        let key_length = pbkdf2.optional(der::INTEGER, "keyLength")?;
        let hash = if pbkdf2.is_empty() { Hash::Sha1 } else { Hash::read_hmac(&mut pbkdf2, "prf")? };
        pbkdf2.end("the end of the PBKDF2-params")?;
        Ok(Self { hash, salt, iterations, key_length })
    }
}

/// How the MAC of a file is made.
pub(super) struct MacScheme<'a> {
    hash: Hash,
    derivation: MacDerivation,
    salt: &'a [u8],
    pub(super) iterations: u32,
}

enum MacDerivation {
    /// PBMAC1 with PBKDF2, HMAC with this hash, and a key of so many octets (RFC 9579).
    Pbkdf2 { hash: Hash, key_length: usize },
    /// The derivation of RFC 7292 appendix B.
    Pkcs12,
}

impl<'a> MacScheme<'a> {
    /// Algorithm and value of a DigestInfo, then salt and iterations of MacData.
    pub(super) fn read(mac_data: &mut Reader<'a>) -> Result<(Self, &'a [u8]), Failure> {
        let mut digest_info = mac_data.element(der::SEQUENCE, "DigestInfo")?.reader();
        let (id, mut parameters) = read_algorithm(&mut digest_info, "AlgorithmIdentifier of the MAC")?;
        let pbmac1 = if id == oid::PBMAC1 { Some(Self::read_pbmac1(&mut parameters)?) } else { None };
        if pbmac1.is_none() {
            parameters.optional(der::NULL, "NULL")?;
        }
        parameters.end("no more parameters of the MAC")?;
        let mac = digest_info.element(der::OCTET_STRING, "OCTET STRING of the MAC")?.value;
        digest_info.end("the end of the DigestInfo")?;
        // PBMAC1 has its own; these are filled with anything then (RFC 9579 section 5).
        let salt = mac_data.element(der::OCTET_STRING, "salt of the MAC")?.value;
        let iterations = mac_data.optional(der::INTEGER, "iterations of the MAC")?;
        if let Some(scheme) = pbmac1 {
            return Ok((scheme, mac));
        }
        let iterations = iterations.as_ref().map_or(Ok(1), read_iterations)?;
        let hash = Hash::ALL.into_iter().find(|hash| hash.identifier() == id);
        let hash = hash.ok_or_else(|| unsupported("a MAC of algorithm", id))?;
        Ok((Self { hash, derivation: MacDerivation::Pkcs12, salt, iterations }, mac))
    }

    /// PBMAC1-params (RFC 8018 appendix A.5).
    fn read_pbmac1(parameters: &mut Reader<'a>) -> Result<Self, Failure> {
        let parameters = parameters.element(der::SEQUENCE, "PBMAC1-params")?;
        let mut fields = parameters.reader();
        let Pbkdf2 { hash, salt, iterations, key_length } = Pbkdf2::read(&mut fields)?;
        // RFC 9579 section 4: it must be there. No hash has more than 64 octets, and longer keys only cost time.
        let key_length = key_length.ok_or_else(|| parameters.error("PBMAC1-params with a keyLength"))?;
        let octets = usize::try_from(key_length.small_integer()?).unwrap_or(usize::MAX);
        if !(20..=64).contains(&octets) {
            return Err(key_length.error("keyLength of 20 to 64").into());
        }
        let derivation = MacDerivation::Pbkdf2 { hash, key_length: octets };
        let hash = Hash::read_hmac(&mut fields, "messageAuthScheme")?;
        fields.end("the end of the PBMAC1-params")?;
        Ok(Self { hash, derivation, salt, iterations })
    }

    /// In constant time.
    pub(super) fn verify(&self, password: &Password, message: &[u8], mac: &[u8]) -> bool {
        match self.derivation {
            MacDerivation::Pbkdf2 { hash, key_length } => {
                let mut key = Zeroizing::new(vec![0; key_length]);
                hash.pbkdf2(&password.utf8, self.salt, self.iterations, &mut key);
                with_digest!(self.hash, D => keyed::<D>(&key, message).verify_slice(mac).is_ok())
            }
            MacDerivation::Pkcs12 => self.hash.verify(&password.bmp, self.salt, self.iterations, message, mac),
        }
    }
}

impl fmt::Display for MacScheme<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, iterations) = (self.hash.name(), self.iterations);
        match self.derivation {
            MacDerivation::Pbkdf2 { hash, .. } => {
                write!(f, "HMAC-{name} with a key by PBKDF2-HMAC-{}, {iterations} iterations", hash.name())
            }
            MacDerivation::Pkcs12 => write!(f, "HMAC-{name}, {iterations} iterations"),
        }
    }
}

/// `None` only for a key or vector of a wrong length.
fn encrypt<C>(key: &[u8], iv: &[u8], plain: &[u8]) -> Option<Vec<u8>>
where
    C: cbc::cipher::BlockCipherEncrypt + cbc::cipher::KeyInit,
{
    // Room for the padding from the start; the plain text is overwritten where it stands.
    let mut buffer = Zeroizing::new(Vec::with_capacity(plain.len() + 16));
    buffer.extend_from_slice(plain);
    buffer.resize(plain.len() + 16, 0);
    let encryptor = cbc::Encryptor::<C>::new_from_slices(key, iv).ok()?;
    encryptor.encrypt_padded::<Pkcs7>(&mut buffer, plain.len()).ok().map(<[u8]>::to_vec)
}

/// `None` for wrong padding, and for lengths that are no number of blocks.
fn decrypt<C>(key: &[u8], iv: &[u8], encrypted: &[u8]) -> Option<Zeroizing<Vec<u8>>>
where
    C: cbc::cipher::BlockCipherDecrypt + cbc::cipher::KeyInit,
{
    let mut buffer = Zeroizing::new(encrypted.to_vec());
    let decryptor = cbc::Decryptor::<C>::new_from_slices(key, iv).ok()?;
    let length = decryptor.decrypt_padded::<Pkcs7>(&mut buffer).ok()?.len();
    buffer.truncate(length);
    Some(buffer)
}

/// A digest for MACs and key derivation.
#[derive(Clone, Copy)]
pub(super) enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub(super) const ALL: [Self; 5] = [Self::Sha1, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA-1",
            Self::Sha224 => "SHA-224",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        }
    }

    /// The AlgorithmIdentifier of an HMAC.
    fn read_hmac(reader: &mut Reader<'_>, expected: &'static str) -> Result<Self, Failure> {
        let (id, mut null) = read_algorithm(reader, expected)?;
        null.optional(der::NULL, "NULL")?;
        null.end("no parameters of an HMAC")?;
        let hash = Self::ALL.into_iter().find(|hash| hash.hmac_identifier() == id);
        Ok(hash.ok_or_else(|| unsupported("an HMAC of algorithm", id))?)
    }

    pub(super) fn identifier(self) -> &'static [u8] {
        match self {
            Self::Sha1 => oid::SHA_1,
            Self::Sha224 => oid::SHA_224,
            Self::Sha256 => oid::SHA_256,
            Self::Sha384 => oid::SHA_384,
            Self::Sha512 => oid::SHA_512,
        }
    }

    fn hmac_identifier(self) -> &'static [u8] {
        match self {
            Self::Sha1 => oid::HMAC_SHA_1,
            Self::Sha224 => oid::HMAC_SHA_224,
            Self::Sha256 => oid::HMAC_SHA_256,
            Self::Sha384 => oid::HMAC_SHA_384,
            Self::Sha512 => oid::HMAC_SHA_512,
        }
    }

    pub(super) fn mac(self, password: &[u8], salt: &[u8], iterations: u32, message: &[u8]) -> Vec<u8> {
        with_digest!(self, D => hmac::<D>(password, salt, iterations, message).finalize().into_bytes().to_vec())
    }

    /// In constant time.
    fn verify(self, password: &[u8], salt: &[u8], iterations: u32, message: &[u8], mac: &[u8]) -> bool {
        with_digest!(self, D => hmac::<D>(password, salt, iterations, message).verify_slice(mac).is_ok())
    }

    fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32, key: &mut [u8]) {
        with_digest!(self, D => pbkdf2::pbkdf2_hmac::<D>(password, salt, iterations, key));
    }
}

fn hmac<D: Digest + EagerHash + BlockSizeUser>(
    password: &[u8],
    salt: &[u8],
    iterations: u32,
    message: &[u8],
) -> Hmac<D> {
    keyed::<D>(&derive::<D>(password, salt, Purpose::Mac, iterations, <D as Digest>::output_size()), message)
}

fn keyed<D: Digest + EagerHash + BlockSizeUser>(key: &[u8], message: &[u8]) -> Hmac<D> {
    let mut hmac = match Hmac::<D>::new_from_slice(key) {
        Ok(hmac) => hmac,
        Err(error) => unreachable!("HMAC takes keys of any length: {error}"),
    };
    hmac.update(message);
    hmac
}

/// The identifiers of RFC 7292 appendix B.3.
#[derive(Clone, Copy)]
enum Purpose {
    Key = 1,
    Iv = 2,
    Mac = 3,
}

/// Key derivation of RFC 7292 appendix B.2, in the letters of its steps.
fn derive<D: Digest + BlockSizeUser>(
    password: &[u8],
    salt: &[u8],
    purpose: Purpose,
    iterations: u32,
    length: usize,
) -> Zeroizing<Vec<u8>> {
    let v = D::block_size();
    let repeated = |text: &[u8]| text.len().div_ceil(v) * v;
    let mut i = Zeroizing::new(Vec::with_capacity(repeated(salt) + repeated(password)));
    i.extend(salt.iter().cycle().take(repeated(salt)));
    i.extend(password.iter().cycle().take(repeated(password)));
    let mut derived = Zeroizing::new(Vec::with_capacity(length + <D as Digest>::output_size()));
    while derived.len() < length {
        let mut a = D::new().chain_update(vec![purpose as u8; v]).chain_update(&i).finalize();
        for _ in 1..iterations {
            a = D::digest(&a);
        }
        derived.extend_from_slice(&a);
        let b: Zeroizing<Vec<u8>> = Zeroizing::new(a.iter().copied().cycle().take(v).collect());
        for block in i.chunks_exact_mut(v) {
            // I_j = (I_j + B + 1) mod 2^v, from the last octet.
            let mut carry = 1;
            for (octet, add) in block.iter_mut().zip(b.iter()).rev() {
                let sum = u16::from(*octet) + u16::from(*add) + carry;
                [_, *octet] = sum.to_be_bytes();
                carry = sum >> 8;
            }
        }
        a.as_mut_slice().zeroize();
    }
    derived.truncate(length);
    derived
}

#[cfg(test)]
mod tests {
    use super::*;
    use base16ct::lower::encode_string as hex;

    /// The vectors that PKCS #12 implementations have passed on since the 1990s.
    #[test]
    fn keys_are_derived_as_by_everybody_else() {
        use Purpose::{Iv, Key, Mac};

        for (password, salt, purpose, iterations, expected) in [
            ("smeg", "0a58cf64530d823f", Key, 1, "8aaae6297b6cb04642ab5b077851284eb7128f1a2a7fbca3"),
            ("smeg", "0a58cf64530d823f", Iv, 1, "79993dfe048d3b76"),
            ("smeg", "642b99ab44fb4b1f", Key, 1, "f3a95fec48d7711e985cfe67908c5ab79fa3d7c5caa5d966"),
            ("smeg", "642b99ab44fb4b1f", Iv, 1, "c0a38d64a79bea1d"),
            ("smeg", "3d83c0e4546ac140", Mac, 1, "8d967d88f6caa9d714800ab3d48051d63f73a312"),
            ("queeg", "05dec959acff72f7", Key, 1000, "ed2034e36328830ff09df1e1a07dd357185dac0d4f9eb3d4"),
            ("queeg", "05dec959acff72f7", Iv, 1000, "11dedad7758d4860"),
            ("queeg", "1682c0fc5b3f7ec5", Key, 1000, "483dd6e919d7de2e8e648ba8f862f3fbfbdc2bcb2c02957f"),
            ("queeg", "1682c0fc5b3f7ec5", Iv, 1000, "9d461d1b00355c50"),
            ("queeg", "263216fcc2fab31c", Mac, 1000, "5ec4c7a80df652294c3925b6489a7ab857c83476"),
        ] {
            let salt = base16ct::mixed::decode_vec(salt).expect("hex");
            let password = Password::new(password);
            let derived = derive::<Sha1>(&password.bmp, &salt, purpose, iterations, expected.len() / 2);
            assert_eq!(hex(&derived), expected);
        }
    }

    #[test]
    fn passwords_end_with_two_zero_octets() {
        assert_eq!(*Password::new("").bmp, [0, 0]);
        assert_eq!(*Password::new("Aé").bmp, [0, 0x41, 0, 0xe9, 0, 0]);
        assert_eq!(*Password::new("😀").bmp, [0xd8, 0x3d, 0xde, 0x00, 0, 0]);
    }
}
