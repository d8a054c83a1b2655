//! Object identifiers by the names of RFC 5280 and its neighbours, as the
//! content octets that DER has for them.

use std::fmt;

/// An object identifier (X.660), shown as dotted decimal.
///
/// Arcs of any size are kept: identifiers below 2.25 hold whole UUIDs.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct ObjectIdentifier(Box<[u8]>);

impl ObjectIdentifier {
    /// The content octets of a DER OBJECT IDENTIFIER; checked by the reader.
    pub(crate) fn new(content: &[u8]) -> Self {
        Self(content.into())
    }

    /// The content octets of its DER.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for ObjectIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever sends ten kilobytes as a name does not get them back in an error (CVE-2023-2650).
        const SHOWN: usize = 64;
        let mut first = true;
        for arc in self.0[..self.0.len().min(SHOWN)].split_inclusive(|octet| octet & 0x80 == 0) {
            // 2.25 has the largest arcs in use, of 128 bits.
            let too_large = arc.len() > 18;
            let arc = arc.iter().fold(0, |number: u128, octet| number << 7 | u128::from(octet & 0x7f));
            match (first, arc) {
                _ if too_large => f.write_str(".(large)")?,
                (true, 0..=79) => write!(f, "{}.{}", arc / 40, arc % 40)?,
                (true, _) => write!(f, "2.{}", arc - 80)?,
                (false, _) => write!(f, ".{arc}")?,
            }
            first = false;
        }
        if self.0.len() > SHOWN { f.write_str("...") } else { Ok(()) }
    }
}

impl fmt::Debug for ObjectIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectIdentifier({self})")
    }
}

/// Subidentifiers are not empty, in their shortest form, and end.
pub(crate) fn is_well_formed(content: &[u8]) -> bool {
    let ends = content.last().is_some_and(|last| last & 0x80 == 0);
    ends && content.split_inclusive(|octet| octet & 0x80 == 0).all(|arc| arc[0] != 0x80)
}

// Attribute types, 2.5.4.
pub(crate) const COMMON_NAME: &[u8] = b"\x55\x04\x03";
pub(crate) const ORGANIZATION: &[u8] = b"\x55\x04\x0a";

// Extensions, 2.5.29.
pub(crate) const AUTHORITY_KEY_IDENTIFIER: &[u8] = b"\x55\x1d\x23";
pub(crate) const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
pub(crate) const CRL_NUMBER: &[u8] = b"\x55\x1d\x14";
pub(crate) const CRL_REASON: &[u8] = b"\x55\x1d\x15";
pub(crate) const CRL_DISTRIBUTION_POINTS: &[u8] = b"\x55\x1d\x1f";
pub(crate) const EXTENDED_KEY_USAGE: &[u8] = b"\x55\x1d\x25";
pub(crate) const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
pub(crate) const NAME_CONSTRAINTS: &[u8] = b"\x55\x1d\x1e";
pub(crate) const SUBJECT_ALT_NAME: &[u8] = b"\x55\x1d\x11";
pub(crate) const SUBJECT_KEY_IDENTIFIER: &[u8] = b"\x55\x1d\x0e";

// PKIX, 1.3.6.1.5.5.7: id-pe, id-kp, id-ad.
pub(crate) const AUTHORITY_INFO_ACCESS: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x01\x01";
/// RFC 7633, "must staple" in requests.
pub(crate) const TLS_FEATURE: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x01\x18";
pub(crate) const SERVER_AUTH: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x03\x01";
pub(crate) const CLIENT_AUTH: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x03\x02";
pub(crate) const CA_ISSUERS: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x02";

// Keys and curves.
pub(crate) const EC_PUBLIC_KEY: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
pub(crate) const ED25519: &[u8] = b"\x2b\x65\x70";
pub(crate) const P256: &[u8] = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
pub(crate) const P384: &[u8] = b"\x2b\x81\x04\x00\x22";
pub(crate) const P521: &[u8] = b"\x2b\x81\x04\x00\x23";
pub(crate) const RSA_ENCRYPTION: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";

// PKCS #1 and digests.
pub(crate) const MGF1: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08";
pub(crate) const RSASSA_PSS: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";
pub(crate) const SHA_1: &[u8] = b"\x2b\x0e\x03\x02\x1a";
pub(crate) const SHA_256: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x01";
pub(crate) const SHA_384: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x02";
pub(crate) const SHA_512: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x03";

/// PKCS #9 extensionRequest (RFC 2985 section 5.4.2).
pub(crate) const EXTENSION_REQUEST: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x0e";

#[cfg(feature = "pkcs12")]
pub(crate) use pkcs12::*;

