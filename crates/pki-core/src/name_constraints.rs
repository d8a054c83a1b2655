//! nameConstraints (RFC 5280 section 4.2.1.10): which names an authority may
//! sign, and whether a name is one of them.
//!
//! What cannot be judged is never waved through: a name that is not in the
//! form of its kind is outside of every permitted subtree and inside of every
//! excluded one, a base that is not is an error of the whole extension, and a
//! kind that is not compared here is an objection by its name.

use crate::der::{self, Reader};
use crate::extension::GeneralName;
use crate::name::is_same_relative_name;

/// Names that certificates below may and may not carry.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct NameConstraints<'a> {
    pub(crate) permitted: Vec<GeneralName<'a>>,
    pub(crate) excluded: Vec<GeneralName<'a>>,
}

/// Why a name is not allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Objection {
    /// More comparisons than the caller has time for.
    Budget,
    /// Constraints on a kind of name that is not compared here.
    Kind(&'static str),
    /// Outside of what is permitted, or inside of what is excluded.
    Name,
}

impl NameConstraints<'_> {
    /// Is the name allowed? Every comparison takes one off the budget.
    pub(crate) fn check(&self, name: &GeneralName<'_>, budget: &mut usize) -> Result<(), Objection> {
        let mut is_limited = false;
        let mut is_inside = false;
        let permitted = self.permitted.iter().map(|base| (base, Subtree::Permitted));
        let excluded = self.excluded.iter().map(|base| (base, Subtree::Excluded));
        for (base, subtree) in permitted.chain(excluded) {
            *budget = budget.checked_sub(1).ok_or(Objection::Budget)?;
            if !base.is_of_kind(name) {
                continue;
            }
            let is_within = is_within(name, base, subtree).ok_or(Objection::Kind(name.kind()))?;
            match subtree {
                Subtree::Permitted => {
                    is_limited = true;
                    is_inside |= is_within;
                }
                Subtree::Excluded if is_within => return Err(Objection::Name),
                Subtree::Excluded => {}
            }
        }
        if is_limited && !is_inside { Err(Objection::Name) } else { Ok(()) }
    }
}

/// Which list a base stands in. It decides what a wildcard is: all of its names
/// must be permitted, and not one excluded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Subtree {
    Excluded,
    Permitted,
}

/// Is a name inside a subtree of its own kind? `None` for kinds that are not
/// compared here.
pub(crate) fn is_within(name: &GeneralName<'_>, base: &GeneralName<'_>, subtree: Subtree) -> Option<bool> {
    let is_within = match (name, base) {
        (GeneralName::Directory(name), GeneralName::Directory(base)) => directory_is_within(name, base),
        (GeneralName::Dns(name), GeneralName::Dns(base)) => dns_is_within(name, base, subtree),
        (GeneralName::Ip(address), GeneralName::Ip(range)) => ip_is_within(address, range),
        (GeneralName::Rfc822(mailbox), GeneralName::Rfc822(base)) => mailbox_is_within(mailbox, base),
        (GeneralName::Uri(uri), GeneralName::Uri(base)) => host_of_uri(uri).map(|host| host_is_within(host, base)),
        _ => return None,
    };
    Some(is_within.unwrap_or(subtree == Subtree::Excluded))
}

/// Is it a base that names of its kind can be compared with? Kinds that are not
/// compared pass: they object when a name of that kind turns up.
pub(crate) fn is_base(base: &GeneralName<'_>) -> bool {
    let is_host = |host: &[u8]| is_host(host.strip_prefix(b".").unwrap_or(host));
    match base {
        GeneralName::Directory(name) => crate::name::attributes(name, 0).is_ok(),
        // An empty base is every name.
        GeneralName::Dns(base) | GeneralName::Uri(base) => base.is_empty() || is_host(base),
        GeneralName::Ip(range) => {
            let mask = &range[range.len() / 2..];
            let ones = mask.iter().map(|octet| octet.leading_ones()).take_while(|ones| *ones == 8).count();
            // RFC 4632 section 5.1: ones, then zeros.
            let rest = mask.get(ones..).unwrap_or_default();
            let is_prefix = rest.first().is_none_or(|octet| octet.leading_ones() + octet.trailing_zeros() >= 8)
                && rest.iter().skip(1).all(|octet| *octet == 0);
            matches!(range.len(), 8 | 32) && is_prefix
        }
        GeneralName::Rfc822(base) => match mailbox(base) {
            Some((_, host)) => is_host(host),
            None => base.is_empty() || (!base.contains(&b'@') && is_host(base)),
        },
        GeneralName::Other(..) => true,
    }
}

