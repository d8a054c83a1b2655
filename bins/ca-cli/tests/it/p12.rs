//! PKCS #12 files and revocation lists.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use crate::{Directory, HOST};

impl Directory {
    /// With `leaf.crt`, its chain behind it, and `leaf.key`.
    fn with_leaf() -> Self {
        let directory = Self::with_request();
        directory.succeed(&["sign", &format!("{HOST}.csr"), "--ca", "ca", "--out", "leaf.crt"]);
        fs::rename(directory.path().join(format!("{HOST}.key")), directory.path().join("leaf.key")).expect("renamed");
        directory
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path().join(name), content).expect("written");
    }

    /// With something on standard input and in the environment.
    fn run_with(&self, arguments: &[&str], input: &[u8], password: Option<&str>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ca-cli"));
        command.args(arguments).current_dir(self.path()).env_remove("ADIT_P12_PASSWORD");
        if let Some(password) = password {
            command.env("ADIT_P12_PASSWORD", password);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("ca-cli runs");
        // A program that refuses early does not read.
        let _ = child.stdin.take().expect("standard input").write_all(input);
        child.wait_with_output().expect("ca-cli ends")
    }
}

const EXPORT: [&str; 6] = ["p12", "export", "--cert", "leaf.crt", "--key", "leaf.key"];

#[test]
fn a_file_is_made_with_a_password_of_its_own_and_inspected() {
    let directory = Directory::with_leaf();
    let output = directory.run(&[&EXPORT[..], &["--chain", "ca/root.crt", "--name", "läptop"]].concat());
    let words = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success() && output.stdout.is_empty(), "{words}");
    let file = directory.path().join("leaf.p12");
    assert_eq!(fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
    let password = words.trim_end().rsplit(' ').next().expect("a password").to_owned();
    assert!(password.len() == 32 && password.bytes().all(|octet| b"0123456789abcdef".contains(&octet)), "{words}");

    directory.write("password", format!("{password}\r\nnot this\n").as_bytes());
    let shown = directory.succeed(&["p12", "inspect", "leaf.p12", "--password-file", "password"]);
    assert!(shown.starts_with("PKCS #12 file\n  MAC           HMAC-SHA-256, 10000 iterations\n"), "{shown}");
    assert!(shown.contains("private key   P-256\n") && shown.contains("certificate number 1\n"), "{shown}");
    assert!(shown.contains("läptop") && shown.contains(HOST), "{shown}");
    let output = directory.run_with(&["p12", "inspect", "leaf.p12", "--json"], b"", Some(&password));
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(shown["keys_match"], true);
    assert_eq!(shown["private_keys"][0]["kind"], "P-256");
    assert_eq!(shown["certificates"].as_array().map(Vec::len), Some(3), "leaf, issuing and root");
    assert_eq!(shown["certificates"][0]["subject_alt_names"], serde_json::json!([format!("DNS:{HOST}")]));

    let error = directory.fail(1, &["p12", "inspect", "leaf.p12"]);
    assert!(error.contains("the password is wrong") && error.contains("hint:"), "{error}");
}

#[test]
fn files_are_not_overwritten_and_keys_must_fit() {
    let directory = Directory::with_leaf();
    directory.write("password", b"secret\n");
    let export = [&EXPORT[..], &["--password-file", "password"]].concat();
    let output = directory.succeed(&[&export[..], &["--json"]].concat());
    let made: serde_json::Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!((made["p12"].as_str(), made["certificates"].as_u64()), (Some("leaf.p12"), Some(2)));
    let before = fs::read(directory.path().join("leaf.p12")).expect("the file");
    let error = directory.fail(1, &export);
    assert!(error.contains("leaf.p12 exists") && error.contains("hint:"), "{error}");
    assert_eq!(fs::read(directory.path().join("leaf.p12")).expect("the file"), before);

    directory.succeed(&["csr", "other.adit.localhost", "--key", "other.key"]);
    let error = directory.fail(1, &["p12", "export", "--cert", "leaf.crt", "--key", "other.key"]);
    assert!(error.contains("other.key is not the key of the certificate leaf.crt"), "{error}");
    let error = directory.fail(1, &["p12", "export", "--cert", "leaf.crt", "--key", "leaf.crt"]);
    assert!(error.contains("leaf.crt is not a private key in PEM"), "{error}");
    directory.write("empty", b"\n");
    let error = directory.fail(1, &[&EXPORT[..], &["--password-file", "empty", "--out", "x.p12"]].concat());
    assert!(error.contains("the password is empty"), "{error}");
    directory.fail(2, &[&EXPORT[..], &["--encryption", "rc2"]].concat());
    directory.fail(2, &["p12", "export"]);
    assert!(!directory.path().join("x.p12").exists());
}

#[test]
fn standard_streams_and_both_forms_work() {
    let directory = Directory::with_leaf();
    for (encryption, mac) in [("aes256", "HMAC-SHA-256, 10000"), ("legacy", "HMAC-SHA-1, 2048")] {
        let export = [&EXPORT[..], &["--encryption", encryption, "--password-file", "-", "--out", "-"]].concat();
        let made = directory.run_with(&export, "pässword\n".as_bytes(), Some("not this one"));
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        assert!(!String::from_utf8_lossy(&made.stderr).contains("pässword"));
        let shown = directory.run_with(&["p12", "inspect"], &made.stdout, Some("pässword"));
        assert!(String::from_utf8_lossy(&shown.stdout).contains(mac), "{shown:?}");
    }
    let refused = directory.run_with(&["p12", "inspect", "-", "--password-file", "-"], b"", None);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only one file can be -"), "{refused:?}");
    let refused = directory.run_with(&["p12", "inspect", "leaf.crt"], b"", None);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not valid DER"), "{refused:?}");
}

#[test]
fn revocation_lists_are_inspected() {
    use pki_core::crypto::aws_lc::PrivateKey;
    use pki_core::{Issuer, RevokedCertificate, Time};

    let directory = Directory::new();
    let pair = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&pair).expect("a certificate");
    let key = PrivateKey::from_pkcs8_der(&pair.serialize_der()).expect("PKCS #8");
    let issuer = Issuer::new(certificate.der(), &key).expect("an authority");
    let serials: Vec<_> = (1..=1001_u16).map(u16::to_be_bytes).collect();
    let revoked_at = Time::from_unix(1_795_000_000);
    let revoked: Vec<_> = serials.iter().map(|serial| RevokedCertificate { serial, revoked_at }).collect();
    let list = issuer.revocation_list(&revoked, 7, revoked_at, Time::from_unix(1_796_000_000)).expect("a list");
    let list = list.sign(&key).expect("the key signs");
    directory.write("list.pem", list.to_pem().as_bytes());
    directory.write("list.der", list.der());
    let shown = directory.succeed(&["inspect", "list.pem"]);
    assert!(shown.starts_with("certificate revocation list (version 2)\n"), "{shown}");
    assert!(shown.contains("2026-11-18T11:06:40Z 03e8\n") && shown.ends_with("and 1 more\n"), "{shown}");
    assert_eq!(directory.succeed(&["inspect", "list.der"]), shown);
    let json = directory.succeed(&["inspect", "list.der", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((json["number"].as_str(), json["revoked_count"].as_u64()), (Some("7"), Some(1001)));
    directory.write("bad.pem", b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n");
    let error = directory.fail(1, &["inspect", "bad.pem"]);
    assert!(error.contains("the revocation list is not valid DER"), "{error}");
}
