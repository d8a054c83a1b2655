//! Certificate revocation lists (RFC 5280 section 5): written by an issuer,
//! and read back.
//!
//! Complete lists of one issuer only: no deltas, no indirect lists. Signing
//! takes two steps, as for certificates: [`Issuer::revocation_list`] gives the
//! bytes and [`CrlToBeSigned::finish`] takes the signature.

use std::collections::BTreeMap;

use base16ct::lower::encode_string as hex;
use serde::Serialize;

use crate::algorithm::SignatureAlgorithm;
use crate::certificate::{Certificate, CertificateError};
use crate::crypto::{SignError, Signer, Verifier};
use crate::der::{self, DerError, Reader, Tlv, Writer, without_leading_zeros};
use crate::extension::{self, CRL_SIGN, Extension};
use crate::fingerprint::Fingerprint;
use crate::inspect::{distinguished_name, signature_algorithm};
use crate::issue::{write_authority_key_identifier, write_extension};
use crate::issuer::Issuer;
use crate::key::PublicKey;
use crate::oid::{self, ObjectIdentifier};
use crate::pem::{self, PemError};
use crate::time::Time;

/// The most octets of a list that are read: 1.5 million entries with serials
/// of 20 octets.
pub const MAX_CRL_OCTETS: usize = 64 * 1024 * 1024;

/// The most entries that [`inspect_crl`] tells one by one.
const MAX_TOLD: usize = 1000;

const LABEL: &str = "X509 CRL";

/// One certificate that is not to be trusted any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RevokedCertificate<'a> {
    /// Its serial number, big-endian; leading zeros do not matter, so that
    /// [`Certificate::serial`] fits.
    pub serial: &'a [u8],
    /// Since when.
    pub revoked_at: Time,
}

/// Why a list is not made, not read or not believed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CrlError {
    /// Not the DER of one list.
    #[error("the revocation list is not valid DER: {0}")]
    Der(DerError),
    /// The issuer's certificate cannot be read.
    #[error("the certificate of the list's issuer cannot be used")]
    Issuer(#[source] CertificateError),
    /// An extension that stands twice.
    #[error("the revocation list has the extension {0} twice")]
    DuplicateExtension(ObjectIdentifier),
    /// A list of version 2 without a CRLNumber, or with a critical one: which
    /// of two lists is newer cannot be told.
    #[error("the revocation list has no number, or a critical one (RFC 5280 section 5.2.3)")]
    Number,
    /// The list names another issuer.
    #[error("the revocation list is of another issuer than the certificate's subject")]
    IssuerMismatch,
    /// It would be over when it begins.
    #[error("the next list comes on {next_update}, which is not after this one on {this_update}")]
    NextUpdate {
        /// When the list is made.
        this_update: Time,
        /// When the next one is to be there.
        next_update: Time,
    },
    /// No authority, or a key usage without cRLSign.
    #[error("the issuer may not sign revocation lists: its certificate has no cRLSign")]
    NotAllowed,
    /// No PEM block of a list.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// A serial number without octets.
    #[error("a serial number of the list is empty")]
    Serial,
    /// The signature does not match the issuer's key.
    #[error("the signature of the revocation list does not match its issuer's key")]
    Signature,
    /// More octets than are read, or written.
    #[error("the revocation list has {size} octets, more than the {limit} that are read")]
    TooLarge {
        /// Octets given.
        size: usize,
        /// Octets allowed.
        limit: usize,
    },
    /// A critical extension, of the list or of an entry, that is not understood:
    /// a delta or an indirect list, for example.
    #[error("the revocation list has a critical extension {0} that is not understood")]
    UnknownCritical(ObjectIdentifier),
    /// A version other than 1 and 2.
    #[error("revocation lists of version {0} are not read")]
    Version(u64),
}

// Not `#[from]`: the text tells it, and whoever prints a chain of sources would tell it twice.
impl From<DerError> for CrlError {
    fn from(error: DerError) -> Self {
        Self::Der(error)
    }
}

