//! The program as people and scripts run it: files, output, exit status.

mod errors;
mod p12;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

const HOST: &str = "my-agent.adit.localhost";

struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// With an authority in `ca` and a key and request for [`HOST`].
    fn with_request() -> Self {
        let directory = Self::new();
        directory.succeed(&["init", "ca", "--zone", "adit.localhost"]);
        directory.succeed(&["csr", HOST]);
        directory
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ca-cli"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_remove("ADIT_CA_PASSPHRASE_FILE")
            .env_remove("ADIT_P12_PASSWORD");
        command.output().expect("ca-cli runs")
    }

    /// Standard output of a run that must succeed.
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Standard error of a run that must fail with this status.
    fn fail(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

#[test]
fn a_request_is_signed_and_verified() {
    let directory = Directory::with_request();
    let csr = format!("{HOST}.csr");
    directory.succeed(&["sign", &csr, "--ca", "ca", "--out", "my-agent.crt"]);
    directory.succeed(&["verify", "my-agent.crt", "--anchor", "ca/root.crt", "--host", HOST, "--usage", "server"]);
    let error = directory.fail(1, &["verify", "my-agent.crt", "--anchor", "ca/root.crt", "--host", "x.adit.localhost"]);
    assert!(error.contains("not for \"x.adit.localhost\""), "{error}");
    let error = directory.fail(1, &["verify", "my-agent.crt", "--anchor", "ca/root.crt", "--at", "0"]);
    assert!(error.contains("caused by: certificate 0 is valid from"), "{error}");
}

#[test]
fn keys_are_private_and_never_overwritten() {
    let directory = Directory::with_request();
    let key = directory.path().join(format!("{HOST}.key"));
    assert_eq!(fs::metadata(&key).expect("the key").permissions().mode() & 0o777, 0o600);
    let before = fs::read(&key).expect("the key");
    directory.succeed(&["csr", HOST, "--algorithm", "rsa2048"]);
    assert_eq!(fs::read(&key).expect("the key"), before, "the key that is there is used");
    let error = directory.fail(1, &["init", "ca", "--zone", "other.localhost"]);
    assert!(error.contains("ca exists") && error.contains("hint:"), "{error}");
}

#[test]
fn a_key_is_made_in_no_file_called_like_a_stream() {
    let directory = Directory::new();
    let url = ["--url", "https://127.0.0.1:1", "--cert", "none.p12"];
    for command in [&["csr", HOST, "--key", "-"][..], &[&["panel", "upgrade", "--new-key", "-"][..], &url].concat()] {
        let error = directory.fail(1, command);
        assert!(error.contains("name it"), "{command:?}: {error}");
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 0, "{command:?}");
    }
}

#[test]
fn an_output_replaces_neither_a_key_nor_an_input() {
    let directory = Directory::with_request();
    let (csr, key) = (format!("{HOST}.csr"), format!("{HOST}.key"));
    let at = |name: &str| directory.path().join(name);
    let content = |name: &str| fs::read(at(name)).expect("a file");
    std::os::unix::fs::symlink(&key, at("link")).expect("a link");
    let leaf = directory.succeed(&["sign", &csr, "--ca", "ca"]);
    fs::write(at("leaf.crt"), leaf).expect("written");
    // As every PKCS #12 file begins.
    fs::write(at("bundle.p12"), [0x30, 0x03, 0x02, 0x01, 0x03]).expect("written");
    let sign = |out: &str| ["sign", &csr, "--ca", "ca", "--out", out].map(str::to_owned);
    let make = |out: &str| ["csr", HOST, "--key", &key, "--out", out].map(str::to_owned);
    let mut commands = vec![make(&key).to_vec(), make(&format!("./{key}")).to_vec(), make("link").to_vec()];
    for out in [&key, &csr, "link", "ca/root.crt", "ca/issuing.key", "bundle.p12"] {
        commands.push(sign(out).to_vec());
    }
    let fresh = ["csr", HOST, "--key", "fresh.key", "--out", "fresh.key"].map(str::to_owned);
    commands.push(fresh.to_vec());
    for command in commands {
        let out = command.last().expect("an output").clone();
        let before = fs::read(at(&out)).ok();
        let error = directory.fail(1, &command.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.contains("--force"), "{command:?}: {error}");
        assert_eq!(fs::read(at(&out)).ok(), before, "{command:?}");
    }
    // Public files are replaced; others when they must.
    directory.succeed(&["sign", &csr, "--ca", "ca", "--out", "leaf.crt"]);
    directory.succeed(&["sign", &csr, "--ca", "ca", "--out", &key, "--force"]);
    assert!(content(&key).starts_with(b"-----BEGIN CERTIFICATE"));
}

