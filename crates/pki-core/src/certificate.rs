//! Certificates as they were sent: a view of the DER, nothing re-encoded.

use crate::der::{self, DerError, Reader, Tlv};
use crate::extension::{self, Extension};
use crate::name::attributes;
use crate::oid;
use crate::pem::{self, PemError};
use crate::time::Time;

/// The most octets of one certificate that are read.
pub const MAX_CERTIFICATE_OCTETS: usize = 64 * 1024;

/// A well-formed certificate of version 1 or 3 (RFC 5280 section 4.1).
///
/// Borrowed from its DER. Reading checks the structure only: no signature, no
/// time, no name; [`verify_chain`](crate::verify_chain) does that.
#[derive(Clone, Debug)]
pub struct Certificate<'a> {
    pub(crate) der: &'a [u8],
    /// TBSCertificate with its header: what the signature covers.
    pub(crate) tbs_der: &'a [u8],
    pub(crate) tbs: TbsCertificate<'a>,
    pub(crate) signature_algorithm: Tlv<'a>,
    pub(crate) signature: &'a [u8],
}

/// Why bytes are not a certificate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A commonName in a string type of another age, or not in UTF-8.
    #[error("a common name is not text in UTF-8: it must be a UTF8String, PrintableString or IA5String")]
    CommonName,
    /// Not the DER of one certificate.
    #[error("the certificate is not valid DER: {0}")]
    Der(DerError),
    /// No PEM block of a certificate.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// More octets than are read.
    #[error("the certificate has {size} octets, more than the {limit} that are read")]
    TooLarge {
        /// Octets given.
        size: usize,
        /// Octets allowed.
        limit: usize,
    },
    /// A version other than 1 and 3.
    #[error("certificates of version {0} are not read")]
    Version(u64),
}

// Not `#[from]`: the text tells it, and whoever prints a chain of sources would tell it twice.
impl From<DerError> for CertificateError {
    fn from(error: DerError) -> Self {
        Self::Der(error)
    }
}

impl<'a> Certificate<'a> {
    /// Reads the DER of one certificate.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] when it is too large, not DER or of version 2.
    pub fn from_der(der: &'a [u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE_OCTETS {
            return Err(CertificateError::TooLarge { size: der.len(), limit: MAX_CERTIFICATE_OCTETS });
        }
        let mut document = Reader::new(der);
        let outer = document.element(der::SEQUENCE, "SEQUENCE of a Certificate")?;
        document.end("the end of the Certificate")?;
        let mut fields = outer.reader();
        let tbs = fields.element(der::SEQUENCE, "TBSCertificate")?;
        let signature_algorithm = fields.element(der::SEQUENCE, "AlgorithmIdentifier of the signature")?;
        let signature = fields.element(der::BIT_STRING, "BIT STRING of the signature")?.bit_string_octets()?;
        fields.end("the end of the Certificate")?;
        Ok(Self { der, tbs_der: tbs.whole, tbs: TbsCertificate::read(&tbs)?, signature_algorithm, signature })
    }

    /// The certificate in DER.
    pub fn der(&self) -> &'a [u8] {
        self.der
    }

    /// The version as people count it: 1 or 3.
    pub fn version(&self) -> u8 {
        self.tbs.version
    }

    /// The issuer's Name in DER.
    pub fn issuer_der(&self) -> &'a [u8] {
        self.tbs.issuer
    }

    /// The subject's Name in DER.
    pub fn subject_der(&self) -> &'a [u8] {
        self.tbs.subject
    }

    /// The commonName attributes of the subject (RFC 5280 section 4.1.2.6), in
    /// order; none for a subject without one.
    ///
    /// The text is the document's: it may hold control characters, and a
    /// caller who decides by it must refuse more than one.
    ///
    /// # Errors
    ///
    /// [`CertificateError::CommonName`] for a TeletexString, BMPString or
    /// UniversalString and for text that is not UTF-8; a name that is left out
    /// here could stand for somebody elsewhere. [`CertificateError::Der`] when
    /// the subject is not a Name.
    pub fn common_names(&self) -> Result<Vec<String>, CertificateError> {
        attributes(self.tbs.subject, 0)?
            .iter()
            .filter(|attribute| attribute.kind == oid::COMMON_NAME)
            .map(|attribute| match std::str::from_utf8(attribute.value) {
                Ok(text) if attribute.is_octet_string_type() => Ok(text.to_owned()),
                _ => Err(CertificateError::CommonName),
            })
            .collect()
    }

    /// The first second of its life.
    pub fn not_before(&self) -> Time {
        self.tbs.not_before
    }

    /// The last second of its life.
    pub fn not_after(&self) -> Time {
        self.tbs.not_after
    }

    /// The serial number's octets, big-endian, as they stand in the DER.
    pub fn serial(&self) -> &'a [u8] {
        self.tbs.serial
    }

    /// The SubjectPublicKeyInfo in DER.
    pub fn spki(&self) -> &'a [u8] {
        self.tbs.spki
    }

    /// The SHA-256 of the DER.
    pub fn fingerprint(&self) -> crate::Fingerprint {
        crate::Fingerprint::of(self.der)
    }

    /// Are subject and issuer the same name?
    pub fn is_self_issued(&self) -> bool {
        self.tbs.subject == self.tbs.issuer
    }
}