impl Issuer {
    /// Assembles the list of version 2 to sign: every certificate of this
    /// issuer that is revoked and not yet expired.
    ///
    /// `number` is the CRLNumber and must be higher than the last list's (RFC
    /// 5280 section 5.2.3); the caller counts. The entries keep their order; a
    /// serial that is given twice stands once, in its first place and with the
    /// earlier date. Whether the issuer is valid then is not checked.
    ///
    /// # Errors
    ///
    /// [`CrlError::NotAllowed`] when the issuer's key usage lacks cRLSign,
    /// [`CrlError::NextUpdate`], [`CrlError::Serial`], and
    /// [`CrlError::TooLarge`] for a list that would not be read.
    pub fn revocation_list(
        &self,
        revoked: &[RevokedCertificate<'_>],
        number: u64,
        this_update: Time,
        next_update: Time,
    ) -> Result<CrlToBeSigned, CrlError> {
        if !self.signs_revocation_lists() {
            return Err(CrlError::NotAllowed);
        }
        if next_update <= this_update {
            return Err(CrlError::NextUpdate { this_update, next_update });
        }
        if revoked.iter().any(|entry| entry.serial.is_empty()) {
            return Err(CrlError::Serial);
        }
        let repeated = repetitions(revoked);
        let mut writer = Writer::with_capacity(512 + self.name().len() + revoked.len() * ENTRY_OCTETS);
        writer.nested(der::SEQUENCE, |list| {
            list.element(der::INTEGER, &[1]);
            list.raw(self.algorithm().identifier_der());
            list.raw(self.name());
            this_update.write(list);
            next_update.write(list);
            // RFC 5280 section 5.1.2.6: absent when there is none.
            if !revoked.is_empty() {
                list.nested(der::SEQUENCE, |list| {
                    for (at, entry) in revoked.iter().enumerate() {
                        let date = match repeated.get(&at) {
                            None => entry.revoked_at,
                            Some(Some(earliest)) => *earliest,
                            Some(None) => continue,
                        };
                        list.nested(der::SEQUENCE, |fields| {
                            fields.unsigned_integer(entry.serial);
                            date.write(fields);
                        });
                    }
                });
            }
            list.nested(der::context(0), |explicit| {
                explicit.nested(der::SEQUENCE, |extensions| {
                    write_authority_key_identifier(extensions, self.key_identifier());
                    write_extension(extensions, oid::CRL_NUMBER, false, |value| {
                        value.unsigned_integer(&number.to_be_bytes());
                    });
                });
            });
        });
        let tbs = writer.finish();
        // Leaves room for the signature.
        if tbs.len() > MAX_CRL_OCTETS - 4096 {
            return Err(CrlError::TooLarge { size: tbs.len(), limit: MAX_CRL_OCTETS });
        }
        Ok(CrlToBeSigned { tbs, algorithm: self.algorithm(), number, this_update, next_update })
    }
}

/// An entry with a serial of 20 octets and its date.
const ENTRY_OCTETS: usize = 40;

/// What to do with serials that are given several times, by position: the
/// first gets the earliest date of all, the others are left out.
fn repetitions(revoked: &[RevokedCertificate<'_>]) -> BTreeMap<usize, Option<Time>> {
    // Serials are sorted by their last octets, which differ whether they are
    // random or counted up, and the whole of them is looked at only where those
    // agree: in a long list memory is what takes time.
    let serial = |at: usize| without_leading_zeros(revoked[at].serial);
    let key = |entry: &RevokedCertificate<'_>| {
        let last = entry.serial.last_chunk::<8>();
        last.map_or_else(
            || entry.serial.iter().fold(0, |number, octet| number << 8 | u64::from(*octet)),
            |last| u64::from_be_bytes(*last),
        )
    };
    let mut keys: Vec<_> = revoked.iter().enumerate().map(|(at, entry)| (key(entry), at)).collect();
    keys.sort_unstable();
    let mut repeated = BTreeMap::new();
    for same_key in keys.chunk_by_mut(|(key, _), (other, _)| key == other).filter(|run| run.len() > 1) {
        same_key.sort_unstable_by(|(_, at), (_, other)| serial(*at).cmp(serial(*other)).then(at.cmp(other)));
        for same_serial in same_key.chunk_by(|(_, at), (_, other)| serial(*at) == serial(*other)) {
            let [(_, first), rest @ ..] = same_serial else { continue };
            let Some(earliest) = rest.iter().map(|(_, at)| revoked[*at].revoked_at).min() else { continue };
            repeated.insert(*first, Some(earliest.min(revoked[*first].revoked_at)));
            repeated.extend(rest.iter().map(|(_, at)| (*at, None)));
        }
    }
    repeated
}

/// A TBSCertList that waits for its signature.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use = "there is no list before `finish`"]
pub struct CrlToBeSigned {
    tbs: Vec<u8>,
    algorithm: SignatureAlgorithm,
    number: u64,
    this_update: Time,
    next_update: Time,
}

impl CrlToBeSigned {
    /// What the issuer's key must sign.
    pub fn as_bytes(&self) -> &[u8] {
        &self.tbs
    }

