//! Answers for people.

use ca_dir::{CaDirError, KeyFileError};
use pki_core::{CertificateSummary, ChainError, CsrError, CsrSummary, PemError};

pub(crate) fn print_csr(csr: &CsrSummary) -> anyhow::Result<()> {
    println!("certificate signing request");
    line("subject", &csr.subject);
    line("public key", &csr.public_key);
    line("signature", &csr.signature_algorithm);
    list("names", &csr.subject_alt_names);
    list("extensions", &csr.requested_extensions);
    line("SPKI SHA-256", &csr.spki_sha256);
    Ok(())
}

pub(crate) fn print_certificate(certificate: &CertificateSummary) -> anyhow::Result<()> {
    let role = if certificate.is_ca { "certificate of an authority" } else { "certificate" };
    println!("{role} (version {})", certificate.version);
    line("subject", &certificate.subject);
    line("issuer", &certificate.issuer);
    line("serial", &certificate.serial);
    line("not before", &certificate.not_before.to_string());
    line("not after", &certificate.not_after.to_string());
    line("public key", &certificate.public_key);
    line("signature", &certificate.signature_algorithm);
    list("names", &certificate.subject_alt_names);
    if let Some(path_length) = certificate.path_length {
        line("path length", &path_length.to_string());
    }
    list("constraints", &certificate.name_constraints);
    list("key usage", &certificate.key_usage);
    list("good for", &certificate.extended_key_usage);
    list("CRL", &certificate.crl_distribution_points);
    list("other", &certificate.other_extensions);
    line("SHA-256", &certificate.fingerprint_sha256.to_string());
    Ok(())
}

/// What to do next, where the error itself does not say.
pub(crate) fn hint(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        if let Some(CsrError::CommonNameMismatch { .. }) = cause.downcast_ref() {
            return Some("`ca-cli inspect` shows what the request names; `ca-cli csr HOST` makes one that fits");
        }
        if let Some(CaDirError::Exists { .. }) = cause.downcast_ref() {
            return Some("move the old one away, or name another path");
        }
        if let Some(KeyFileError::PassphraseMissing { .. }) = cause.downcast_ref() {
            return Some("use --passphrase-file");
        }
        if let Some(ChainError::UnknownIssuer { .. }) = cause.downcast_ref() {
            return Some("give intermediates after the leaf or with --untrusted, and the root with --anchor");
        }
        if let Some(PemError::NoBlock { .. }) = cause.downcast_ref() {
            return Some("PEM starts with -----BEGIN; DER is read too");
        }
        None
    })
}

fn line(name: &str, value: &str) {
    println!("  {name:<13} {}", printable(value));
}

fn list(name: &str, values: &[impl AsRef<str>]) {
    for (at, value) in values.iter().enumerate() {
        line(if at == 0 { name } else { "" }, value.as_ref());
    }
}

/// Text from a document must not steer the terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}
