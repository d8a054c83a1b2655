//! What is issued, judged by rustls-webpki and by our own reading of it.
//! `ADIT_JUDGED_CERTS` names a directory that gets a certificate of every
//! key type and profile, for OpenSSL, pyca/cryptography and pkilint.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use pki_core::crypto::rustcrypto::RustCrypto;
use pki_core::{
    Certificate, ChainError, Csr, DnsName, Expectation, IssueError, KeyPolicy, Leaf, Profile, ProfileConfig,
    ProfileError, SerialNumber, Subject, Time, Usage, certificate_to_pem, inspect_certificate, lint, verify_chain,
    verify_version_1_leaf,
};

use crate::authority::{Authority, NOW, profile, serial};

const HOST: &str = "my-agent.adit.localhost";

fn host() -> DnsName {
    HOST.parse().expect("a host")
}

fn request(key: &rcgen::KeyPair, common_name: &str) -> Csr {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Requester's own words");
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Any];
    Csr::from_der(params.serialize_request(key).expect("a request").der()).expect("our parser reads rcgen")
}

fn issue(authority: &Authority, key: &rcgen::KeyPair, profile: &Profile) -> Leaf {
    let verified = request(key, HOST).verify(&RustCrypto, &KeyPolicy::new()).expect("proof of possession");
    let approved = match profile.usage() {
        Usage::ServerAuth => verified.approve_host(&host()).expect("the right name"),
        _ => verified
            .approve_subject(Subject::with_organization("agent:laptop", "Adit").expect("a subject"))
            .expect("no extension to refuse"),
    };
    // Other judges look at several certificates of one authority: no serial twice.
    static NEXT: AtomicU8 = AtomicU8::new(16);
    let serial = serial(NEXT.fetch_add(1, Ordering::Relaxed));
    let to_be_signed = approved.to_be_signed(&authority.issuer, profile, serial, NOW).expect("lint passes");
    to_be_signed.sign(authority.signer.as_ref()).expect("the key signs")
}

fn key_pairs() -> Vec<(&'static str, rcgen::KeyPair)> {
    use rcgen::{KeyPair, RsaKeySize};

    let generate = |algorithm| KeyPair::generate_for(algorithm).expect("a key");
    let rsa = |size| KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).expect("a key");
    vec![
        ("p256", generate(&rcgen::PKCS_ECDSA_P256_SHA256)),
        ("p384", generate(&rcgen::PKCS_ECDSA_P384_SHA384)),
        ("p521", generate(&rcgen::PKCS_ECDSA_P521_SHA512)),
        ("ed25519", generate(&rcgen::PKCS_ED25519)),
        ("rsa2048", rsa(RsaKeySize::_2048)),
        ("rsa3072", rsa(RsaKeySize::_3072)),
        ("rsa4096", rsa(RsaKeySize::_4096)),
    ]
}

#[test]
fn every_key_type_and_profile_satisfies_webpki_and_ourselves() {
    let authority = Authority::new();
    let judged = std::env::var_os("ADIT_JUDGED_CERTS").map(std::path::PathBuf::from);
    let save = |name: &str, der: &[u8]| {
        if let Some(directory) = &judged {
            std::fs::write(directory.join(name), certificate_to_pem(der)).expect("a writable directory");
        }
    };
    save("root.crt", &authority.root);
    save("issuing.crt", authority.issuer.certificate());
    for (name, key) in key_pairs() {
        for usage in [Usage::ServerAuth, Usage::ClientAuth] {
            let leaf = issue(&authority, &key, &profile(usage));
            save(&format!("{name}-{usage:?}.crt").to_lowercase(), leaf.der());
            webpki_accepts(&authority, &leaf, usage);
            // RFC 5280 section 4.2.1.12: a client signs; only a server's RSA key is encrypted to.
            let encrypts = usage == Usage::ServerAuth && name.starts_with("rsa");
            let key_usage: &[_] =
                if encrypts { &["digitalSignature", "keyEncipherment"] } else { &["digitalSignature"] };
            assert_eq!(inspect_certificate(leaf.der()).expect("a certificate").key_usage, key_usage, "{name}");
            let expected_host = host();
            let expectation = Expectation {
                host: (usage == Usage::ServerAuth).then_some(&expected_host),
                usage: Some(usage),
                at: NOW,
            };
            let chain = [leaf.der(), authority.issuer.certificate()];
            assert_eq!(verify_chain(&chain, &[&authority.root], &expectation, &RustCrypto), Ok(()), "{name}");
        }
    }
}