    /// How it must be signed.
    pub fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// Joins the signature to the bytes; it is not verified here.
    pub fn finish(self, signature: &[u8]) -> Crl {
        let mut writer = Writer::with_capacity(self.tbs.len() + signature.len() + 64);
        writer.nested(der::SEQUENCE, |list| {
            list.raw(&self.tbs);
            list.raw(self.algorithm.identifier_der());
            list.bit_string(signature);
        });
        let der = writer.finish();
        Crl { der, number: self.number, this_update: self.this_update, next_update: self.next_update }
    }

    /// Signs and joins in one step.
    ///
    /// # Errors
    ///
    /// Those of [`Signer::sign`].
    pub fn sign(self, signer: &dyn Signer) -> Result<Crl, SignError> {
        let signature = signer.sign(&self.tbs)?;
        Ok(self.finish(&signature))
    }
}

/// A signed revocation list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Crl {
    der: Vec<u8>,
    number: u64,
    this_update: Time,
    next_update: Time,
}

impl Crl {
    /// The list in DER, as an `http` distribution point serves it (RFC 5280 section 4.2.1.13).
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The list as one `X509 CRL` PEM block that ends with a newline.
    pub fn to_pem(&self) -> String {
        pem::encode(LABEL, &self.der)
    }

    /// Its CRLNumber.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When it was made.
    pub fn this_update(&self) -> Time {
        self.this_update
    }

    /// When the next one is to be there.
    pub fn next_update(&self) -> Time {
        self.next_update
    }
}

/// The DER of every list of a file: `X509 CRL` PEM blocks, or one list in DER.
/// Other blocks are passed over.
///
/// # Errors
///
/// [`CrlError::TooLarge`], and [`CrlError::Pem`] when there is no block with
/// this label; DER is not parsed here.
pub fn revocation_lists_from_file(bytes: &[u8]) -> Result<Vec<Vec<u8>>, CrlError> {
    // Base64 with line ends takes three octets for two, at most.
    let limit = if bytes.first() == Some(&der::SEQUENCE) { MAX_CRL_OCTETS } else { MAX_CRL_OCTETS / 2 * 3 };
    if bytes.len() > limit {
        return Err(CrlError::TooLarge { size: bytes.len(), limit });
    }
    if bytes.first() == Some(&der::SEQUENCE) {
        return Ok(vec![bytes.to_vec()]);
    }
    Ok(pem::decode_all(bytes, &[LABEL])?)
}

/// A well-formed revocation list of version 1 or 2, borrowed from its DER.
///
/// Reading checks the structure only. Nothing in it is to be believed before
/// [`RevocationList::verify`].
#[derive(Clone, Debug)]
pub struct RevocationList<'a> {
    der: &'a [u8],
    /// TBSCertList with its header: what the signature covers.
    tbs_der: &'a [u8],
    version: u8,
    inner_algorithm: Tlv<'a>,
    issuer: &'a [u8],
    this_update: Time,
    next_update: Option<Time>,
    entries: Reader<'a>,
    length: usize,
    extensions: Vec<Extension<'a>>,
    /// The first critical extension among all entries'.
    critical_of_entry: Option<ObjectIdentifier>,
    number: Option<&'a [u8]>,
    signature_algorithm: Tlv<'a>,
    signature: &'a [u8],
}