#[test]
fn a_passphrase_file_that_was_not_filled_in_is_refused() {
    let directory = Directory::new();
    for text in ["", "  \n", "\u{feff}"] {
        fs::write(directory.path().join("secret"), text).expect("written");
        let error = directory.fail(1, &["init", "ca", "--zone", "adit.localhost", "--passphrase-file", "secret"]);
        assert!(error.contains("the passphrase is empty"), "{error}");
        assert!(!directory.path().join("ca").exists());
    }
}

#[test]
fn keys_of_openssl_are_used_as_they_are() {
    let directory = Directory::new();
    let sec1 = include_str!("../../../../crates/ca-dir/tests/data/sec1.pem");
    fs::write(directory.path().join("sec1.pem"), sec1).expect("written");
    directory.succeed(&["csr", HOST, "--key", "sec1.pem"]);
    assert!(directory.succeed(&["inspect", &format!("{HOST}.csr")]).contains("P-256"));
}

#[test]
fn inspect_tells_what_is_there_and_what_is_wrong_with_it() {
    let directory = Directory::with_request();
    let read = |name: &str| fs::read_to_string(directory.path().join(name)).expect("a file");
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("written");
    let request = read(&format!("{HOST}.csr"));
    // One character of the signature: the request reads, and is refused.
    let body: String = request.lines().rev().nth(1).expect("a line").into();
    let changed = if body.starts_with('A') { body.replacen('A', "B", 1) } else { format!("A{}", &body[1..]) };
    write("forged.csr", &request.replace(&body, &changed));
    let shown = directory.succeed(&["inspect", "forged.csr"]);
    assert!(shown.contains("P-256") && shown.contains("  refused "), "{shown}");
    let shown = directory.succeed(&["inspect", &format!("{HOST}.csr"), "--json"]);
    assert!(shown.contains("\"refused\": null"), "{shown}");
    // Not a request at all: the reason, and not the label.
    write("cut.csr", "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n");
    let error = directory.fail(1, &["inspect", "cut.csr"]);
    assert!(error.contains("the request is not valid DER"), "{error}");
    assert_eq!(error.matches("expected ").count(), 1, "a cause is told once: {error}");
    let utf16: Vec<u8> = format!("\u{feff}{request}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(directory.path().join("utf16.csr"), utf16).expect("written");
    let error = directory.fail(1, &["sign", "utf16.csr", "--ca", "ca"]);
    assert!(error.contains("UTF-16"), "{error}");
    write("escaped.csr", &request.replace('\n', "\\n"));
    let error = directory.fail(1, &["sign", "escaped.csr", "--ca", "ca"]);
    assert!(error.contains("written as \\n"), "{error}");
    write("bom.csr", &format!("\u{feff}{request}"));
    directory.succeed(&["sign", "bom.csr", "--ca", "ca"]);
    // A key, a chain under labels of three ages, in one file.
    let root = read("ca/root.crt");
    let old =
        root.replace("BEGIN CERTIFICATE", "BEGIN X509 CERTIFICATE").replace("END CERTIFICATE", "END X509 CERTIFICATE");
    write("all.pem", &format!("{}{}{old}", read(&format!("{HOST}.key")), read("ca/issuing.crt")));
    let shown = directory.succeed(&["inspect", "all.pem"]);
    assert_eq!(shown.matches("certificate of an authority").count(), 2, "{shown}");
}

/// A request that was cut, or is wrong anywhere: subject and key are told beside the reason.
#[test]
fn inspect_tells_what_can_be_read_of_a_request_that_is_refused() {
    let directory = Directory::with_request();
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).expect("written");
    let pem = fs::read_to_string(directory.path().join(format!("{HOST}.csr"))).expect("a request");
    let lines: Vec<&str> = pem.lines().collect();
    let cut = [lines[0], lines[1], lines[2], lines[3], *lines.last().expect("a line"), ""].join("\n");
    write("cut.csr", cut.as_bytes());
    let shown = directory.succeed(&["inspect", "cut.csr"]);
    assert!(shown.contains(&format!("CN={HOST}")) && shown.contains("P-256"), "{shown}");
    assert!(shown.contains("not readable") && shown.contains("refused       the request is not valid DER"), "{shown}");
    let shown: serde_json::Value =
        serde_json::from_str(&directory.succeed(&["inspect", "cut.csr", "--json"])).expect("JSON");
    assert_eq!((&shown["common_names"][0], &shown["signature_algorithm"]), (&HOST.into(), &serde_json::Value::Null));
    assert!(shown["refused"].as_str().is_some_and(|reason| reason.contains("not valid DER")), "{shown}");
    // It is refused all the same.
    let error = directory.fail(1, &["sign", "cut.csr", "--ca", "ca"]);
    assert!(error.contains("the request is not valid DER"), "{error}");

    // Key, request and certificate in one file: each is told, and the one request is signed.
    directory.succeed(&["sign", &format!("{HOST}.csr"), "--ca", "ca", "--out", "leaf.crt"]);
    let all = [&format!("{HOST}.key"), "leaf.crt", &format!("{HOST}.csr")]
        .map(|name| fs::read_to_string(directory.path().join(name)).expect("a file"));
    write("all.pem", all.concat().as_bytes());
    let shown = directory.succeed(&["inspect", "all.pem"]);
    assert_eq!(shown.matches("certificate signing request").count(), 1, "{shown}");
    assert_eq!(shown.matches("certificate (version 3)").count(), 1, "{shown}");
    directory.succeed(&["sign", "all.pem", "--ca", "ca", "--out", "again.crt"]);
}