fn webpki_accepts(authority: &Authority, leaf: &Leaf, usage: Usage) {
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    let leaf_der = CertificateDer::from(leaf.der());
    let intermediate = CertificateDer::from(authority.issuer.certificate());
    let root = CertificateDer::from(authority.root.as_slice());
    let anchor = webpki::anchor_from_trusted_cert(&root).expect("a trust anchor");
    let certificate = webpki::EndEntityCert::try_from(&leaf_der).expect("webpki parses it");
    let purpose = match usage {
        Usage::ServerAuth => webpki::KeyUsage::server_auth(),
        _ => webpki::KeyUsage::client_auth(),
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW.unix().unsigned_abs()));
    certificate
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &[anchor], &[intermediate], now, purpose, None, None)
        .expect("webpki accepts the chain");
    if usage == Usage::ServerAuth {
        let name = ServerName::try_from(HOST).expect("a host");
        certificate.verify_is_valid_for_subject_name(&name).expect("webpki finds the host");
    }
}

#[test]
fn only_the_key_comes_from_the_request() {
    let authority = Authority::new();
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = issue(&authority, &key, &profile(Usage::ServerAuth));
    let summary = inspect_certificate(leaf.der()).expect("a certificate");
    assert_eq!(summary.subject, format!("CN={HOST}"));
    assert_eq!(summary.subject_alt_names, [format!("DNS:{HOST}")]);
    assert!(!summary.is_ca);
    assert_eq!(summary.key_usage, ["digitalSignature"]);
    assert_eq!(summary.extended_key_usage, ["serverAuth"]);
    let needle = b"Requester's own words";
    assert!(!leaf.der().windows(needle.len()).any(|window| window == needle));
    let certificate = Certificate::from_der(leaf.der()).expect("a certificate");
    assert_eq!(certificate.spki(), request(&key, HOST).spki());
    assert_eq!(summary.issuer, inspect_certificate(authority.issuer.certificate()).expect("a certificate").subject);
}

#[test]
fn the_validity_is_exact_to_the_second() {
    let authority = Authority::new();
    let leaf = issue(&authority, &rcgen::KeyPair::generate().expect("a key"), &profile(Usage::ServerAuth));
    assert_eq!(leaf.not_before(), NOW.minus(Duration::from_secs(60)));
    assert_eq!(leaf.not_after().unix() - leaf.not_before().unix() + 1, 90 * 86_400);
    let certificate = Certificate::from_der(leaf.der()).expect("a certificate");
    assert_eq!((certificate.not_before(), certificate.not_after()), (leaf.not_before(), leaf.not_after()));
}

#[test]
fn serials_are_positive_and_of_constant_length() {
    for octet in [0x00, 0x3f, 0x40, 0x7f, 0x80, 0xff] {
        let serial = SerialNumber::from_random([octet; 20]);
        assert_eq!(serial.as_bytes()[0] & 0xc0, 0x40);
    }
}

#[test]
fn hosts_outside_of_the_zone_are_not_signed() {
    let authority = Authority::new();
    let other: DnsName = "my-agent.example".parse().expect("a host");
    let key = rcgen::KeyPair::generate().expect("a key");
    let approved = request(&key, other.as_str())
        .verify(&RustCrypto, &KeyPolicy::new())
        .and_then(|csr| csr.approve_host(&other))
        .expect("a good request");
    let refused = approved.to_be_signed(&authority.issuer, &profile(Usage::ServerAuth), serial(4), NOW);
    assert_eq!(refused, Err(IssueError::NotPermitted { host: other }));
}