fn dns_is_within(name: &[u8], base: &[u8], subtree: Subtree) -> Option<bool> {
    let (is_wildcard, name) = match name.strip_prefix(b"*.") {
        Some(parent) => (true, parent),
        None => (false, name),
    };
    // "example.com." is the same name; nobody should get out of a subtree by the dot.
    let name = name.strip_suffix(b".").unwrap_or(name);
    if !is_host(name) {
        return None;
    }
    if !is_wildcard {
        return Some(host_or_below_is_within(name, base));
    }
    // Everything below the wildcard's parent is below what the parent is below.
    if host_or_below_is_within(name, base.strip_prefix(b".").unwrap_or(base)) {
        return Some(true);
    }
    // CVE-2025-61727: "*.example.com" is "bad.example.com", too.
    let parent_of_base = base.iter().position(|octet| *octet == b'.').map(|dot| &base[dot + 1..]);
    let may_be_base = !base.starts_with(b".") && parent_of_base.is_some_and(|parent| parent.eq_ignore_ascii_case(name));
    Some(subtree == Subtree::Excluded && may_be_base)
}

/// Of a dNSName the base is a host and everything below it; with a leading dot,
/// which RFC 5280 does not have and many authorities write, only what is below.
fn host_or_below_is_within(host: &[u8], base: &[u8]) -> bool {
    let Some(start) = host.len().checked_sub(base.len()) else { return false };
    let (front, end) = host.split_at(start);
    let is_whole_label = base.is_empty() || front.is_empty() || front.ends_with(b".") || base.starts_with(b".");
    let is_below = !base.starts_with(b".") || !front.is_empty();
    is_whole_label && is_below && end.eq_ignore_ascii_case(base)
}

/// Of a mailbox or a URI the base is a host alone, or with a leading dot
/// everything below it.
fn host_is_within(host: &[u8], base: &[u8]) -> bool {
    if base.is_empty() || base.starts_with(b".") {
        host_or_below_is_within(host, base)
    } else {
        host.eq_ignore_ascii_case(base)
    }
}

fn mailbox_is_within(name: &[u8], base: &[u8]) -> Option<bool> {
    let (local, host) = mailbox(name)?;
    if !is_host(host) {
        return None;
    }
    Some(match mailbox(base) {
        Some((base_local, base_host)) => local == base_local && host.eq_ignore_ascii_case(base_host),
        None => host_is_within(host, base),
    })
}

/// Local part and host of a mailbox.
fn mailbox(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().rposition(|octet| *octet == b'@')?;
    let (local, host) = (&text[..at], &text[at + 1..]);
    (!local.is_empty() && local.is_ascii() && !local.contains(&b'@')).then_some((local, host))
}

/// The host of `scheme://user@host:port/path`; nothing without one, or with an
/// address, which RFC 5280 does not let pass.
fn host_of_uri(uri: &[u8]) -> Option<&[u8]> {
    let authority = uri.windows(3).position(|window| window == b"://").map(|at| &uri[at + 3..])?;
    let end = authority.iter().position(|octet| b"/?#".contains(octet)).unwrap_or(authority.len());
    let authority = &authority[..end];
    let start = authority.iter().rposition(|octet| *octet == b'@').map_or(0, |at| at + 1);
    let host = authority[start..].split(|octet| *octet == b':').next()?;
    let is_address = host.rsplit(|octet| *octet == b'.').next()?.iter().all(u8::is_ascii_digit);
    (is_host(host) && !is_address).then_some(host)
}

fn ip_is_within(address: &[u8], range: &[u8]) -> Option<bool> {
    if !matches!(address.len(), 4 | 16) {
        return None;
    }
    if range.len() != address.len() * 2 {
        return Some(false);
    }
    let (network, mask) = range.split_at(address.len());
    let mut octets = address.iter().zip(network).zip(mask);
    Some(octets.all(|((address, network), mask)| address & mask == network & mask))
}

/// The base's relative names are the first of the name's.
fn directory_is_within(name: &[u8], base: &[u8]) -> Option<bool> {
    let relative_names = |name| Some(Reader::new(name).element(der::SEQUENCE, "Name").ok()?.reader());
    let (mut name, mut base) = (relative_names(name)?, relative_names(base)?);
    while !base.is_empty() {
        let wanted = base.element(der::SET, "RelativeDistinguishedName").ok()?;
        if name.is_empty() {
            return Some(false);
        }
        let found = name.element(der::SET, "RelativeDistinguishedName").ok()?;
        if !is_same_relative_name(&found, &wanted) {
            return Some(false);
        }
    }
    Some(true)
}