/// The DER of every `CERTIFICATE` block of a text, in order, or of one with
/// OpenSSL's older `X509 CERTIFICATE` or `TRUSTED CERTIFICATE`, of which only the
/// certificate is read. Keys and other blocks are passed over.
///
/// # Errors
///
/// [`CertificateError::TooLarge`] beyond 1 MiB, [`CertificateError::Pem`] when
/// there is no block, or none of this kind.
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    const LIMIT: usize = 1024 * 1024;
    if text.len() > LIMIT {
        return Err(CertificateError::TooLarge { size: text.len(), limit: LIMIT });
    }
    let mut blocks = pem::decode_all(text, &["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"])?;
    for block in &mut blocks {
        // Behind a TRUSTED CERTIFICATE stands what OpenSSL trusts it for.
        let mut elements = Reader::new(block);
        if let (Ok(certificate), Ok(_)) = (elements.any("Certificate"), elements.element(der::SEQUENCE, "trust"))
            && elements.is_empty()
        {
            let length = certificate.whole.len();
            block.truncate(length);
        }
    }
    Ok(blocks)
}

/// The DER of every certificate of a file: PEM blocks, or one certificate in DER.
///
/// # Errors
///
/// As [`certificates_from_pem`]; DER is not parsed here.
pub fn certificates_from_file(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CertificateError> {
    if bytes.first() == Some(&der::SEQUENCE) { Ok(vec![bytes.to_vec()]) } else { certificates_from_pem(bytes) }
}

/// TBSCertificate: what an issuer signs.
#[derive(Clone, Debug)]
pub(crate) struct TbsCertificate<'a> {
    /// 1 or 3.
    pub(crate) version: u8,
    pub(crate) serial: &'a [u8],
    pub(crate) signature_algorithm: Tlv<'a>,
    pub(crate) issuer: &'a [u8],
    pub(crate) not_before: Time,
    pub(crate) not_after: Time,
    /// The two times as they stand, for checks of their form.
    pub(crate) validity: Tlv<'a>,
    pub(crate) subject: &'a [u8],
    pub(crate) spki: &'a [u8],
    pub(crate) has_unique_identifier: bool,
    pub(crate) extensions: Vec<Extension<'a>>,
}

impl<'a> TbsCertificate<'a> {
    pub(crate) fn read(tbs: &Tlv<'a>) -> Result<Self, CertificateError> {
        let mut fields = tbs.reader();
        let version = match fields.optional(der::context(0), "[0] version")? {
            None => 1,
            Some(explicit) => {
                let number = explicit.reader().element(der::INTEGER, "INTEGER of the version")?.small_integer()?;
                if number != 2 {
                    return Err(CertificateError::Version(number.saturating_add(1)));
                }
                3
            }
        };
        let serial = fields.element(der::INTEGER, "serialNumber")?;
        let signature_algorithm = fields.element(der::SEQUENCE, "AlgorithmIdentifier of the signature")?;
        let issuer = fields.element(der::SEQUENCE, "Name of the issuer")?;
        let validity = fields.element(der::SEQUENCE, "Validity")?;
        let subject = fields.element(der::SEQUENCE, "Name of the subject")?;
        let spki = fields.element(der::SEQUENCE, "SubjectPublicKeyInfo")?;
        let issuer_unique = fields.optional(der::context_primitive(1), "issuerUniqueID")?;
        let subject_unique = fields.optional(der::context_primitive(2), "subjectUniqueID")?;
        let extensions = match fields.optional(der::context(3), "[3] extensions")? {
            Some(explicit) if version == 3 => {
                let mut explicit = explicit.reader();
                let list = explicit.element(der::SEQUENCE, "Extensions")?;
                explicit.end("the end of the Extensions")?;
                extension::read_all(list.reader())?
            }
            // RFC 5280 section 4.1.2.9: a reader that went by them and one that did not would disagree.
            Some(explicit) => return Err(explicit.error("no extensions in version 1").into()),
            None => Vec::new(),
        };
        fields.end("the end of the TBSCertificate")?;

        let mut times = validity.reader();
        let not_before = Time::read(&times.any("notBefore")?)?;
        let not_after = Time::read(&times.any("notAfter")?)?;
        times.end("the end of the Validity")?;
        Ok(Self {
            version,
            serial: serial.value,
            signature_algorithm,
            issuer: issuer.whole,
            not_before,
            not_after,
            validity,
            subject: subject.whole,
            spki: spki.whole,
            has_unique_identifier: issuer_unique.is_some() || subject_unique.is_some(),
            extensions,
        })
    }

    pub(crate) fn extension(&self, id: &[u8]) -> Option<&Extension<'a>> {
        self.extensions.iter().find(|extension| extension.id == id)
    }
}
