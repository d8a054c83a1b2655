//! PKCS #12 (RFC 7292): a private key, its certificate and the authorities'
//! certificates in one file under one password, as browsers and keychains
//! import it.
//!
//! Files are written in two forms, [`Encryption::Aes256`] and, for what cannot
//! read that, [`Encryption::Legacy`]. What OpenSSL 3, Java, macOS and Windows
//! write in DER is read, except for RC2 and RC4. Integrity is by password (a
//! MAC) only; signed and enveloped files are refused.
//!
//! ```
//! use pki_core::pkcs12::{Bundle, Encryption, open};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let pair = rcgen::KeyPair::generate()?;
//! # let (key, certificate) = (pair.serialize_der(), rcgen::CertificateParams::default().self_signed(&pair)?);
//! # let (random, certificate) = ([7; 80], certificate.der());
//! let bundle = Bundle { private_key: &key, certificate, authorities: &[], friendly_name: Some("laptop") };
//! let file = bundle.encrypt("3fa9c1", Encryption::Aes256, &random)?;
//! let contents = open(&file, "3fa9c1")?;
//! assert_eq!(contents.private_keys[0].pkcs8_der(), key);
//! # Ok(())
//! # }
//! ```

mod password_based;

use std::char::REPLACEMENT_CHARACTER;
use std::fmt;
use std::str::FromStr;

use sha1::{Digest as _, Sha1};
use zeroize::Zeroizing;

use crate::certificate::{Certificate, CertificateError};
use crate::der::{self, BMP_STRING, DerError, Reader, Tlv, Writer, context, context_primitive};
use crate::oid::{self, ObjectIdentifier};
use password_based::{AES_ITERATIONS, Hash, LEGACY_ITERATIONS, LEGACY_SALT, MacScheme, Password, Scheme};

/// The most octets of a file that are read or written: keys, and chains with
/// room to spare.
pub const MAX_PKCS12_OCTETS: usize = 1024 * 1024;

/// The most key derivation iterations over all parts of a file that are carried
/// out. Three parts with the 600,000 of GnuTLS, and then some; about two seconds
/// of work, and whoever sends a file decides about it.
pub const MAX_PKCS12_ITERATIONS: u64 = 2_500_000;

/// The most keys, certificates and other bags of a file.
pub const MAX_PKCS12_BAGS: usize = 64;

/// How a file is encrypted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum Encryption {
    /// PBES2 with PBKDF2-HMAC-SHA-256 and AES-256-CBC, MAC HMAC-SHA-256: as
    /// OpenSSL 3 writes by default. Displays as `aes256`.
    #[default]
    Aes256,
    /// PBE with SHA-1 and three-key triple DES, MAC HMAC-SHA-1: for macOS
    /// Keychain and older Windows, which read nothing newer. Displays as
    /// `legacy`. Its strength is the password's: 128 random bits are enough.
    Legacy,
}

impl FromStr for Encryption {
    type Err = EncryptionError;

    fn from_str(text: &str) -> Result<Self, EncryptionError> {
        match text {
            "aes256" => Ok(Self::Aes256),
            "legacy" => Ok(Self::Legacy),
            _ => Err(EncryptionError),
        }
    }
}

impl fmt::Display for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes256 => "aes256",
            Self::Legacy => "legacy",
        })
    }
}

/// A text that names no [`Encryption`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("use aes256 or legacy")]
pub struct EncryptionError;

/// What goes into a file.
#[derive(Clone, Copy)]
pub struct Bundle<'a> {
    /// An unencrypted PKCS #8 PrivateKeyInfo in DER (RFC 5958).
    pub private_key: &'a [u8],
    /// The certificate of that key in DER. That they belong together is the
    /// caller's to know.
    pub certificate: &'a [u8],
    /// Certificates of authorities in DER, in the order they are to stand.
    pub authorities: &'a [&'a [u8]],
    /// The name that a keychain shows.
    pub friendly_name: Option<&'a str>,
}

impl fmt::Debug for Bundle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("private_key", &"(secret)")
            .field("certificate", &crate::Fingerprint::of(self.certificate))
            .field("authorities", &self.authorities.len())
            .field("friendly_name", &self.friendly_name)
            .finish()
    }
}