#[test]
fn name_constraints_of_any_shape_are_kept() {
    use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};

    let dns = |name: &str| GeneralSubtree::DnsName(name.to_owned());
    let address = GeneralSubtree::IpAddress(CidrSubnet::V4([10, 0, 0, 0], [255, 0, 0, 0]));
    let host = |name: &str| name.parse::<DnsName>().expect("a host");
    for (permitted, excluded, allowed, refused) in [
        (vec![dns("a.example")], vec![], vec!["a.example", "x.a.example"], vec!["xa.example", "example"]),
        (vec![dns(".a.example")], vec![], vec!["x.a.example"], vec!["b.example"]),
        (vec![], vec![dns("a.example")], vec!["b.example"], vec!["a.example", "x.a.example"]),
        (vec![dns("example")], vec![dns("a.example")], vec!["b.example"], vec!["x.a.example", "b.test"]),
        (vec![address], vec![], vec!["a.example"], vec![]),
    ] {
        let pair = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.name_constraints = Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded });
        let certificate = params.self_signed(&pair).expect("a certificate");
        let key = pki_core::crypto::rustcrypto::PrivateKey::from_pkcs8_der(pair.serialized_der()).expect("PKCS #8");
        let issuer = pki_core::Issuer::new(certificate.der(), &key).expect("an authority");
        assert!(allowed.iter().all(|name| issuer.permits(&host(name))), "{allowed:?}");
        assert!(!refused.iter().any(|name| issuer.permits(&host(name))), "{refused:?}");
    }
}

#[test]
fn nothing_outlives_its_issuer() {
    let authority = Authority::new();
    let key = rcgen::KeyPair::generate().expect("a key");
    let approved = request(&key, HOST).verify(&RustCrypto, &KeyPolicy::new()).expect("proof").approve_host(&host());
    let approved = approved.expect("a good request");
    let late = authority.issuer.not_after().minus(Duration::from_secs(86_400));
    let refused = approved.to_be_signed(&authority.issuer, &profile(Usage::ServerAuth), serial(5), late);
    assert!(matches!(refused, Err(IssueError::OutlivesIssuer { .. })), "{refused:?}");
    let early = NOW.minus(Duration::from_secs(3601));
    let refused = approved.to_be_signed(&authority.issuer, &profile(Usage::ServerAuth), serial(5), early);
    assert!(matches!(refused, Err(IssueError::NotYetValid { .. })), "{refused:?}");
}

#[test]
fn profiles_are_checked_before_they_are_trusted() {
    let config = |validity_seconds, backdate_seconds, crl: Option<&str>| {
        Profile::try_from(ProfileConfig {
            usage: Usage::ServerAuth,
            validity_seconds,
            backdate_seconds,
            crl_distribution_point: crl.map(str::to_owned),
            ca_issuers: None,
        })
    };
    assert_eq!(config(0, 0, None), Err(ProfileError::Validity(0)));
    assert_eq!(config(86_400, 301, None), Err(ProfileError::Backdate(301)));
    assert!(matches!(config(86_400, 0, Some("ftp://x/")), Err(ProfileError::Uri { .. })));
    assert!(config(86_400, 0, Some("http://pki.example/issuing.crl")).is_ok());
}

#[test]
fn the_lint_finds_what_it_is_told_about() {
    let authority = Authority::new();
    let leaf = issue(&authority, &rcgen::KeyPair::generate().expect("a key"), &profile(Usage::ServerAuth));
    // The TBSCertificate starts after the outer header and has a long-form length.
    let tbs = &leaf.der()[4..];
    let length = 4 + usize::from(tbs[2]) * 256 + usize::from(tbs[3]);
    let tbs = &tbs[..length];
    assert_eq!(lint(tbs), []);
    // Any changed octet either breaks a rule, or leaves a certificate that says something else.
    let flagged = (0..tbs.len()).filter(|at| {
        let mut changed = tbs.to_vec();
        changed[*at] ^= 0x80;
        !lint(&changed).is_empty()
    });
    assert!(flagged.count() > tbs.len() / 2);
    assert!(!lint(b"").is_empty());
}