impl<'a> RevocationList<'a> {
    /// Reads the DER of one list and walks all its entries.
    ///
    /// # Errors
    ///
    /// [`CrlError::TooLarge`] beyond [`MAX_CRL_OCTETS`], [`CrlError::Version`],
    /// [`CrlError::Der`].
    pub fn from_der(der: &'a [u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_CRL_OCTETS {
            return Err(CrlError::TooLarge { size: der.len(), limit: MAX_CRL_OCTETS });
        }
        let mut document = Reader::new(der);
        let outer = document.element(der::SEQUENCE, "SEQUENCE of a CertificateList")?;
        document.end("the end of the CertificateList")?;
        let mut parts = outer.reader();
        let tbs = parts.element(der::SEQUENCE, "TBSCertList")?;
        let signature_algorithm = parts.element(der::SEQUENCE, "AlgorithmIdentifier of the signature")?;
        let signature = parts.element(der::BIT_STRING, "BIT STRING of the signature")?.bit_string_octets()?;
        parts.end("the end of the CertificateList")?;

        let mut fields = tbs.reader();
        let version = match fields.optional(der::INTEGER, "version")? {
            None => 1,
            Some(version) => match version.small_integer()? {
                1 => 2,
                other => return Err(CrlError::Version(other.saturating_add(1))),
            },
        };
        let inner_algorithm = fields.element(der::SEQUENCE, "AlgorithmIdentifier of the signature")?;
        let issuer = fields.element(der::SEQUENCE, "Name of the issuer")?.whole;
        let this_update = Time::read(&fields.any("thisUpdate")?)?;
        let next_update = match fields.optional(der::UTC_TIME, "nextUpdate")? {
            Some(time) => Some(time),
            None => fields.optional(der::GENERALIZED_TIME, "nextUpdate")?,
        };
        let next_update = next_update.as_ref().map(Time::read).transpose()?;
        let entries = match fields.optional(der::SEQUENCE, "revokedCertificates")? {
            Some(list) => list.reader(),
            None => Reader::new(&[]),
        };
        let mut extensions = Vec::new();
        if let Some(explicit) = fields.optional(der::context(0), "[0] crlExtensions")? {
            if version == 1 {
                return Err(explicit.error("no extensions in version 1").into());
            }
            let mut explicit = explicit.reader();
            extensions = extension::read_all(explicit.element(der::SEQUENCE, "Extensions")?.reader())?;
            explicit.end("the end of the Extensions")?;
        }
        fields.end("the end of the TBSCertList")?;