/// Why a file is not written or not read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Pkcs12Error {
    /// BER that is no DER: an indefinite length, or a string in pieces.
    #[error("the PKCS #12 file is in BER, not DER (octet {offset}): read it with `openssl pkcs12` and export it again")]
    Ber {
        /// Octets from the start of the file.
        offset: usize,
    },
    /// Something to be written is not a certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The MAC matches, and a part cannot be decrypted all the same: it has
    /// another password, or a program wrote nonsense.
    #[error("a part of the PKCS #12 file does not decrypt with the password of the file")]
    Decryption,
    /// Not the DER of a PFX.
    #[error("the PKCS #12 file is not valid DER: {0}")]
    Der(DerError),
    /// More work than is done for a file.
    #[error("the PKCS #12 file asks for more than {limit} key derivation iterations")]
    Iterations {
        /// Iterations allowed.
        limit: u64,
    },
    /// Without a MAC nobody vouches for the file.
    #[error("the PKCS #12 file has no MAC: it is not protected by a password")]
    MissingMac,
    /// What is to be written is not an unencrypted PKCS #8 key.
    #[error("the private key is not PKCS #8 in DER: {0}")]
    PrivateKey(DerError),
    /// More octets than are read or written.
    #[error("the PKCS #12 file has {size} octets, more than the {limit} that are read")]
    TooLarge {
        /// Octets given, or written.
        size: usize,
        /// Octets allowed.
        limit: usize,
    },
    /// More keys and certificates than are read or written.
    #[error("the PKCS #12 file has more than {limit} keys and certificates")]
    TooManyBags {
        /// Bags allowed.
        limit: usize,
    },
    /// An algorithm or a kind of content that is not read.
    #[error(
        "the PKCS #12 file uses {what}, which is not supported: read it with `openssl pkcs12 -legacy` and export it again"
    )]
    Unsupported {
        /// Its name, or its identifier.
        what: String,
    },
    /// Not version 3, the only one that RFC 7292 has.
    #[error("PKCS #12 files of version {0} are not read")]
    Version(u64),
    /// The MAC does not match.
    #[error("the password is wrong, or the PKCS #12 file was changed")]
    WrongPassword,
}