#[test]
fn a_broken_chain_is_told_by_its_reason() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let leaf = issue(&authority, &rcgen::KeyPair::generate().expect("a key"), &profile(Usage::ServerAuth));
    let issuing = authority.issuer.certificate();
    let expected = host();
    let at = |at: Time| Expectation { host: Some(&expected), usage: Some(Usage::ServerAuth), at };
    let verify = |chain: &[&[u8]], root: &[u8], expectation: &Expectation<'_>| {
        verify_chain(chain, &[root], expectation, &RustCrypto)
    };
    let root = authority.root.as_slice();
    assert_eq!(verify(&[], root, &at(NOW)), Err(ChainError::Empty));
    assert_eq!(verify(&[leaf.der()], root, &at(NOW)), Err(ChainError::UnknownIssuer { depth: 0 }));
    assert_eq!(verify(&[leaf.der(), issuing], &stranger.root, &at(NOW)), Err(ChainError::Signature { depth: 1 }));
    assert_eq!(verify(&[leaf.der(), issuing, root], root, &at(NOW)), Ok(()));
    let late = leaf.not_after().plus(Duration::from_secs(1));
    assert!(matches!(verify(&[leaf.der(), issuing], root, &at(late)), Err(ChainError::Expired { depth: 0, .. })));
    assert_eq!(verify(&[leaf.der(), issuing], root, &at(leaf.not_after())), Ok(()));
    let early = leaf.not_before().minus(Duration::from_secs(1));
    assert!(matches!(verify(&[leaf.der(), issuing], root, &at(early)), Err(ChainError::NotYetValid { .. })));
    let other: DnsName = "other.adit.localhost".parse().expect("a host");
    let expectation = Expectation { host: Some(&other), ..at(NOW) };
    assert!(matches!(verify(&[leaf.der(), issuing], root, &expectation), Err(ChainError::Host { .. })));
    let expectation = Expectation { host: None, usage: Some(Usage::ClientAuth), at: NOW };
    assert!(matches!(verify(&[leaf.der(), issuing], root, &expectation), Err(ChainError::Usage { depth: 0, .. })));
    let mut forged = leaf.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert_eq!(verify(&[&forged, issuing], root, &at(NOW)), Err(ChainError::Signature { depth: 0 }));
    // Superfluous certificates do no harm, and their order does not matter.
    assert_eq!(verify(&[leaf.der(), &stranger.root, issuing, leaf.der(), root], root, &at(NOW)), Ok(()));
    // The intermediate itself may be trusted; the leaf in its place may not.
    assert_eq!(verify(&[leaf.der()], issuing, &at(NOW)), Ok(()));
    assert_eq!(verify(&[leaf.der()], leaf.der(), &at(NOW)), Err(ChainError::UnknownIssuer { depth: 0 }));
    // An authority is no server, and may be verified for itself.
    assert_eq!(verify(&[issuing], root, &at(NOW)), Err(ChainError::Authority));
    assert_eq!(verify(&[issuing], root, &Expectation { host: None, usage: None, at: NOW }), Ok(()));
}

#[test]
fn hosts_too_long_for_a_common_name_go_into_the_alt_name_alone() {
    let authority = Authority::new();
    let long: DnsName = format!("{}.{HOST}", "a".repeat(60)).parse().expect("a host");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec![long.to_string()]).expect("a name");
    params.distinguished_name = rcgen::DistinguishedName::new();
    let csr = params.serialize_request(&key).expect("a request");
    let leaf = Csr::from_der(csr.der())
        .and_then(|csr| csr.verify(&RustCrypto, &KeyPolicy::new()))
        .and_then(|csr| csr.approve_host(&long))
        .expect("a good request")
        .to_be_signed(&authority.issuer, &profile(Usage::ServerAuth), serial(6), NOW)
        .expect("lint passes")
        .sign(authority.signer.as_ref())
        .expect("the key signs");
    let summary = inspect_certificate(leaf.der()).expect("a certificate");
    assert_eq!(summary.subject, "");
    assert_eq!(summary.subject_alt_names, [format!("DNS:{long}")]);
    let expectation = Expectation { host: Some(&long), usage: None, at: NOW };
    let chain = [leaf.der(), authority.issuer.certificate()];
    assert_eq!(verify_chain(&chain, &[&authority.root], &expectation, &RustCrypto), Ok(()));
}

#[test]
fn common_names_are_text_or_an_error() {
    use rcgen::{DnType, DnValue};

    let names = |values: Vec<DnValue>| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Adit");
        for value in values {
            params.distinguished_name.push(DnType::CommonName, value);
        }
        let certificate = params.self_signed(&key).expect("a certificate");
        let certificate = Certificate::from_der(certificate.der()).expect("a certificate");
        assert_eq!(certificate.subject_der(), certificate.issuer_der());
        assert_eq!(certificate.version(), 3);
        certificate.common_names()
    };
    assert_eq!(names(vec![]), Ok(vec![]));
    assert_eq!(names(vec![DnValue::Utf8String("agent:läptop".to_owned())]), Ok(vec!["agent:läptop".to_owned()]));
    let printable = DnValue::PrintableString("admin".try_into().expect("printable"));
    assert_eq!(names(vec![printable]), Ok(vec!["admin".to_owned()]));
    let ia5 = DnValue::Ia5String("a@b".try_into().expect("ASCII"));
    assert_eq!(names(vec![ia5]), Ok(vec!["a@b".to_owned()]));
    for other in [
        DnValue::BmpString("admin".try_into().expect("a string")),
        DnValue::TeletexString("admin".try_into().expect("a string")),
        DnValue::UniversalString("admin".try_into().expect("a string")),
    ] {
        assert_eq!(names(vec![other]), Err(pki_core::CertificateError::CommonName));
    }
}