/// What is good is told, and what is not is an error all the same.
#[test]
fn inspect_tells_the_good_blocks_beside_bad_ones() {
    let directory = Directory::with_request();
    let request = format!("{HOST}.csr");
    directory.succeed(&["sign", &request, "--ca", "ca", "--no-chain", "--out", "leaf.crt"]);
    let [leaf, request] =
        ["leaf.crt", &request].map(|name| fs::read_to_string(directory.path().join(name)).expect(name));
    let block = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
    for bad in [
        block("CERTIFICATE", "MIIB"),
        block("CERTIFICATE", "not base64!"),
        block("CERTIFICATE REQUEST", "MIIB"),
        block("X509 CRL", "MIIB"),
        "-----BEGIN CERTIFICATE-----\nMIIB\n".to_owned(),
    ] {
        for text in [format!("{leaf}{bad}{request}"), format!("{bad}{leaf}{request}"), format!("{leaf}{request}{bad}")]
        {
            fs::write(directory.path().join("all.pem"), text).expect("written");
            let output = directory.run(&["inspect", "all.pem"]);
            let [shown, error] = [&output.stdout, &output.stderr].map(|octets| String::from_utf8_lossy(octets));
            assert_eq!(output.status.code(), Some(1), "{bad}");
            assert!(shown.contains("certificate (version 3)") && shown.contains("signing request"), "{bad}: {shown}");
            assert!(error.contains("cannot inspect block ") && error.contains("caused by: "), "{bad}: {error}");
            let output = directory.run(&["inspect", "all.pem", "--json"]);
            let shown: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!((shown.as_array().map(Vec::len), output.status.code()), (Some(2), Some(1)), "{bad}");
        }
    }
    fs::write(directory.path().join("all.pem"), block("CERTIFICATE", "MIIB").repeat(2)).expect("written");
    let error = directory.fail(1, &["inspect", "all.pem"]);
    assert!(error.contains("block 1 of") && error.contains("block 2 of"), "{error}");
}

