//! Extensions: read any, look into those of RFC 5280 that decide something.

use crate::der::{self, DerError, Reader};
use crate::name_constraints::{NameConstraints, is_base};
use crate::oid;

/// One extension (RFC 5280 section 4.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extension<'a> {
    pub(crate) id: &'a [u8],
    pub(crate) critical: bool,
    /// The content of extnValue.
    pub(crate) value: &'a [u8],
    offset: usize,
}

/// The identifier that stands twice, if one does (RFC 5280 section 4.2).
pub(crate) fn repeated<'a>(extensions: &[Extension<'a>]) -> Option<&'a [u8]> {
    let mut ids: Vec<_> = extensions.iter().map(|extension| extension.id).collect();
    ids.sort_unstable();
    ids.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// Every extension of a sequence; repetitions are the caller's to judge.
pub(crate) fn read_all(mut extensions: Reader<'_>) -> Result<Vec<Extension<'_>>, DerError> {
    let mut all = Vec::new();
    while !extensions.is_empty() {
        let mut fields = extensions.element(der::SEQUENCE, "Extension")?.reader();
        let id = fields.element(der::OBJECT_IDENTIFIER, "extnID")?.object_identifier()?;
        // An explicit FALSE is not DER, but requests with it are about and mean no harm.
        let critical = match fields.optional(der::BOOLEAN, "critical")? {
            Some(critical) => critical.boolean()?,
            None => false,
        };
        let value = fields.element(der::OCTET_STRING, "extnValue")?;
        fields.end("the end of an Extension")?;
        all.push(Extension { id, critical, value: value.value, offset: value.value_range().start });
    }
    Ok(all)
}

/// BasicConstraints (RFC 5280 section 4.2.1.9).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct BasicConstraints {
    pub(crate) ca: bool,
    pub(crate) path_length: Option<u64>,
}