impl Bundle<'_> {
    /// Writes the file.
    ///
    /// `random` are octets of a cryptographically secure generator; salts and
    /// initialization vectors are taken from them. The iterations are few
    /// (2048, or 10,000 with AES): they suit a password of 128 random bits,
    /// which nobody guesses, and do not make a guessable one good.
    ///
    /// # Errors
    ///
    /// [`Pkcs12Error::PrivateKey`], [`Pkcs12Error::Certificate`],
    /// [`Pkcs12Error::TooManyBags`], and [`Pkcs12Error::TooLarge`] for a file
    /// that would not be read.
    pub fn encrypt(
        &self,
        password: &str,
        encryption: Encryption,
        random: &[u8; 80],
    ) -> Result<Zeroizing<Vec<u8>>, Pkcs12Error> {
        check_private_key(self.private_key).map_err(Pkcs12Error::PrivateKey)?;
        if self.authorities.len() > MAX_PKCS12_BAGS - 2 {
            return Err(Pkcs12Error::TooManyBags { limit: MAX_PKCS12_BAGS });
        }
        for der in std::iter::once(&self.certificate).chain(self.authorities) {
            Certificate::from_der(der)?;
        }
        let password = Password::new(password);
        let (chunks, _) = random.as_chunks::<16>();
        let [certificates_salt, certificates_iv, key_salt, key_iv, mac_salt] = chunks else {
            unreachable!("80 octets are five times 16")
        };
        let scheme = |salt, iv| Scheme::new(encryption, salt, iv);
        let certificates = scheme(certificates_salt, certificates_iv);
        let key = scheme(key_salt, key_iv);

        let attributes = self.attributes();
        let safe = self.write_certificates(&attributes);
        let encrypted_certificates = certificates.encrypt(&password, &safe)?;
        let encrypted_key = key.encrypt(&password, self.private_key)?;

        let mut auth_safe = Writer::default();
        auth_safe.nested(der::SEQUENCE, |parts| {
            write_encrypted_data(parts, &certificates, &encrypted_certificates);
            write_data(parts, |safe| {
                safe.nested(der::SEQUENCE, |bags| {
                    write_bag(bags, oid::SHROUDED_KEY_BAG, &attributes, |bag| {
                        bag.nested(der::SEQUENCE, |info| {
                            key.write(info);
                            info.element(der::OCTET_STRING, &encrypted_key);
                        });
                    });
                });
            });
        });
        let pfx = match encryption {
            Encryption::Aes256 => seal(&auth_safe.finish(), &password, Hash::Sha256, AES_ITERATIONS, mac_salt),
            Encryption::Legacy => {
                seal(&auth_safe.finish(), &password, Hash::Sha1, LEGACY_ITERATIONS, &mac_salt[..LEGACY_SALT])
            }
        };
        if pfx.len() > MAX_PKCS12_OCTETS {
            return Err(Pkcs12Error::TooLarge { size: pfx.len(), limit: MAX_PKCS12_OCTETS });
        }
        Ok(Zeroizing::new(pfx))
    }

    /// SafeContents with the leaf, which shares its attributes with the key,
    /// and the authorities, which have none.
    fn write_certificates(&self, attributes: &[u8]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.nested(der::SEQUENCE, |bags| {
            let certificates = std::iter::once((self.certificate, attributes));
            for (der, attributes) in certificates.chain(self.authorities.iter().map(|der| (*der, &[][..]))) {
                write_bag(bags, oid::CERTIFICATE_BAG, attributes, |bag| {
                    bag.nested(der::SEQUENCE, |bag| {
                        bag.object_identifier(oid::X509_CERTIFICATE);
                        bag.nested(context(0), |value| value.element(der::OCTET_STRING, der));
                    });
                });
            }
        });
        writer.finish()
    }

    /// The content of bagAttributes: by localKeyID importers join key and certificate.
    fn attributes(&self) -> Vec<u8> {
        let attribute = |id, tag, value: &[u8]| {
            let mut writer = Writer::default();
            writer.nested(der::SEQUENCE, |attribute| {
                attribute.object_identifier(id);
                attribute.nested(der::SET, |values| values.element(tag, value));
            });
            writer.finish()
        };
        let local_key_id = Sha1::digest(self.certificate);
        let mut attributes = vec![attribute(oid::LOCAL_KEY_ID, der::OCTET_STRING, &local_key_id)];
        if let Some(name) = self.friendly_name {
            attributes.push(attribute(oid::FRIENDLY_NAME, BMP_STRING, &utf16(name)));
        }
        // X.690 section 11.6: the elements of a SET OF are in ascending order.
        attributes.sort_unstable();
        attributes.concat()
    }
}

/// PrivateKeyInfo, its outermost fields: what is inside is for the key's algorithm.
fn check_private_key(pkcs8: &[u8]) -> Result<(), DerError> {
    let mut document = Reader::new(pkcs8);
    let outer = document.element(der::SEQUENCE, "PrivateKeyInfo")?;
    document.end("the end of the PrivateKeyInfo")?;
    let mut fields = outer.reader();
    fields.element(der::INTEGER, "version of the PrivateKeyInfo")?.small_integer()?;
    fields.element(der::SEQUENCE, "AlgorithmIdentifier of the private key")?;
    fields.element(der::OCTET_STRING, "OCTET STRING of the private key").map(drop)
}

fn write_data(parts: &mut Writer, write: impl FnOnce(&mut Writer)) {
    parts.nested(der::SEQUENCE, |part| {
        part.object_identifier(oid::PKCS7_DATA);
        part.nested(context(0), |content| content.nested(der::OCTET_STRING, write));
    });
}

fn write_encrypted_data(parts: &mut Writer, scheme: &Scheme<'_>, encrypted: &[u8]) {
    parts.nested(der::SEQUENCE, |part| {
        part.object_identifier(oid::PKCS7_ENCRYPTED_DATA);
        part.nested(context(0), |content| {
            content.nested(der::SEQUENCE, |data| {
                data.element(der::INTEGER, &[0]);
                data.nested(der::SEQUENCE, |info| {
                    info.object_identifier(oid::PKCS7_DATA);
                    scheme.write(info);
                    info.element(context_primitive(0), encrypted);
                });
            });
        });
    });
}

fn write_bag(bags: &mut Writer, id: &[u8], attributes: &[u8], write: impl FnOnce(&mut Writer)) {
    bags.nested(der::SEQUENCE, |bag| {
        bag.object_identifier(id);
        bag.nested(context(0), write);
        if !attributes.is_empty() {
            bag.element(der::SET, attributes);
        }
    });
}

