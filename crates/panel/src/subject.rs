//! Subjects as a proxy writes them: text, from which the common names are to be
//! read and nothing that an attribute's value only looks like.

/// The commonNames of a subject as text; `None` if the text has no such form.
pub(crate) fn common_names(subject: &str) -> Option<Vec<String>> {
    let attributes = match subject.strip_prefix('/') {
        // `/O=Portlama/CN=admin`: slashes in values are not told apart, so each begins an attribute.
        Some(old) => old.split('/').map(|attribute| attribute.to_owned()).collect(),
        None => relative_names(subject)?,
    };
    let mut names = Vec::new();
    for attribute in attributes {
        let (kind, value) = attribute.split_once('=')?;
        if kind.trim().eq_ignore_ascii_case("CN") || kind.trim() == "2.5.4.3" {
            names.push(unescaped(value)?);
        }
    }
    Some(names)
}

/// Splits at `,` and `+` that no backslash precedes (RFC 2253 section 3).
fn relative_names(subject: &str) -> Option<Vec<String>> {
    let mut names = vec![String::new()];
    let mut characters = subject.chars();
    while let Some(character) = characters.next() {
        match character {
            ',' | '+' | ';' => names.push(String::new()),
            '\\' => {
                let last = names.last_mut()?;
                last.push('\\');
                last.push(characters.next()?);
            }
            // Quotation is of LDAP version 2 and nothing that we read writes it.
            '"' => return None,
            character => names.last_mut()?.push(character),
        }
    }
    Some(names)
}

/// Undoes `\,` and `\C3\A9`.
fn unescaped(value: &str) -> Option<String> {
    // Hex of the DER: an attribute of an unusual type, which is no name of ours.
    if value.starts_with('#') {
        return None;
    }
    let octets = value.as_bytes();
    let mut text = Vec::with_capacity(octets.len());
    let mut at = 0;
    while let Some(octet) = octets.get(at) {
        if *octet != b'\\' {
            text.push(*octet);
            at += 1;
            continue;
        }
        let mut octet = [0];
        let digits = octets.get(at + 1..at + 3).and_then(|digits| base16ct::mixed::decode(digits, &mut octet).ok());
        match digits.and_then(<[u8]>::first) {
            Some(octet) => {
                text.push(*octet);
                at += 3;
            }
            None => {
                text.push(*octets.get(at + 1)?);
                at += 2;
            }
        }
    }
    String::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_read_as_proxies_write_them() {
        for (subject, names) in [
            ("O=Portlama,CN=agent:foo", Some(vec!["agent:foo"])),
            ("CN=admin,O=Portlama", Some(vec!["admin"])),
            ("/CN=agent:foo/O=Portlama", Some(vec!["agent:foo"])),
            ("O=Portlama,CN=a\\,CN=admin", Some(vec!["a,CN=admin"])),
            ("CN=caf\\C3\\A9", Some(vec!["café"])),
            ("CN=admin,CN=agent:foo", Some(vec!["admin", "agent:foo"])),
            ("CN=admin+CN=agent:foo", Some(vec!["admin", "agent:foo"])),
            ("/CN=x/CN=admin", Some(vec!["x", "admin"])),
            ("O=Portlama", Some(vec![])),
            ("", None),
            ("CN", None),
            ("CN=\"admin\"", None),
            ("CN=#0c0561646d696e", None),
            ("CN=a\\", None),
            ("CN=\\FF", None),
        ] {
            let names = names.map(|names| names.into_iter().map(str::to_owned).collect());
            assert_eq!(common_names(subject), names, "{subject}");
        }
    }
}