/// One choice of GeneralName (RFC 5280 section 4.2.1.6), its content uninterpreted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum GeneralName<'a> {
    Directory(&'a [u8]),
    Dns(&'a [u8]),
    Ip(&'a [u8]),
    Other(u8, &'a [u8]),
    Rfc822(&'a [u8]),
    Uri(&'a [u8]),
}

impl GeneralName<'_> {
    /// Are both of one kind?
    pub(crate) fn is_of_kind(&self, other: &GeneralName<'_>) -> bool {
        match (self, other) {
            (Self::Other(one, _), GeneralName::Other(other, _)) => one == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// The name of the choice in RFC 5280.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Directory(_) => "directoryName",
            Self::Dns(_) => "dNSName",
            Self::Ip(_) => "iPAddress",
            Self::Other(0, _) => "otherName",
            Self::Other(3, _) => "x400Address",
            Self::Other(5, _) => "ediPartyName",
            Self::Other(8, _) => "registeredID",
            Self::Other(..) => "unknown",
            Self::Rfc822(_) => "rfc822Name",
            Self::Uri(_) => "uniformResourceIdentifier",
        }
    }
}

// KeyUsage bits as `Extension::key_usage` gives them: digitalSignature, bit 0
// of the BIT STRING, is the highest bit.
pub(crate) const DIGITAL_SIGNATURE: u16 = 0x8000;
pub(crate) const KEY_ENCIPHERMENT: u16 = 0x2000;
pub(crate) const KEY_CERT_SIGN: u16 = 0x0400;
pub(crate) const CRL_SIGN: u16 = 0x0200;

impl<'a> Extension<'a> {
    pub(crate) fn reader(&self) -> Reader<'a> {
        Reader::at(self.value, self.offset)
    }

    fn sequence(&self, expected: &'static str) -> Result<Reader<'a>, DerError> {
        let mut document = self.reader();
        let sequence = document.element(der::SEQUENCE, expected)?;
        document.end("the end of the extension")?;
        Ok(sequence.reader())
    }

    pub(crate) fn basic_constraints(&self) -> Result<BasicConstraints, DerError> {
        let mut fields = self.sequence("BasicConstraints")?;
        let ca = match fields.optional(der::BOOLEAN, "cA")? {
            Some(ca) => ca.boolean()?,
            None => false,
        };
        let path_length = match fields.optional(der::INTEGER, "pathLenConstraint")? {
            Some(length) => Some(length.small_integer()?),
            None => None,
        };
        fields.end("the end of BasicConstraints")?;
        Ok(BasicConstraints { ca, path_length })
    }

    /// Bit 0 (digitalSignature) is the highest bit of the first octet.
    pub(crate) fn key_usage(&self) -> Result<u16, DerError> {
        let mut document = self.reader();
        let bits = document.element(der::BIT_STRING, "KeyUsage")?;
        document.end("the end of KeyUsage")?;
        match *bits.value {
            [unused, octet] if unused < 8 => Ok(u16::from(octet) << 8),
            [unused, first, second] if unused < 8 => Ok(u16::from(first) << 8 | u16::from(second)),
            _ => Err(bits.error("KeyUsage of one to nine bits")),
        }
    }

    pub(crate) fn extended_key_usage(&self) -> Result<Vec<&'a [u8]>, DerError> {
        self.object_identifiers("ExtKeyUsageSyntax")
    }

    pub(crate) fn general_names(&self) -> Result<Vec<GeneralName<'a>>, DerError> {
        read_general_names(self.sequence("GeneralNames")?)
    }

    pub(crate) fn subject_key_identifier(&self) -> Result<&'a [u8], DerError> {
        let mut document = self.reader();
        let identifier = document.element(der::OCTET_STRING, "SubjectKeyIdentifier")?;
        document.end("the end of SubjectKeyIdentifier")?;
        Ok(identifier.value)
    }

    /// The keyIdentifier, if there is one.
    pub(crate) fn authority_key_identifier(&self) -> Result<Option<&'a [u8]>, DerError> {
        let mut fields = self.sequence("AuthorityKeyIdentifier")?;
        Ok(fields.optional(der::context_primitive(0), "keyIdentifier")?.map(|identifier| identifier.value))
    }

    /// The URIs of the distribution points that have a fullName.
    pub(crate) fn crl_distribution_points(&self) -> Result<Vec<&'a [u8]>, DerError> {
        let mut points = self.sequence("CRLDistributionPoints")?;
        let mut uris = Vec::new();
        while !points.is_empty() {
            let mut point = points.element(der::SEQUENCE, "DistributionPoint")?.reader();
            let Some(name) = point.optional(der::context(0), "distributionPoint")? else { continue };
            let Some(full_name) = name.reader().optional(der::context(0), "fullName")? else { continue };
            uris.extend(read_general_names(full_name.reader())?.iter().filter_map(|name| match name {
                GeneralName::Uri(uri) => Some(*uri),
                _ => None,
            }));
        }
        Ok(uris)
    }

    /// Access method and location of each AccessDescription.
    pub(crate) fn authority_info_access(&self) -> Result<Vec<(&'a [u8], GeneralName<'a>)>, DerError> {
        let mut descriptions = self.sequence("AuthorityInfoAccessSyntax")?;
        let mut all = Vec::new();
        while !descriptions.is_empty() {
            let mut description = descriptions.element(der::SEQUENCE, "AccessDescription")?.reader();
            let method = description.element(der::OBJECT_IDENTIFIER, "accessMethod")?.object_identifier()?;
            all.push((method, read_general_name(&mut description)?));
        }
        Ok(all)
    }

    pub(crate) fn name_constraints(&self) -> Result<NameConstraints<'a>, DerError> {
        let mut fields = self.sequence("NameConstraints")?;
        let mut subtrees = |number| {
            let mut bases = Vec::new();
            let Some(list) = fields.optional(der::context(number), "GeneralSubtrees")? else { return Ok(bases) };
            let mut list = list.reader();
            while !list.is_empty() {
                let mut subtree = list.element(der::SEQUENCE, "GeneralSubtree")?.reader();
                let (offset, base) = (subtree.offset(), read_general_name(&mut subtree)?);
                if !is_base(&base) {
                    return Err(DerError { offset, expected: "a name in the form that a GeneralSubtree has" });
                }
                bases.push(base);
                // RFC 5280 section 4.2.1.10: minimum is 0 and maximum absent. DER leaves the 0
                // out; authorities of some age wrote it.
                if let Some(minimum) = subtree.optional(der::context_primitive(0), "minimum")?
                    && minimum.value != [0]
                {
                    return Err(minimum.error("GeneralSubtree with minimum 0"));
                }
                subtree.end("GeneralSubtree without maximum")?;
            }
            Ok(bases)
        };
        let constraints = NameConstraints { permitted: subtrees(0)?, excluded: subtrees(1)? };
        fields.end("the end of NameConstraints")?;
        if constraints.permitted.is_empty() && constraints.excluded.is_empty() {
            return Err(DerError { offset: self.offset, expected: "NameConstraints with a GeneralSubtree" });
        }
        Ok(constraints)
    }

    /// Is the content what RFC 5280 says for this identifier? Identifiers that
    /// are not known here pass.
    pub(crate) fn check_content(&self) -> Result<(), DerError> {
        match self.id {
            oid::BASIC_CONSTRAINTS => self.basic_constraints().map(drop),
            oid::EXTENDED_KEY_USAGE => self.extended_key_usage().map(drop),
            oid::KEY_USAGE => self.key_usage().map(drop),
            oid::NAME_CONSTRAINTS => self.name_constraints().map(drop),
            oid::SUBJECT_ALT_NAME => self.general_names().map(drop),
            oid::SUBJECT_KEY_IDENTIFIER => self.subject_key_identifier().map(drop),
            _ => Ok(()),
        }
    }

    fn object_identifiers(&self, expected: &'static str) -> Result<Vec<&'a [u8]>, DerError> {
        let mut list = self.sequence(expected)?;
        let mut all = Vec::new();
        while !list.is_empty() {
            all.push(list.element(der::OBJECT_IDENTIFIER, expected)?.object_identifier()?);
        }
        if all.is_empty() { Err(DerError { offset: self.offset, expected }) } else { Ok(all) }
    }
}

fn read_general_names(mut names: Reader<'_>) -> Result<Vec<GeneralName<'_>>, DerError> {
    let mut all = Vec::new();
    while !names.is_empty() {
        all.push(read_general_name(&mut names)?);
    }
    Ok(all)
}

fn read_general_name<'a>(reader: &mut Reader<'a>) -> Result<GeneralName<'a>, DerError> {
    let name = reader.any("GeneralName")?;
    Ok(match name.tag {
        0x81 => GeneralName::Rfc822(name.value),
        0x82 => GeneralName::Dns(name.value),
        0xa4 => GeneralName::Directory(name.value),
        0x86 => GeneralName::Uri(name.value),
        0x87 => GeneralName::Ip(name.value),
        0xa0 | 0xa3 | 0xa5 | 0x88 => GeneralName::Other(name.tag & 0x1f, name.value),
        _ => return Err(name.error("GeneralName")),
    })
}