/// PFX around an AuthenticatedSafe, with its MAC.
fn seal(auth_safe: &[u8], password: &Password, hash: Hash, iterations: u32, salt: &[u8]) -> Vec<u8> {
    let mac = hash.mac(&password.bmp, salt, iterations, auth_safe);
    let mut writer = Writer::with_capacity(auth_safe.len() + 256);
    writer.nested(der::SEQUENCE, |pfx| {
        pfx.element(der::INTEGER, &[3]);
        write_data(pfx, |content| content.raw(auth_safe));
        pfx.nested(der::SEQUENCE, |mac_data| {
            mac_data.nested(der::SEQUENCE, |digest_info| {
                write_algorithm(digest_info, hash.identifier(), |parameters| parameters.element(der::NULL, &[]));
                digest_info.element(der::OCTET_STRING, &mac);
            });
            mac_data.element(der::OCTET_STRING, salt);
            mac_data.unsigned_integer(&iterations.to_be_bytes());
        });
    });
    writer.finish()
}

/// A file with any octets in the place of the AuthenticatedSafe and a MAC that
/// matches: what a fuzzer needs to get past it.
#[doc(hidden)]
pub fn seal_for_fuzzing(auth_safe: &[u8], password: &str) -> Vec<u8> {
    seal(auth_safe, &Password::new(password), Hash::Sha1, 1, b"12345678")
}

fn write_algorithm(writer: &mut Writer, id: &[u8], write: impl FnOnce(&mut Writer)) {
    writer.nested(der::SEQUENCE, |algorithm| {
        algorithm.object_identifier(id);
        write(algorithm);
    });
}

/// What a file holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Contents {
    /// Its keys, in the order of the file.
    pub private_keys: Vec<KeyBag>,
    /// Its certificates, in the order of the file: not checked to be any.
    pub certificates: Vec<CertificateBag>,
    /// How its parts were encrypted, each way once, in words.
    pub encryption: Vec<String>,
    /// How its MAC is made, in words.
    pub mac: String,
}

/// A private key of a file.
#[derive(Clone)]
#[non_exhaustive]
pub struct KeyBag {
    pkcs8: Zeroizing<Vec<u8>>,
    /// The name that a keychain shows.
    pub friendly_name: Option<String>,
    /// By which it belongs to a certificate.
    pub local_key_id: Option<Vec<u8>>,
}

impl KeyBag {
    /// PrivateKeyInfo in DER (RFC 5958), unencrypted; not checked to be a key.
    pub fn pkcs8_der(&self) -> &[u8] {
        &self.pkcs8
    }
}

impl fmt::Debug for KeyBag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyBag")
            .field("pkcs8", &"(secret)")
            .field("friendly_name", &self.friendly_name)
            .field("local_key_id", &self.local_key_id)
            .finish()
    }
}

/// A certificate of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CertificateBag {
    /// As it stands in the file.
    pub der: Vec<u8>,
    /// The name that a keychain shows.
    pub friendly_name: Option<String>,
    /// By which it belongs to a key.
    pub local_key_id: Option<Vec<u8>>,
}

/// Reads a file.
///
/// The MAC is verified, in constant time, before anything is decrypted.
/// Attributes other than friendlyName and localKeyID, and bags with revocation
/// lists and other secrets, are passed over. Whether key and certificates belong
/// together, or whether anybody should trust them, is not checked.
///
/// # Errors
///
/// [`Pkcs12Error::WrongPassword`] when the MAC does not match,
/// [`Pkcs12Error::Unsupported`] and [`Pkcs12Error::Ber`] for files that other
/// programs read, [`Pkcs12Error::TooLarge`], [`Pkcs12Error::Iterations`] and
/// [`Pkcs12Error::TooManyBags`] beyond the limits of this module, and
/// [`Pkcs12Error::Der`] for what is no such file.
pub fn open(pfx: &[u8], password: &str) -> Result<Contents, Pkcs12Error> {
    if pfx.len() > MAX_PKCS12_OCTETS {
        return Err(Pkcs12Error::TooLarge { size: pfx.len(), limit: MAX_PKCS12_OCTETS });
    }
    let file = Pfx::read(pfx).map_err(|failure| failure.located(pfx))?;
    let mut password = Password::new(password);
    let mut opening = Opening::default();
    opening.spend(file.scheme.iterations)?;
    let verifies = |password: &Password| file.scheme.verify(password, file.auth_safe.value, file.mac);
    if !verifies(&password) {
        if !password.utf8.is_empty() {
            return Err(Pkcs12Error::WrongPassword);
        }
        // Programs disagree about what no password is: two octets of zero, or none.
        password.bmp.clear();
        if !verifies(&password) {
            return Err(Pkcs12Error::WrongPassword);
        }
    }
    opening.read_auth_safe(&file.auth_safe, &password).map_err(|failure| failure.located(pfx))?;
    Ok(Contents {
        private_keys: opening.private_keys,
        certificates: opening.certificates,
        encryption: opening.encryption,
        mac: file.scheme.to_string(),
    })
}

