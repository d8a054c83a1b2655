//! Answers for people.

use ca_dir::{CaDirError, KeyFileError};
use pki_core::crypto::PrivateKeyError;
use pki_core::pkcs12::Pkcs12Error;
use pki_core::{CertificateSummary, ChainError, CrlSummary, CsrError, CsrSummary, PemError};

use serde_json::Value;

use crate::panel::{NoBundle, Refused};

pub(crate) fn csr(csr: &CsrSummary, refusal: Option<&str>) -> String {
    let mut text = Text("certificate signing request\n".to_owned());
    let or_unreadable = |value: &Option<String>| value.clone().unwrap_or_else(|| "not readable".to_owned());
    text.line("subject", &or_unreadable(&csr.subject));
    text.line("public key", &or_unreadable(&csr.public_key));
    text.line("signature", &or_unreadable(&csr.signature_algorithm));
    text.list("names", &csr.subject_alt_names);
    text.list("extensions", &csr.requested_extensions);
    text.list("malformed", &csr.malformed_extensions);
    text.list("refused", refusal.as_slice());
    text.list("SPKI SHA-256", csr.spki_sha256.as_slice());
    text.0
}

pub(crate) fn certificate(certificate: &CertificateSummary) -> String {
    let role = if certificate.is_ca { "certificate of an authority" } else { "certificate" };
    let mut text = Text(format!("{role} (version {})\n", certificate.version));
    text.line("subject", &certificate.subject);
    text.line("issuer", &certificate.issuer);
    text.line("serial", &certificate.serial);
    text.line("not before", &certificate.not_before.to_string());
    text.line("not after", &certificate.not_after.to_string());
    text.line("public key", &certificate.public_key);
    text.line("signature", &certificate.signature_algorithm);
    text.list("names", &certificate.subject_alt_names);
    if let Some(path_length) = certificate.path_length {
        text.line("path length", &path_length.to_string());
    }
    text.list("constraints", &certificate.name_constraints);
    text.list("key usage", &certificate.key_usage);
    text.list("good for", &certificate.extended_key_usage);
    text.list("CRL", &certificate.crl_distribution_points);
    text.list("other", &certificate.other_extensions);
    text.list("malformed", &certificate.malformed_extensions);
    text.line("SHA-256", &certificate.fingerprint_sha256.to_string());
    text.0
}

pub(crate) fn revocation_list(list: &CrlSummary) -> String {
    let mut text = Text(format!("certificate revocation list (version {})\n", list.version));
    text.line("issuer", &list.issuer);
    text.list("number", list.number.as_slice());
    text.line("made", &list.this_update.to_string());
    text.line("next", &list.next_update.map_or_else(|| "not said".to_owned(), |time| time.to_string()));
    text.line("signature", &list.signature_algorithm);
    text.list("other", &list.other_extensions);
    text.line("SHA-256", &list.fingerprint_sha256.to_string());
    text.line("revoked", &list.revoked_count.to_string());
    for entry in &list.revoked {
        let reason = entry.reason.map_or_else(String::new, |reason| format!(" {reason}"));
        text.line("", &format!("{} {}{reason}", entry.revoked_at, entry.serial));
    }
    if list.revoked_count > list.revoked.len() {
        text.line("", &format!("and {} more", list.revoked_count - list.revoked.len()));
    }
    text.0
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
            return Some(
                "use --passphrase-file where a command has it, or decrypt a copy: openssl pkey -in KEY -out COPY",
            );
        }
        if let Some(ChainError::UnknownIssuer { .. }) = cause.downcast_ref() {
            return Some("give intermediates after the leaf or with --untrusted, and the root with --anchor");
        }
        if let Some(Pkcs12Error::WrongPassword) = cause.downcast_ref() {
            return Some("--password-file names a file with the password in its first line");
        }
        if let Some(PrivateKeyError::Malformed) = cause.downcast_ref() {
            return Some("`openssl pkcs8 -topk8 -nocrypt` makes PKCS #8 of other keys");
        }
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            return refused.hint();
        }
        if let Some(no_bundle) = cause.downcast_ref::<NoBundle>() {
            return Some(no_bundle.hint());
        }
        let tls = cause.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref()?.downcast_ref());
        if let Some(rustls::Error::InvalidCertificate(_)) = tls {
            return Some("a panel signs its own certificate: name it with --server-cert, or look away with --insecure");
        }
        if let Some(PemError::NoBlock { .. }) = cause.downcast_ref() {
            return Some("PEM starts with -----BEGIN; DER is read too");
        }
        None
    })
}

/// Fields that a list shows, with their titles.
pub(crate) type Columns = &'static [(&'static str, &'static str)];

/// Records as a table, a line each.
pub(crate) fn table(columns: Columns, rows: &[Value]) -> String {
    let cells = |row: &Value| columns.iter().map(|(field, _)| cell(&row[*field])).collect::<Vec<_>>();
    let mut lines = vec![columns.iter().map(|(_, title)| (*title).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let text = lines.iter().map(|line| {
        let line: String = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        format!("{}\n", line.trim_end())
    });
    text.collect()
}

/// A value of JSON in few words.
pub(crate) fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    // What another wrote must not steer the terminal.
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

/// Names and values in two columns.
pub(crate) struct Text(String);

impl Text {
    pub(crate) fn new(title: &str) -> Self {
        Self(format!("{title}\n"))
    }

    pub(crate) fn finish(self) -> String {
        self.0
    }

    pub(crate) fn line(&mut self, name: &str, value: &str) {
        self.0 += &format!("  {name:<13} {}\n", printable(value));
    }

    pub(crate) fn list(&mut self, name: &str, values: &[impl AsRef<str>]) {
        for (at, value) in values.iter().enumerate() {
            self.line(if at == 0 { name } else { "" }, value.as_ref());
        }
    }
}

/// Text from a document must not steer the terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || is_invisible(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Marks that turn the direction of what follows, or are seen by nobody: a name
/// must not read as another one.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
    )
}
