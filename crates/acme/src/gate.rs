//! Requests that public authorities refuse: said before an order is spent.

use pki_core::{Csr, KeyKind, PublicKey, inspect_csr};

/// What an authority takes. The default is what every public one does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Habits {
    /// Does it take the name from the common name, if there is no subjectAltName? Boulder does, Pebble does not.
    pub common_name_suffices: bool,
    /// Are keys looked at? Authorities of one's own take what they like.
    pub public_keys_only: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self { common_name_suffices: false, public_keys_only: true }
    }
}

/// Why an authority would refuse a request, and what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unacceptable {
    /// A key for which it does not issue.
    #[error("public authorities issue no certificate for {found} keys: use P-256 (or P-384, RSA 2048, 3072 or 4096)")]
    Key {
        /// For example `Ed25519`, or `RSA 2047`.
        found: String,
    },
    /// Not a key.
    #[error("the key cannot be read: {0}")]
    KeyForm(pki_core::KeyError),
    /// Names are in the common name only.
    #[error(
        "the request needs a subjectAltName: add the extension subjectAltName=DNS:{host} \
         (openssl req ... -addext \"subjectAltName=DNS:{host}\")"
    )]
    SubjectAltName {
        /// The name that is missing there.
        host: String,
    },
}

/// Would the authority take this request for `host`?
///
/// Looks at what public authorities are particular about, and at nothing that
/// [`VerifiedCsr::approve_host`](pki_core::VerifiedCsr::approve_host) has looked at: call that first.
///
/// # Errors
///
/// [`Unacceptable`], with words that say what to use instead.
pub fn acceptable(csr: &Csr, host: &pki_core::DnsName, habits: Habits) -> Result<(), Unacceptable> {
    if habits.public_keys_only {
        let key = PublicKey::from_der(csr.spki()).map_err(Unacceptable::KeyForm)?;
        let found = match (key.kind(), key.size()) {
            (KeyKind::P256 | KeyKind::P384, _) | (KeyKind::Rsa, 2048 | 3072 | 4096) => None,
            (KeyKind::Rsa, size) => Some(format!("RSA {size}")),
            (kind, _) => Some(kind.to_string()),
        };
        if let Some(found) = found {
            return Err(Unacceptable::Key { found });
        }
    }
    let names = inspect_csr(csr.der()).map(|summary| summary.subject_alt_names).unwrap_or_default();
    let wanted = format!("DNS:{host}");
    let has_name = names.iter().any(|name| name.eq_ignore_ascii_case(&wanted));
    // A common name holds 64 characters; a longer one has been asked for its subjectAltName already.
    if has_name || names.is_empty() && habits.common_name_suffices {
        Ok(())
    } else {
        Err(Unacceptable::SubjectAltName { host: host.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
        PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize,
    };

    use super::*;

    fn csr(key: &KeyPair, alt_name: bool) -> Csr {
        let names = if alt_name { vec!["A.example".to_owned()] } else { Vec::new() };
        let mut params = CertificateParams::new(names).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "a.example");
        Csr::from_der(params.serialize_request(key).expect("a request").der()).expect("a request")
    }

    fn check(csr: &Csr, habits: Habits) -> Result<(), Unacceptable> {
        acceptable(csr, &"a.example".parse().expect("a name"), habits)
    }

    #[test]
    fn keys_of_public_authorities() {
        let any = Habits { public_keys_only: false, ..Habits::default() };
        for (algorithm, wanted) in [
            (&PKCS_ECDSA_P256_SHA256, None),
            (&PKCS_ECDSA_P384_SHA384, None),
            (&PKCS_ECDSA_P521_SHA512, Some("P-521")),
            (&PKCS_ED25519, Some("Ed25519")),
        ] {
            let csr = csr(&KeyPair::generate_for(algorithm).expect("a key"), true);
            let wanted = wanted.map(|found| Unacceptable::Key { found: found.to_owned() });
            assert_eq!(check(&csr, Habits::default()).err(), wanted);
            assert_eq!(check(&csr, any), Ok(()));
        }
        let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key");
        assert_eq!(check(&csr(&rsa, true), Habits::default()), Ok(()));
    }

    #[test]
    fn a_common_name_alone_is_for_some() {
        let csr = csr(&KeyPair::generate().expect("a key"), false);
        let refusal = check(&csr, Habits::default()).expect_err("refused").to_string();
        assert!(refusal.contains("-addext \"subjectAltName=DNS:a.example\""), "{refusal}");
        assert_eq!(check(&csr, Habits { common_name_suffices: true, ..Habits::default() }), Ok(()));
    }
}