/// What PKCS #12 files are made of: PKCS #5, #7, #9 and #12, NIST's ciphers.
#[cfg(feature = "pkcs12")]
mod pkcs12 {
    pub(crate) const PKCS7_DATA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
    pub(crate) const PKCS7_ENCRYPTED_DATA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x06";
    pub(crate) const KEY_BAG: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x01";
    pub(crate) const SHROUDED_KEY_BAG: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x02";
    pub(crate) const CERTIFICATE_BAG: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x03";
    pub(crate) const SAFE_CONTENTS_BAG: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x06";
    pub(crate) const FRIENDLY_NAME: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x14";
    pub(crate) const LOCAL_KEY_ID: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x15";
    pub(crate) const X509_CERTIFICATE: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x16\x01";
    pub(crate) const PBE_SHA1_3DES: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01\x03";
    pub(crate) const PBKDF2: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c";
    pub(crate) const PBMAC1: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0e";
    pub(crate) const PBES2: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d";
    pub(crate) const HMAC_SHA_1: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x07";
    pub(crate) const HMAC_SHA_224: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x08";
    pub(crate) const HMAC_SHA_256: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x09";
    pub(crate) const HMAC_SHA_384: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x0a";
    pub(crate) const HMAC_SHA_512: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x02\x0b";
    pub(crate) const DES_EDE3_CBC: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x03\x07";
    pub(crate) const AES_128_CBC: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x01\x02";
    pub(crate) const AES_192_CBC: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x01\x16";
    pub(crate) const AES_256_CBC: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x01\x2a";
    pub(crate) const SHA_224: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x04";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_read_as_their_standards_write_them() {
        for (content, dotted) in [
            (COMMON_NAME, "2.5.4.3"),
            (ORGANIZATION, "2.5.4.10"),
            (AUTHORITY_KEY_IDENTIFIER, "2.5.29.35"),
            (BASIC_CONSTRAINTS, "2.5.29.19"),
            (CRL_NUMBER, "2.5.29.20"),
            (CRL_REASON, "2.5.29.21"),
            (CRL_DISTRIBUTION_POINTS, "2.5.29.31"),
            (EXTENDED_KEY_USAGE, "2.5.29.37"),
            (KEY_USAGE, "2.5.29.15"),
            (NAME_CONSTRAINTS, "2.5.29.30"),
            (SUBJECT_ALT_NAME, "2.5.29.17"),
            (SUBJECT_KEY_IDENTIFIER, "2.5.29.14"),
            (AUTHORITY_INFO_ACCESS, "1.3.6.1.5.5.7.1.1"),
            (TLS_FEATURE, "1.3.6.1.5.5.7.1.24"),
            (SERVER_AUTH, "1.3.6.1.5.5.7.3.1"),
            (CLIENT_AUTH, "1.3.6.1.5.5.7.3.2"),
            (CA_ISSUERS, "1.3.6.1.5.5.7.48.2"),
            (EC_PUBLIC_KEY, "1.2.840.10045.2.1"),
            (ED25519, "1.3.101.112"),
            (P256, "1.2.840.10045.3.1.7"),
            (P384, "1.3.132.0.34"),
            (P521, "1.3.132.0.35"),
            (RSA_ENCRYPTION, "1.2.840.113549.1.1.1"),
            (MGF1, "1.2.840.113549.1.1.8"),
            (RSASSA_PSS, "1.2.840.113549.1.1.10"),
            (SHA_1, "1.3.14.3.2.26"),
            (SHA_256, "2.16.840.1.101.3.4.2.1"),
            (SHA_384, "2.16.840.1.101.3.4.2.2"),
            (SHA_512, "2.16.840.1.101.3.4.2.3"),
            (EXTENSION_REQUEST, "1.2.840.113549.1.9.14"),
        ] {
            assert!(is_well_formed(content), "{dotted}");
            assert_eq!(ObjectIdentifier::new(content).to_string(), dotted);
        }
    }

    #[cfg(feature = "pkcs12")]
    #[test]
    fn constants_of_pkcs12_read_as_their_standards_write_them() {
        for (content, dotted) in [
            (PKCS7_DATA, "1.2.840.113549.1.7.1"),
            (PKCS7_ENCRYPTED_DATA, "1.2.840.113549.1.7.6"),
            (KEY_BAG, "1.2.840.113549.1.12.10.1.1"),
            (SHROUDED_KEY_BAG, "1.2.840.113549.1.12.10.1.2"),
            (CERTIFICATE_BAG, "1.2.840.113549.1.12.10.1.3"),
            (SAFE_CONTENTS_BAG, "1.2.840.113549.1.12.10.1.6"),
            (FRIENDLY_NAME, "1.2.840.113549.1.9.20"),
            (LOCAL_KEY_ID, "1.2.840.113549.1.9.21"),
            (X509_CERTIFICATE, "1.2.840.113549.1.9.22.1"),
            (PBE_SHA1_3DES, "1.2.840.113549.1.12.1.3"),
            (PBKDF2, "1.2.840.113549.1.5.12"),
            (PBMAC1, "1.2.840.113549.1.5.14"),
            (PBES2, "1.2.840.113549.1.5.13"),
            (HMAC_SHA_1, "1.2.840.113549.2.7"),
            (HMAC_SHA_224, "1.2.840.113549.2.8"),
            (HMAC_SHA_256, "1.2.840.113549.2.9"),
            (HMAC_SHA_384, "1.2.840.113549.2.10"),
            (HMAC_SHA_512, "1.2.840.113549.2.11"),
            (DES_EDE3_CBC, "1.2.840.113549.3.7"),
            (AES_128_CBC, "2.16.840.1.101.3.4.1.2"),
            (AES_192_CBC, "2.16.840.1.101.3.4.1.22"),
            (AES_256_CBC, "2.16.840.1.101.3.4.1.42"),
            (SHA_224, "2.16.840.1.101.3.4.2.4"),
        ] {
            assert!(is_well_formed(content), "{dotted}");
            assert_eq!(ObjectIdentifier::new(content).to_string(), dotted);
        }
    }

    #[test]
    fn malformed_identifiers_are_found() {
        for bad in [&[][..], &[0x80], &[0x2a, 0x80, 0x01], &[0x2a, 0x86]] {
            assert!(!is_well_formed(bad), "{bad:02x?}");
        }
        // 2.25 and a UUID of 128 bits.
        let large = [&[0x69, 0x83][..], &[0xff; 17], &[0x7f]].concat();
        assert!(is_well_formed(&large));
        assert!(ObjectIdentifier::new(&large).to_string().starts_with("2.25."));
        let huge = ObjectIdentifier::new(&[0x2a; 10_000]).to_string();
        assert!(huge.len() < 256 && huge.ends_with("..."), "{huge}");
    }
}