/// Made by `openssl x509 -req` of OpenSSL 3.0, see the README beside them.
#[test]
fn certificates_of_version_1_by_openssl_verify() {
    let directory = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/pkcs12");
    let read = |name: &str| std::fs::read(directory.join(name)).expect("a fixture");
    let (leaf, anchor) = (read("leaf.der"), read("ca.der"));
    let certificate = Certificate::from_der(&leaf).expect("a certificate");
    assert_eq!(certificate.version(), 1);
    assert_eq!(certificate.common_names(), Ok(vec!["agent:laptop".to_owned()]));
    let at = certificate.not_before();
    assert_eq!(verify_version_1_leaf(&leaf, &anchor, at, &RustCrypto), Ok(()));
    let swapped = verify_version_1_leaf(&anchor, &leaf, at, &RustCrypto);
    assert_eq!(swapped, Err(ChainError::Version { depth: 0, version: 3, expected: 1 }));
}

/// Certificates of issuers that others made: OpenSSL's leading dot, constraints
/// that nobody can read, no subjectKeyIdentifier.
#[test]
fn an_issuer_of_strangers_signs_by_its_certificate_or_not_at_all() {
    use rcgen::{BasicConstraints, CertificateParams, GeneralSubtree, IsCa, KeyPair, NameConstraints};

    let key = KeyPair::generate().expect("a key");
    let signer = pki_core::crypto::rustcrypto::PrivateKey::from_pkcs8_der(&key.serialize_der()).expect("a key");
    let issuer = |permitted: &str, edit: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let permitted_subtrees = vec![GeneralSubtree::DnsName(permitted.to_owned())];
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
        edit(&mut params);
        let certificate = params.self_signed(&key).expect("a certificate");
        pki_core::Issuer::new(certificate.der(), &signer)
    };
    let host = |text: &str| text.parse::<DnsName>().expect("a host");
    let dotted = issuer(".tunnel.example", &|_| ()).expect("an issuer");
    assert!(dotted.permits(&host("my-agent.tunnel.example")));
    assert!(!dotted.permits(&host("tunnel.example")));
    // Constraints on subjects hold for what is signed as well.
    let within = |organization: &str| {
        let mut name = rcgen::DistinguishedName::new();
        name.push(rcgen::DnType::CommonName, "agent:laptop");
        name.push(rcgen::DnType::OrganizationName, organization);
        let issuer = issuer("tunnel.example", &|params| {
            let constraints = params.name_constraints.as_mut().expect("constraints");
            constraints.permitted_subtrees.push(GeneralSubtree::DirectoryName(name.clone()));
        });
        let subject = Subject::with_organization("agent:laptop", "Adit").expect("a subject");
        let verified = request(&KeyPair::generate().expect("a key"), HOST).verify(&RustCrypto, &KeyPolicy::new());
        let approved = verified.and_then(|csr| csr.approve_subject(subject)).expect("a good request");
        approved.to_be_signed(&issuer.expect("an issuer"), &profile(Usage::ClientAuth), serial(7), NOW).map(drop)
    };
    assert_eq!(within("ADIT"), Ok(()));
    assert_eq!(within("Another"), Err(IssueError::SubjectNotPermitted));
    let unreadable = issuer("*.tunnel.example", &|_| ()).expect_err("nobody knows what that permits");
    assert!(unreadable.to_string().contains("GeneralSubtree"), "{unreadable}");
}