/// The outermost fields of a file.
struct Pfx<'a> {
    /// The OCTET STRING around AuthenticatedSafe, which the MAC covers.
    auth_safe: Tlv<'a>,
    scheme: MacScheme<'a>,
    mac: &'a [u8],
}

impl<'a> Pfx<'a> {
    fn read(pfx: &'a [u8]) -> Result<Self, Failure> {
        let mut document = Reader::new(pfx);
        let outer = document.element(der::SEQUENCE, "PFX")?;
        document.end("the end of the PFX")?;
        let mut fields = outer.reader();
        let version = fields.element(der::INTEGER, "version of the PFX")?.small_integer()?;
        if version != 3 {
            return Err(Pkcs12Error::Version(version).into());
        }
        let mut content = fields.element(der::SEQUENCE, "ContentInfo of authSafe")?.reader();
        let kind = content.element(der::OBJECT_IDENTIFIER, "contentType of authSafe")?.object_identifier()?;
        if kind != oid::PKCS7_DATA {
            return Err(unsupported("integrity by signature", kind).into());
        }
        let mut explicit = content.element(context(0), "content of authSafe")?.reader();
        let auth_safe = explicit.element(der::OCTET_STRING, "OCTET STRING of authSafe")?;
        explicit.end("the end of authSafe")?;
        content.end("the end of authSafe")?;

        let Some(mac_data) = fields.optional(der::SEQUENCE, "MacData")? else {
            return Err(Pkcs12Error::MissingMac.into());
        };
        fields.end("the end of the PFX")?;
        let mut fields = mac_data.reader();
        let (scheme, mac) = MacScheme::read(&mut fields)?;
        fields.end("the end of the MacData")?;
        Ok(Self { auth_safe, scheme, mac })
    }
}

/// A file whose MAC is good, while it is read.
#[derive(Default)]
struct Opening {
    /// Iterations so far.
    iterations: u64,
    bags: usize,
    private_keys: Vec<KeyBag>,
    certificates: Vec<CertificateBag>,
    encryption: Vec<String>,
}

impl Opening {
    fn spend(&mut self, iterations: u32) -> Result<(), Pkcs12Error> {
        self.iterations += u64::from(iterations);
        let limit = MAX_PKCS12_ITERATIONS;
        if self.iterations > limit { Err(Pkcs12Error::Iterations { limit }) } else { Ok(()) }
    }

    fn read_auth_safe(&mut self, auth_safe: &Tlv<'_>, password: &Password) -> Result<(), Failure> {
        let mut document = auth_safe.reader();
        let mut parts = document.element(der::SEQUENCE, "AuthenticatedSafe")?.reader();
        document.end("the end of the AuthenticatedSafe")?;
        while !parts.is_empty() {
            let mut part = parts.element(der::SEQUENCE, "ContentInfo")?.reader();
            let kind = part.element(der::OBJECT_IDENTIFIER, "contentType")?.object_identifier()?;
            let mut content = part.element(context(0), "content")?.reader();
            part.end("the end of the ContentInfo")?;
            match kind {
                oid::PKCS7_DATA => {
                    let data = content.element(der::OCTET_STRING, "OCTET STRING of the content")?;
                    content.end("the end of the content")?;
                    self.read_safe(data.reader(), password)?;
                }
                oid::PKCS7_ENCRYPTED_DATA => {
                    let data = content.element(der::SEQUENCE, "EncryptedData")?;
                    content.end("the end of the content")?;
                    let safe = self.read_encrypted_data(&data, password)?;
                    // Offsets of the plain text mean nothing in the file.
                    self.read_safe(Reader::new(&safe), password).map_err(|failure| failure.located(&safe))?;
                }
                kind => return Err(unsupported("content of type", kind).into()),
            }
        }
        Ok(())
    }