#[test]
fn a_request_is_made_with_an_encrypted_key() {
    let directory = Directory::new();
    for (name, passphrase) in [("right", "correct horse\n"), ("wrong", "battery staple\n")] {
        fs::write(directory.path().join(name), passphrase).expect("written");
    }
    directory.succeed(&["csr", HOST, "--key", "k", "--passphrase-file", "right"]);
    let key = fs::read_to_string(directory.path().join("k")).expect("a key");
    assert!(key.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"), "{key}");
    let csr = format!("{HOST}.csr");
    let spki = |shown: &str| shown.lines().find(|line| line.contains("SPKI")).map(str::to_owned);
    let first = spki(&directory.succeed(&["inspect", &csr]));
    directory.succeed(&["csr", HOST, "--key", "k", "--passphrase-file", "right"]);
    assert_eq!(spki(&directory.succeed(&["inspect", &csr])), first);
    let error = directory.fail(1, &["csr", HOST, "--key", "k", "--passphrase-file", "wrong"]);
    assert!(error.contains("passphrase"), "{error}");
    let error = directory.fail(1, &["csr", HOST, "--key", "k"]);
    assert!(error.contains("encrypted") && error.contains("--passphrase-file"), "{error}");
    let error = directory.fail(1, &["csr", HOST, "--key", "k", "--passphrase-file", "right", "--out", "right"]);
    assert!(error.contains("is an input"), "{error}");
}

#[test]
fn programs_read_json() {
    let directory = Directory::with_request();
    let csr = format!("{HOST}.csr");
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&directory.succeed(arguments)).expect("JSON on standard output")
    };
    let signed = json(&["sign", &csr, "--ca", "ca", "--days", "30", "--json"]);
    fs::write(directory.path().join("leaf.crt"), signed["cert_pem"].as_str().expect("PEM")).expect("written");
    let shown = json(&["inspect", "leaf.crt", "--json"]);
    assert_eq!(shown["fingerprint_sha256"], signed["fingerprint_sha256"]);
    assert_eq!(shown["subject_alt_names"], serde_json::json!([format!("DNS:{HOST}")]));
    let fingerprints = json(&["fingerprint", "leaf.crt", "--json"]);
    assert_eq!(fingerprints, serde_json::json!([signed["fingerprint_sha256"]]));
    let request = json(&["inspect", &csr, "--json"]);
    assert_eq!(request["common_names"], serde_json::json!([HOST]));
    let output = directory.run(&["verify", "leaf.crt", "--anchor", "ca/root.crt", "--json"]);
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON even when it fails");
    assert_eq!((output.status.code(), verdict["valid"].as_bool()), (Some(1), Some(false)));
}

#[test]
fn refusals_say_why_and_what_next() {
    let directory = Directory::with_request();
    let csr = format!("{HOST}.csr");
    let error = directory.fail(1, &["sign", &csr, "--ca", "ca", "--host", "other.adit.localhost"]);
    assert!(error.starts_with("ca-cli: error: the request my-agent.adit.localhost.csr is refused\n"), "{error}");
    assert!(error.contains("caused by: the common name is \"my-agent.adit.localhost\""), "{error}");
    assert!(error.contains("hint:"), "{error}");
    let error = directory.fail(1, &["sign", "missing.csr", "--ca", "ca"]);
    assert!(error.contains("cannot read missing.csr"), "{error}");
    directory.succeed(&["csr", "stranger.example", "--key", &format!("{HOST}.key")]);
    let error = directory.fail(1, &["sign", "stranger.example.csr", "--ca", "ca"]);
    assert!(error.contains("may not sign for \"stranger.example\""), "{error}");
    directory.fail(2, &["sign"]);
    directory.fail(2, &["sign", &csr, "--ca", "ca", "--days", "0"]);
}

#[test]
fn text_of_a_document_does_not_steer_the_terminal() {
    let directory = Directory::new();
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "\u{1b}]0;owned\u{7}\u{202e}moc.elpmaxe");
    let certificate = params.self_signed(&key).expect("a certificate");
    fs::write(directory.path().join("odd.crt"), certificate.pem()).expect("written");
    let shown = directory.succeed(&["inspect", "odd.crt"]);
    assert!(!shown.contains(['\u{1b}', '\u{202e}']), "{shown:?}");
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    use std::process::Stdio;

    let directory = Directory::with_request();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ca-cli"));
    command.args(["completions", "zsh"]).current_dir(directory.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("ca-cli runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ca-cli ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn completions_and_standard_streams_work() {
    let directory = Directory::with_request();
    assert!(directory.succeed(&["completions", "bash"]).contains("ca-cli"));
    let pem = directory.succeed(&["sign", &format!("{HOST}.csr"), "--ca", "ca"]);
    assert_eq!(pem.matches("-----BEGIN CERTIFICATE-----").count(), 2, "leaf and intermediate");
    let pem = directory.succeed(&["sign", &format!("{HOST}.csr"), "--ca", "ca", "--no-chain"]);
    assert_eq!(pem.matches("-----BEGIN CERTIFICATE-----").count(), 1);
}