        let (mut length, mut critical_of_entry) = (0, None);
        let mut walk = entries.clone();
        while !walk.is_empty() {
            let entry = RevokedEntry::read(&mut walk)?;
            if let Some(extensions) = &entry.extensions {
                if version == 1 {
                    return Err(extensions.error("no extensions in version 1").into());
                }
                let critical = extension::read_all(extensions.reader())?.into_iter().find(|ext| ext.critical);
                critical_of_entry = critical_of_entry.or(critical.map(|ext| ObjectIdentifier::new(ext.id)));
            }
            length += 1;
        }
        let number = extensions.iter().find(|extension| extension.id == oid::CRL_NUMBER);
        let number = number.map(|extension| read_number(extension)).transpose()?;
        Ok(Self {
            der,
            tbs_der: tbs.whole,
            version,
            inner_algorithm,
            issuer,
            this_update,
            next_update,
            entries,
            length,
            extensions,
            critical_of_entry,
            number,
            signature_algorithm,
            signature,
        })
    }

    /// Is it the list of the authority with this certificate in DER?
    ///
    /// The names must be the same octet for octet, the certificate one of an
    /// authority whose key usage, if it has one, includes cRLSign, the signature
    /// its key's, and no critical extension may be left that is not understood
    /// here (RFC 5280 section 6.3.3). That the certificate is trusted and that
    /// the list is of today are the caller's to check.
    ///
    /// # Errors
    ///
    /// The [`CrlError`] of the first check that fails.
    pub fn verify(&self, issuer_certificate: &[u8], verifier: &dyn Verifier) -> Result<(), CrlError> {
        let issuer = Certificate::from_der(issuer_certificate).map_err(CrlError::Issuer)?;
        if issuer.tbs.subject != self.issuer {
            return Err(CrlError::IssuerMismatch);
        }
        let basic = issuer.tbs.extension(oid::BASIC_CONSTRAINTS).map(|extension| extension.basic_constraints());
        let usage = issuer.tbs.extension(oid::KEY_USAGE).map(|extension| extension.key_usage());
        let is_authority = matches!(basic, Some(Ok(basic)) if basic.ca);
        if !is_authority || !usage.is_none_or(|usage| usage.is_ok_and(|usage| usage & CRL_SIGN != 0)) {
            return Err(CrlError::NotAllowed);
        }
        // RFC 5280 section 5.1.1.2: the algorithm stands twice and must be the same.
        let algorithm = SignatureAlgorithm::read(&self.signature_algorithm);
        let (Ok(algorithm), Ok(key)) = (algorithm, PublicKey::from_der(issuer.spki())) else {
            return Err(CrlError::Signature);
        };
        if self.signature_algorithm.whole != self.inner_algorithm.whole
            || verifier.verify(&key, algorithm, self.tbs_der, self.signature).is_err()
        {
            return Err(CrlError::Signature);
        }
        if let Some(id) = extension::repeated(&self.extensions) {
            return Err(CrlError::DuplicateExtension(ObjectIdentifier::new(id)));
        }
        // RFC 5280 section 5.2.3: every list of version 2 has one, and it is not critical.
        let number = self.extensions.iter().find(|extension| extension.id == oid::CRL_NUMBER);
        if self.version == 2 && number.is_none_or(|number| number.critical) {
            return Err(CrlError::Number);
        }
        let critical =
            self.extensions.iter().find(|extension| extension.critical && !UNDERSTOOD.contains(&extension.id));
        match critical.map(|extension| ObjectIdentifier::new(extension.id)).or(self.critical_of_entry.clone()) {
            Some(extension) => Err(CrlError::UnknownCritical(extension)),
            None => Ok(()),
        }
    }

    /// Does the list name this serial, big-endian? Reads through all entries; for many
    /// questions collect [`RevocationList::entries`] once.
    pub fn is_revoked(&self, serial: &[u8]) -> bool {
        let serial = without_leading_zeros(serial);
        self.entries().any(|entry| without_leading_zeros(entry.serial) == serial)
    }

    /// The revoked certificates, in the order of the list.
    pub fn entries(&self) -> RevokedEntries<'a> {
        RevokedEntries { rest: self.entries.clone(), left: self.length }
    }

    /// The list in DER.
    pub fn der(&self) -> &'a [u8] {
        self.der
    }

    /// 1 or 2.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The issuer's Name in DER.
    pub fn issuer_der(&self) -> &'a [u8] {
        self.issuer
    }

    /// When it was made.
    pub fn this_update(&self) -> Time {
        self.this_update
    }

    /// When the next one is to be there; RFC 5280 asks for it, X.509 does not.
    pub fn next_update(&self) -> Option<Time> {
        self.next_update
    }

    /// The CRLNumber; `None` also when it takes more than 64 bits.
    pub fn number(&self) -> Option<u64> {
        let magnitude = self.number.filter(|magnitude| magnitude.len() <= 8)?;
        Some(magnitude.iter().fold(0, |number, octet| number << 8 | u64::from(*octet)))
    }
}

/// What is neither: issuingDistributionPoint and deltaCRLIndicator are critical
/// and change what the list means.
const UNDERSTOOD: [&[u8]; 2] = [oid::AUTHORITY_KEY_IDENTIFIER, oid::CRL_NUMBER];

fn read_number<'a>(extension: &Extension<'a>) -> Result<&'a [u8], DerError> {
    let mut document = extension.reader();
    let number = document.element(der::INTEGER, "CRLNumber")?.unsigned_integer()?;
    document.end("the end of the CRLNumber")?;
    Ok(number)
}

/// The entries of a [`RevocationList`].
#[derive(Clone, Debug)]
pub struct RevokedEntries<'a> {
    rest: Reader<'a>,
    left: usize,
}

impl<'a> Iterator for RevokedEntries<'a> {
    type Item = RevokedEntry<'a>;

    fn next(&mut self) -> Option<RevokedEntry<'a>> {
        // `from_der` has read every entry before: there is no error to lose.
        let entry = RevokedEntry::read(&mut self.rest).ok()?;
        self.left -= 1;
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for RevokedEntries<'_> {}

/// One entry of a [`RevocationList`].
#[derive(Clone, Copy, Debug)]
pub struct RevokedEntry<'a> {
    serial: &'a [u8],
    revoked_at: Time,
    extensions: Option<Tlv<'a>>,
}