    fn read_encrypted_data(&mut self, data: &Tlv<'_>, password: &Password) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut fields = data.reader();
        // 0, or 2 with unprotectedAttributes (RFC 5652 section 8), which say nothing here.
        fields.element(der::INTEGER, "version of EncryptedData")?.small_integer()?;
        let mut info = fields.element(der::SEQUENCE, "EncryptedContentInfo")?.reader();
        let kind = info.element(der::OBJECT_IDENTIFIER, "contentType")?.object_identifier()?;
        if kind != oid::PKCS7_DATA {
            return Err(unsupported("encrypted content of type", kind).into());
        }
        let scheme = Scheme::read(&mut info)?;
        let encrypted = info.element(context_primitive(0), "encryptedContent")?;
        info.end("the end of EncryptedContentInfo")?;
        self.decrypt(&scheme, encrypted.value, password)
    }

    fn decrypt(
        &mut self,
        scheme: &Scheme<'_>,
        encrypted: &[u8],
        password: &Password,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.spend(scheme.iterations)?;
        let words = scheme.to_string();
        if !self.encryption.contains(&words) {
            self.encryption.push(words);
        }
        Ok(scheme.decrypt(password, encrypted)?)
    }

    fn read_safe(&mut self, mut document: Reader<'_>, password: &Password) -> Result<(), Failure> {
        let mut bags = document.element(der::SEQUENCE, "SafeContents")?.reader();
        document.end("the end of the SafeContents")?;
        while !bags.is_empty() {
            self.bags += 1;
            if self.bags > MAX_PKCS12_BAGS {
                return Err(Pkcs12Error::TooManyBags { limit: MAX_PKCS12_BAGS }.into());
            }
            let mut bag = bags.element(der::SEQUENCE, "SafeBag")?.reader();
            let kind = bag.element(der::OBJECT_IDENTIFIER, "bagId")?.object_identifier()?;
            let mut value = bag.element(context(0), "bagValue")?.reader();
            let attributes = match bag.optional(der::SET, "bagAttributes")? {
                Some(attributes) => Attributes::read(attributes.reader())?,
                None => Attributes::default(),
            };
            bag.end("the end of the SafeBag")?;
            match kind {
                oid::KEY_BAG => {
                    let key = value.element(der::SEQUENCE, "PrivateKeyInfo")?;
                    self.push_key(Zeroizing::new(key.whole.to_vec()), attributes);
                }
                oid::SHROUDED_KEY_BAG => {
                    let mut info = value.element(der::SEQUENCE, "EncryptedPrivateKeyInfo")?.reader();
                    let scheme = Scheme::read(&mut info)?;
                    let encrypted = info.element(der::OCTET_STRING, "encryptedData")?;
                    info.end("the end of EncryptedPrivateKeyInfo")?;
                    let key = self.decrypt(&scheme, encrypted.value, password)?;
                    self.push_key(key, attributes);
                }
                oid::CERTIFICATE_BAG => {
                    let mut certificate = value.element(der::SEQUENCE, "CertBag")?.reader();
                    let kind = certificate.element(der::OBJECT_IDENTIFIER, "certId")?.object_identifier()?;
                    if kind != oid::X509_CERTIFICATE {
                        return Err(unsupported("a certificate of type", kind).into());
                    }
                    let mut explicit = certificate.element(context(0), "certValue")?.reader();
                    let der = explicit.element(der::OCTET_STRING, "OCTET STRING of the certificate")?.value.to_vec();
                    explicit.end("the end of certValue")?;
                    certificate.end("the end of CertBag")?;
                    let Attributes { friendly_name, local_key_id } = attributes;
                    self.certificates.push(CertificateBag { der, friendly_name, local_key_id });
                }
                // A key could be in there.
                oid::SAFE_CONTENTS_BAG => return Err(unsupported("nested contents", kind).into()),
                _ => drop(value.any("bagValue")?),
            }
            value.end("the end of bagValue")?;
        }
        Ok(())
    }

    fn push_key(&mut self, pkcs8: Zeroizing<Vec<u8>>, attributes: Attributes) {
        let Attributes { friendly_name, local_key_id } = attributes;
        self.private_keys.push(KeyBag { pkcs8, friendly_name, local_key_id });
    }
}