/// cert-manager/cert-manager#2906: the identifier is computed.
#[test]
fn an_issuer_without_a_subject_key_identifier_signs() {
    let (certificate, signer) = root_without_identifier();
    let summary = inspect_certificate(&certificate).expect("a certificate");
    assert_eq!(summary.subject_key_identifier, None);
    let issuer = pki_core::Issuer::new(&certificate, &signer).expect("an issuer");
    let leaf = request(&rcgen::KeyPair::generate().expect("a key"), HOST)
        .verify(&RustCrypto, &KeyPolicy::new())
        .and_then(|csr| csr.approve_host(&host()))
        .expect("a good request")
        .to_be_signed(&issuer, &profile(Usage::ServerAuth), serial(6), NOW)
        .expect("lint passes")
        .sign(&signer)
        .expect("the key signs");
    let summary = inspect_certificate(leaf.der()).expect("a certificate");
    assert!(summary.authority_key_identifier.is_some());
    let expectation = Expectation { host: Some(&host()), usage: Some(Usage::ServerAuth), at: NOW };
    assert_eq!(verify_chain(&[leaf.der()], &[&certificate], &expectation, &RustCrypto), Ok(()));
}

/// The subjectKeyIdentifier of a self-signed authority is renamed to an
/// extension that nobody knows, and the whole signed again.
fn root_without_identifier() -> (Vec<u8>, pki_core::crypto::rustcrypto::PrivateKey) {
    use pki_core::crypto::Signer as _;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    let key = KeyPair::generate().expect("a key");
    let signer = pki_core::crypto::rustcrypto::PrivateKey::from_pkcs8_der(&key.serialize_der()).expect("a key");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let der = params.self_signed(&key).expect("a certificate").der().to_vec();
    // 30 82 xx xx | 30 82 xx xx ... or with one length octet each.
    let header = |der: &[u8]| if der[1] & 0x80 == 0 { 2 } else { 2 + usize::from(der[1] & 0x7f) };
    let outer = header(&der);
    let inner = &der[outer..];
    let length = inner[2..header(inner)].iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
    let mut tbs = inner[..header(inner) + length].to_vec();
    let at = tbs.windows(5).position(|window| window == b"\x06\x03\x55\x1d\x0e").expect("the identifier");
    tbs[at + 4] = 0x7f;
    let signature = signer.sign(&tbs).expect("the key signs");
    let algorithm = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
    let bits = [&[0x03, u8::try_from(signature.len() + 1).expect("short"), 0][..], &signature].concat();
    let body = [&tbs[..], algorithm, &bits].concat();
    let length = u16::try_from(body.len()).expect("short").to_be_bytes();
    ([&[0x30, 0x82][..], &length, &body].concat(), signer)
}

#[test]
fn certificates_are_read_under_labels_of_every_age_and_among_others() {
    let authority = Authority::new();
    let pem = certificate_to_pem(&authority.root);
    let as_label = |label: &str, der: &[u8]| certificate_to_pem(der).replace("CERTIFICATE", label);
    // What OpenSSL trusts a certificate for follows it.
    let trusted = [&authority.root[..], &[0x30, 0x02, 0x0c, 0x00]].concat();
    let text = format!(
        "\u{feff}{pem}{}{}{}",
        as_label("X509 CERTIFICATE", &authority.root),
        as_label("PRIVATE KEY", b"something else"),
        as_label("TRUSTED CERTIFICATE", &trusted)
    );
    let read = pki_core::certificates_from_pem(text.as_bytes()).expect("certificates");
    assert_eq!(read, vec![authority.root.clone(); 3]);
    let refused = pki_core::certificates_from_pem(as_label("PRIVATE KEY", b"alone").as_bytes());
    assert!(matches!(refused, Err(pki_core::CertificateError::Pem(pki_core::PemError::WrongLabel { .. }))));
}

#[test]
fn malformed_extensions_are_named() {
    use rcgen::CustomExtension;

    let mut params = rcgen::CertificateParams::default();
    params.custom_extensions = vec![
        CustomExtension::from_oid_content(&[2, 5, 29, 30], vec![0x30, 0x00]),
        CustomExtension::from_oid_content(&[2, 5, 29, 30], vec![0x30, 0x00]),
    ];
    let key = rcgen::KeyPair::generate().expect("a key");
    let der = params.self_signed(&key).expect("a certificate");
    let malformed = inspect_certificate(der.der()).expect("a certificate").malformed_extensions;
    assert_eq!(malformed.len(), 3, "{malformed:?}");
    assert_eq!(malformed[0], "2.5.29.30: stands twice");
    assert!(malformed[1].starts_with("2.5.29.30: expected NameConstraints with a GeneralSubtree"), "{malformed:?}");
}