impl<'a> RevokedEntry<'a> {
    fn read(list: &mut Reader<'a>) -> Result<Self, DerError> {
        let mut fields = list.element(der::SEQUENCE, "entry of revokedCertificates")?.reader();
        let serial = fields.element(der::INTEGER, "userCertificate")?.unsigned_integer()?;
        let revoked_at = Time::read(&fields.any("revocationDate")?)?;
        let extensions = fields.optional(der::SEQUENCE, "crlEntryExtensions")?;
        fields.end("the end of an entry of revokedCertificates")?;
        Ok(Self { serial, revoked_at, extensions })
    }

    /// The serial number, big-endian, without a leading zero octet.
    pub fn serial(&self) -> &'a [u8] {
        self.serial
    }

    /// Since when.
    pub fn revoked_at(&self) -> Time {
        self.revoked_at
    }

    /// The reason as RFC 5280 section 5.3.1 spells it, if one is given and known.
    pub fn reason(&self) -> Option<&'static str> {
        let extensions = extension::read_all(self.extensions?.reader()).ok()?;
        let reason = extensions.iter().find(|extension| extension.id == oid::CRL_REASON)?;
        let reason = reason.reader().element(der::ENUMERATED, "CRLReason").ok()?.small_integer().ok()?;
        REASONS.get(usize::try_from(reason).ok()?).copied().filter(|name| !name.is_empty())
    }
}

const REASONS: [&str; 11] = [
    "unspecified",
    "keyCompromise",
    "cACompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "certificateHold",
    "",
    "removeFromCRL",
    "privilegeWithdrawn",
    "aACompromise",
];

/// A revocation list in words.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct CrlSummary {
    /// 1 or 2.
    pub version: u8,
    /// RFC 4514, most specific part first.
    pub issuer: String,
    /// When it was made.
    pub this_update: Time,
    /// When the next one is to be there.
    pub next_update: Option<Time>,
    /// The CRLNumber: decimal, or lower-case hex after `0x` beyond 64 bits.
    pub number: Option<String>,
    /// For example `ECDSA with SHA-256`; the algorithm's identifier if unknown.
    pub signature_algorithm: String,
    /// Hex.
    pub authority_key_identifier: Option<String>,
    /// Extensions without a field here, by identifier.
    pub other_extensions: Vec<String>,
    /// How many certificates are revoked.
    pub revoked_count: usize,
    /// The first 1000 of them, in the order of the list.
    pub revoked: Vec<RevokedSummary>,
    /// SHA-256 of the DER.
    pub fingerprint_sha256: Fingerprint,
}

/// A revoked certificate in words.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RevokedSummary {
    /// Lower-case hex.
    pub serial: String,
    /// Since when.
    pub revoked_at: Time,
    /// As RFC 5280 spells it.
    pub reason: Option<&'static str>,
}

/// Reads a list's DER, as [`RevocationList::from_der`] does, and tells what it says.
///
/// Nothing is verified. Of the entries the first 1000 are told and the rest counted.
///
/// # Errors
///
/// Those of [`RevocationList::from_der`].
pub fn inspect_crl(der: &[u8]) -> Result<CrlSummary, CrlError> {
    const TOLD: [&[u8]; 2] = [oid::AUTHORITY_KEY_IDENTIFIER, oid::CRL_NUMBER];

    let list = RevocationList::from_der(der)?;
    let authority_key = list.extensions.iter().find(|extension| extension.id == oid::AUTHORITY_KEY_IDENTIFIER);
    let others = list.extensions.iter().filter(|extension| !TOLD.contains(&extension.id));
    let number = |magnitude| list.number().map_or_else(|| format!("0x{}", hex(magnitude)), |number| number.to_string());
    Ok(CrlSummary {
        version: list.version,
        issuer: distinguished_name(list.issuer),
        this_update: list.this_update,
        next_update: list.next_update,
        number: list.number.map(number),
        signature_algorithm: signature_algorithm(&list.signature_algorithm),
        authority_key_identifier: authority_key
            .and_then(|extension| extension.authority_key_identifier().ok().flatten())
            .map(hex),
        other_extensions: others.map(|extension| ObjectIdentifier::new(extension.id).to_string()).collect(),
        revoked_count: list.length,
        revoked: list
            .entries()
            .take(MAX_TOLD)
            .map(|entry| RevokedSummary {
                serial: hex(entry.serial),
                revoked_at: entry.revoked_at,
                reason: entry.reason(),
            })
            .collect(),
        fingerprint_sha256: Fingerprint::of(der),
    })
}
