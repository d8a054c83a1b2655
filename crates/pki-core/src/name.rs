//! Distinguished names: read the attributes, write a subject.

use crate::der::{self, DerError, Reader, Tlv, Writer};
use crate::oid;

/// One AttributeTypeAndValue (RFC 5280 section 4.1.2.4).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: &'a [u8],
    tag: u8,
    pub(crate) value: &'a [u8],
}

impl Attribute<'_> {
    /// A string type in which ASCII stands octet for octet and which is not
    /// of another age: UTF8String, PrintableString or IA5String.
    pub(crate) fn is_octet_string_type(&self) -> bool {
        matches!(self.tag, 0x0c | 0x13 | 0x16)
    }
}

/// The attributes of a Name, in order, whichever relative name they are in.
pub(crate) fn attributes(name: &[u8], offset: usize) -> Result<Vec<Attribute<'_>>, DerError> {
    let mut relative_names = Reader::at(name, offset).element(der::SEQUENCE, "Name")?.reader();
    let mut attributes = Vec::new();
    while !relative_names.is_empty() {
        let set = relative_names.element(der::SET, "RelativeDistinguishedName")?;
        if set.value.is_empty() {
            return Err(set.error("RelativeDistinguishedName with an attribute"));
        }
        let mut set = set.reader();
        while !set.is_empty() {
            let mut attribute = set.element(der::SEQUENCE, "AttributeTypeAndValue")?.reader();
            let kind = attribute.element(der::OBJECT_IDENTIFIER, "type of an attribute")?.object_identifier()?;
            let value = attribute.any("value of an attribute")?;
            attribute.end("the end of an AttributeTypeAndValue")?;
            attributes.push(Attribute { kind, tag: value.tag, value: value.value });
        }
    }
    Ok(attributes)
}

/// Are two RelativeDistinguishedNames the same? Strings are compared as RFC 5280
/// section 7.1 says, without case and surplus blanks and whichever of the two
/// string types in use they are in; everything else octet for octet.
pub(crate) fn is_same_relative_name(one: &Tlv<'_>, other: &Tlv<'_>) -> bool {
    if one.whole == other.whole {
        return true;
    }
    let string = |set: &Tlv<'_>| {
        let attribute = set.reader().element(der::SEQUENCE, "AttributeTypeAndValue").ok()?;
        // Of several attributes the order is one of octets, which folding would change.
        if attribute.whole.len() != set.value.len() {
            return None;
        }
        let mut attribute = attribute.reader();
        let kind = attribute.any("type of an attribute").ok()?.value;
        let value = attribute.any("value of an attribute").ok()?;
        let text = matches!(value.tag, der::UTF8_STRING | PRINTABLE_STRING).then(|| folded(value.value))?;
        Some((kind.to_vec(), text))
    };
    string(one).is_some_and(|one| string(other) == Some(one))
}

fn folded(text: &[u8]) -> Vec<u8> {
    let words = text.split(|octet| *octet == b' ').filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(&b' ').to_ascii_lowercase()
}

const PRINTABLE_STRING: u8 = 0x13;

/// The subject that a certificate gets: nothing, a commonName, or a
/// commonName and an organizationName, in that order and as UTF8Strings.
///
/// ```
/// use pki_core::Subject;
/// let subject = Subject::with_organization("agent:laptop", "Adit")?;
/// # Ok::<(), pki_core::SubjectError>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subject {
    common_name: Option<String>,
    organization: Option<String>,
}

/// A subject that X.509 has no room for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a {attribute} has 1 to 64 printable characters, not {found:?}")]
pub struct SubjectError {
    /// `common name` or `organization`.
    pub attribute: &'static str,
    /// What was given.
    pub found: String,
}

impl Subject {
    /// A commonName of 1 to 64 characters.
    ///
    /// # Errors
    ///
    /// [`SubjectError`] for text that is empty, too long (RFC 5280,
    /// ub-common-name) or has control characters.
    pub fn new(common_name: &str) -> Result<Self, SubjectError> {
        let common_name = checked("common name", common_name)?;
        Ok(Self { common_name: Some(common_name), organization: None })
    }

    /// A commonName and an organizationName of 1 to 64 characters each.
    ///
    /// # Errors
    ///
    /// As [`Subject::new`].
    pub fn with_organization(common_name: &str, organization: &str) -> Result<Self, SubjectError> {
        let organization = checked("organization", organization)?;
        Ok(Self { organization: Some(organization), ..Self::new(common_name)? })
    }

    /// For a host name, which has at most 64 ASCII characters here.
    pub(crate) fn common_name(host: &str) -> Self {
        Self { common_name: Some(host.to_owned()), organization: None }
    }

    pub(crate) const fn empty() -> Self {
        Self { common_name: None, organization: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.common_name.is_none() && self.organization.is_none()
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.nested(der::SEQUENCE, |name| {
            let attributes = [(oid::COMMON_NAME, &self.common_name), (oid::ORGANIZATION, &self.organization)];
            for (kind, value) in attributes {
                let Some(value) = value else { continue };
                name.nested(der::SET, |relative_name| {
                    relative_name.nested(der::SEQUENCE, |attribute| {
                        attribute.object_identifier(kind);
                        attribute.element(der::UTF8_STRING, value.as_bytes());
                    });
                });
            }
        });
    }
}

fn checked(attribute: &'static str, text: &str) -> Result<String, SubjectError> {
    let length = text.chars().count();
    if (1..=64).contains(&length) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(SubjectError { attribute, found: text.chars().take(80).collect() })
    }
}