/// Labels of letters, digits, hyphens and underscores, none of them empty.
fn is_host(text: &[u8]) -> bool {
    let is_label = |label: &[u8]| {
        (1..=63).contains(&label.len())
            && label.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'))
    };
    text.len() <= 253 && text.split(|octet| *octet == b'.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 100;

    fn check(permitted: &[GeneralName<'_>], excluded: &[GeneralName<'_>], name: GeneralName<'_>) -> bool {
        let constraints = NameConstraints { permitted: permitted.to_vec(), excluded: excluded.to_vec() };
        constraints.check(&name, &mut LIMIT.clone()).is_ok()
    }

    #[test]
    fn hosts_and_wildcards_stay_in_their_subtrees() {
        for (base, name, permitted, not_excluded) in [
            ("example.com", "example.com", true, false),
            ("example.com", "a.EXAMPLE.com", true, false),
            ("example.com", "a.example.com.", true, false),
            ("example.com", "xexample.com", false, true),
            ("example.com", "com", false, true),
            ("", "example.com", true, false),
            // A leading dot leaves the host itself out.
            (".example.com", "example.com", false, true),
            (".example.com", "a.example.com", true, false),
            (".example.com", "*.example.com", true, false),
            // CVE-2025-61727: a wildcard is every name that it matches.
            ("bad.example.com", "*.example.com", false, false),
            ("a.bad.example.com", "*.example.com", false, true),
            ("example.com", "*.example.com", true, false),
            ("example.com", "*.com", false, false),
            ("example.com", "*.org", false, true),
            // What is no host name is nowhere permitted and everywhere excluded.
            ("example.com", "a b.example.com", false, false),
            ("example.com", "*.*.example.com", false, false),
            ("example.com", "", false, false),
        ] {
            let (base, dns) = (GeneralName::Dns(base.as_bytes()), GeneralName::Dns(name.as_bytes()));
            assert_eq!(check(&[base], &[], dns), permitted, "{base:?} permits {name}");
            assert_eq!(check(&[], &[base], dns), not_excluded, "{base:?} excludes {name}");
        }
    }

    #[test]
    fn mailboxes_addresses_and_locators_are_compared_by_their_rules() {
        let mail = |base: &'static str| GeneralName::Rfc822(base.as_bytes());
        let uri = |base: &'static str| GeneralName::Uri(base.as_bytes());
        for (base, name, inside) in [
            (mail("a@example.com"), mail("a@EXAMPLE.com"), true),
            (mail("a@example.com"), mail("A@example.com"), false),
            (mail("*@example.com"), mail("a@example.com"), false),
            (mail("example.com"), mail("a@example.com"), true),
            (mail("example.com"), mail("a@b.example.com"), false),
            (mail(".example.com"), mail("a@b.example.com"), true),
            (mail(".example.com"), mail("a@example.com"), false),
            (mail("example.com"), mail("example.com"), false),
            (mail("example.com"), mail("a@b@example.com"), false),
            (uri("example.com"), uri("https://u@example.com:8443/a?b"), true),
            (uri("example.com"), uri("https://a.example.com"), false),
            (uri(".example.com"), uri("https://a.example.com"), true),
            (uri("example.com"), uri("urn:example.com"), false),
            (uri(""), uri("https://192.0.2.1/"), false),
            (GeneralName::Ip(&[192, 0, 2, 0, 255, 255, 255, 0]), GeneralName::Ip(&[192, 0, 2, 9]), true),
            (GeneralName::Ip(&[192, 0, 2, 0, 255, 255, 255, 0]), GeneralName::Ip(&[192, 0, 3, 9]), false),
            (GeneralName::Ip(&[192, 0, 2, 0, 255, 255, 255, 0]), GeneralName::Ip(b"good"), false),
        ] {
            assert!(is_base(&base), "{base:?}");
            assert_eq!(check(&[base], &[], name), inside, "{base:?} permits {name:?}");
        }
        // Another kind of name is not touched.
        assert!(check(&[mail("example.com")], &[], GeneralName::Dns(b"example.org")));
    }

    #[test]
    fn bases_that_compare_with_nothing_are_found() {
        for base in [
            GeneralName::Dns(b"*.example.com"),
            GeneralName::Dns(b"exa mple.com"),
            GeneralName::Dns(b"."),
            GeneralName::Ip(b"good"),
            GeneralName::Ip(&[]),
            GeneralName::Ip(&[192, 0, 2, 0, 255, 0, 255, 0]),
            GeneralName::Ip(&[192, 0, 2, 0, 255, 255, 253, 0]),
            GeneralName::Rfc822(b"@example.com"),
            GeneralName::Directory(b"\x04\x00"),
        ] {
            assert!(!is_base(&base), "{base:?}");
        }
        assert!(is_base(&GeneralName::Ip(&[0; 32])));
        assert!(is_base(&GeneralName::Ip(&[10, 0, 0, 0, 255, 240, 0, 0])));
    }

    #[test]
    fn what_is_not_compared_objects_by_its_kind() {
        let other = GeneralName::Other(0, b"x");
        let constraints = NameConstraints { permitted: vec![], excluded: vec![other] };
        assert_eq!(constraints.check(&other, &mut LIMIT.clone()), Err(Objection::Kind("otherName")));
        assert_eq!(constraints.check(&GeneralName::Dns(b"a"), &mut LIMIT.clone()), Ok(()));
        assert_eq!(constraints.check(&GeneralName::Dns(b"a"), &mut 0), Err(Objection::Budget));
    }
}
