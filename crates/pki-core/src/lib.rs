//! X.509 policy of a certificate authority: read a certificate signing
//! request, prove it, decide what may be signed, assemble, lint, sign.
//!
//! No I/O, no clock and no randomness: time, serial octets and signatures come
//! in as values, so every function gives the same answer for the same input.
//! (A backend may draw the nonces of its own signatures: [`crypto::aws_lc`] does.)
//!
//! ```
//! use std::time::Duration;
//! use pki_core::crypto::rustcrypto::{PrivateKey, RustCrypto};
//! use pki_core::{Csr, Issuer, KeyPolicy, Profile, ProfileConfig, SerialNumber, Subject, Time, Usage};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = Time::from_unix(1_795_354_200);
//! // A root for this example; a server loads one from its directory.
//! # let pem = rcgen::KeyPair::generate()?.serialize_pem();
//! let key = PrivateKey::from_pkcs8_pem(pem.as_bytes())?;
//! let serial = SerialNumber::from_random([7; 20]);
//! let root = pki_core::root(&Subject::new("Example Root")?, &key, Duration::from_secs(86_400), serial, now)?.sign(&key)?;
//! let issuer = Issuer::new(root.der(), &key)?;
//! let profile = Profile::try_from(ProfileConfig {
//!     usage: Usage::ServerAuth,
//!     validity_seconds: 3600,
//!     backdate_seconds: 0,
//!     crl_distribution_point: None,
//!     ca_issuers: None,
//! })?;
//!
//! # let requester = rcgen::KeyPair::generate()?;
//! # let mut params = rcgen::CertificateParams::new(vec!["app.example".to_owned()])?;
//! # params.distinguished_name = rcgen::DistinguishedName::new();
//! # params.distinguished_name.push(rcgen::DnType::CommonName, "app.example");
//! # let sent = params.serialize_request(&requester)?.pem()?;
//! // Somebody sends a request for app.example.
//! let leaf = Csr::from_pem(sent.as_bytes())?
//!     .verify(&RustCrypto, &KeyPolicy::new())?
//!     .approve_host(&"app.example".parse()?)?
//!     .to_be_signed(&issuer, &profile, SerialNumber::from_random([9; 20]), now)?
//!     .sign(&key)?;
//! assert_eq!(leaf.not_after().unix() - leaf.not_before().unix(), 3599);
//! assert_eq!(leaf.fingerprint().to_string().len(), 64);
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//!
//! - `rustcrypto` (default): `crypto::rustcrypto`, a backend in pure Rust; no RSA signatures.
//! - `aws-lc-rs`: `crypto::aws_lc`, a faster one on AWS-LC, which needs a C compiler.
//! - `pkcs12`: the module of that name, with keys and certificates in one encrypted file.
//!
//! Both backends may be on, since one is picked by value. Without one a caller brings a
//! [`crypto::Verifier`] and a [`crypto::Signer`] of its own, for example on
//! `wasm32-unknown-unknown`.

pub mod crypto;
#[cfg(feature = "pkcs12")]
pub mod pkcs12;

mod algorithm;
mod authority;
mod certificate;
mod chain;
mod crl;
mod csr;
mod csr_error;
mod der;
mod dns_name;
mod extension;
mod fingerprint;
mod inspect;
mod issue;
mod issuer;
mod key;
mod lint;
mod name;
mod name_constraints;
mod oid;
mod pem;
mod profile;
mod time;
mod weak_rsa;

pub use algorithm::{AlgorithmError, KeyKind, SignatureAlgorithm};
pub use authority::{Authority, AuthorityError, root};
pub use certificate::{
    Certificate, CertificateError, MAX_CERTIFICATE_OCTETS, certificates_from_file, certificates_from_pem,
};
pub use chain::{ChainError, Expectation, verify_chain, verify_version_1_leaf};
pub use crl::{
    Crl, CrlError, CrlSummary, CrlToBeSigned, MAX_CRL_OCTETS, RevocationList, RevokedCertificate, RevokedEntries,
    RevokedEntry, RevokedSummary, inspect_crl, revocation_lists_from_file,
};
pub use csr::{Approved, Csr, MAX_CSR_OCTETS, VerifiedCsr, requests_from_file};
pub use csr_error::CsrError;
pub use der::DerError;
pub use dns_name::{DnsName, DnsNameError};
pub use fingerprint::{Fingerprint, FingerprintError};
pub use inspect::{CertificateSummary, CsrSummary, inspect_certificate, inspect_csr};
pub use issue::{IssueError, Leaf, SerialNumber, ToBeSigned, certificate_to_pem};
pub use issuer::{Issuer, IssuerError};
pub use key::{KeyError, KeyPolicy, PublicKey};
pub use lint::{Lint, lint};
pub use name::{Subject, SubjectError};
pub use oid::ObjectIdentifier;
pub use pem::PemError;
pub use profile::{Profile, ProfileConfig, ProfileError, Usage};
pub use time::Time;

/// The example of the README compiles.
#[cfg(all(doctest, feature = "rustcrypto"))]
#[doc = include_str!("../README.md")]
struct Readme;