#[derive(Default)]
struct Attributes {
    friendly_name: Option<String>,
    local_key_id: Option<Vec<u8>>,
}

impl Attributes {
    fn read(mut attributes: Reader<'_>) -> Result<Self, DerError> {
        let mut found = Self::default();
        while !attributes.is_empty() {
            let mut attribute = attributes.element(der::SEQUENCE, "PKCS12Attribute")?.reader();
            let id = attribute.element(der::OBJECT_IDENTIFIER, "attrId")?.object_identifier()?;
            let values = attribute.element(der::SET, "attrValues")?;
            attribute.end("the end of the PKCS12Attribute")?;
            let mut values = values.reader();
            match id {
                // Programs write these in types of their own, or without a value: what cannot be read
                // is no reason to keep somebody from a key.
                oid::FRIENDLY_NAME if !values.is_empty() => {
                    let value = values.any("value of friendlyName")?;
                    found.friendly_name = match value.tag {
                        BMP_STRING => {
                            let (units, _) = value.value.as_chunks::<2>();
                            let units = units.iter().map(|unit| u16::from_be_bytes(*unit));
                            Some(char::decode_utf16(units).map(|unit| unit.unwrap_or(REPLACEMENT_CHARACTER)).collect())
                        }
                        _ => std::str::from_utf8(value.value).ok().map(str::to_owned),
                    };
                }
                oid::LOCAL_KEY_ID if !values.is_empty() => {
                    found.local_key_id = Some(values.any("value of localKeyID")?.value.to_vec());
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// An error that may yet turn out to be one of BER.
enum Failure {
    Der(DerError),
    Known(Pkcs12Error),
}

impl Failure {
    /// In which document the reading stopped decides what stands there.
    fn located(self, document: &[u8]) -> Pkcs12Error {
        /// An OCTET STRING in pieces.
        const CONSTRUCTED_OCTET_STRING: u8 = 0x24;

        match self {
            Self::Known(error) => error,
            Self::Der(error) => match document.get(error.offset..) {
                Some([CONSTRUCTED_OCTET_STRING, ..] | [_, 0x80, ..]) => Pkcs12Error::Ber { offset: error.offset },
                _ => Pkcs12Error::Der(error),
            },
        }
    }
}

impl From<DerError> for Failure {
    fn from(error: DerError) -> Self {
        Self::Der(error)
    }
}

impl From<Pkcs12Error> for Failure {
    fn from(error: Pkcs12Error) -> Self {
        Self::Known(error)
    }
}

fn unsupported(what: &str, id: &[u8]) -> Pkcs12Error {
    let name = KNOWN_UNSUPPORTED.iter().find(|(known, _)| *known == id);
    let id = ObjectIdentifier::new(id);
    let what = name.map_or_else(|| format!("{what} {id}"), |(_, name)| format!("{name} ({id})"));
    Pkcs12Error::Unsupported { what }
}

const KNOWN_UNSUPPORTED: [(&[u8], &str); 9] = [
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01\x01", "128-bit RC4"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01\x02", "40-bit RC4"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01\x04", "two-key triple DES"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01\x05", "128-bit RC2"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01\x06", "40-bit RC2"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x02\x05", "MD5"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02", "signed content"),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x03", "enveloped content"),
    (b"\x2b\x06\x01\x04\x01\xda\x47\x04\x0b", "scrypt"),
];

fn read_algorithm<'a>(reader: &mut Reader<'a>, expected: &'static str) -> Result<(&'a [u8], Reader<'a>), DerError> {
    let mut fields = reader.element(der::SEQUENCE, expected)?.reader();
    let id = fields.element(der::OBJECT_IDENTIFIER, "OBJECT IDENTIFIER of an algorithm")?.object_identifier()?;
    Ok((id, fields))
}

/// More than fits is more than is allowed, and is found to be when it is spent.
fn read_iterations(integer: &Tlv<'_>) -> Result<u32, DerError> {
    match integer.small_integer()? {
        0 => Err(integer.error("at least one iteration")),
        iterations => Ok(u32::try_from(iterations).unwrap_or(u32::MAX)),
    }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encryption_reads_what_it_displays() {
        for encryption in [Encryption::Aes256, Encryption::Legacy] {
            assert_eq!(encryption.to_string().parse(), Ok(encryption));
        }
        assert_eq!("AES256".parse::<Encryption>(), Err(EncryptionError));
    }
}
