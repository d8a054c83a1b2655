//! What each command does: files in, library calls, an answer out.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use ca_dir::{CaDir, leaf_profile, random_serial};
use pki_core::crypto::aws_lc::{self, AwsLc};
use pki_core::crypto::{PrivateKeyError, Signer, rustcrypto};
use pki_core::{
    Csr, CsrError, DnsName, Expectation, Issuer, KeyPolicy, MAX_CRL_OCTETS, PemError, Profile, Time, Usage,
    certificate_to_pem, certificates_from_file, inspect_certificate, inspect_crl, inspect_csr, requests_from_file,
    revocation_lists_from_file, verify_chain,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::files::Output;
use crate::{Fingerprint, Init, Inspect, NewCsr, Sign, Verify, files, text};

pub(crate) fn init(init: &Init, json: bool) -> anyhow::Result<()> {
    let passphrase = files::passphrase(init.passphrase_file.as_deref())?;
    let ca = CaDir::create(&init.directory, &init.zone, passphrase.as_ref(), now())?;
    let root = init.directory.join(ca_dir::ROOT_CERTIFICATE);
    let fingerprint = pki_core::Fingerprint::of(&ca.root);
    if json {
        return print_json(&json!({
            "directory": init.directory, "zone": init.zone.as_str(), "root": root, "root_fingerprint_sha256": fingerprint,
        }));
    }
    files::print(&format!("{}\n", root.display()))?;
    eprintln!("made a certificate authority for {} in {}", init.zone, init.directory.display());
    eprintln!("clients must trust {} (SHA-256 {fingerprint})", root.display());
    eprintln!("{} is not needed to sign: keep it in a safe place", init.directory.join(ca_dir::ROOT_KEY).display());
    Ok(())
}

pub(crate) fn csr(csr: &NewCsr, json: bool) -> anyhow::Result<()> {
    if !csr.host.fits_common_name() {
        eprintln!("{} is too long for a common name: the request names it in the subjectAltName alone", csr.host);
    }
    let key_path = csr.key.clone().unwrap_or_else(|| PathBuf::from(format!("{}.key", csr.host)));
    let out = csr.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.csr", csr.host)));
    let inputs: Vec<&Path> = [&key_path].into_iter().chain(&csr.passphrase_file).map(PathBuf::as_path).collect();
    files::require_file_for_key(&key_path)?;
    let output = Output::new(&out, &inputs, csr.force)?;
    let passphrase = files::passphrase(csr.passphrase_file.as_deref())?;
    let key = if key_path.exists() {
        eprintln!("using the key in {}", key_path.display());
        files::read_key_pair(&key_path, passphrase.as_ref())?
    } else {
        let key = ca_dir::generate_key(csr.algorithm)?;
        ca_dir::write_private_key(&key_path, &key, passphrase.as_ref())?;
        eprintln!("made a private key: {}", key_path.display());
        key
    };
    let mut params = rcgen::CertificateParams::new(vec![csr.host.to_string()]).context("cannot make the request")?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if csr.host.fits_common_name() {
        params.distinguished_name.push(rcgen::DnType::CommonName, csr.host.as_str());
    }
    let request = params.serialize_request(&key).context("cannot make the request")?;
    output.write(request.pem().context("cannot make the request")?.as_bytes())?;
    if out != Path::new("-") {
        eprintln!("made a request for {}: {}", csr.host, out.display());
        if json {
            return print_json(&json!({ "host": csr.host.as_str(), "key": key_path, "csr": out }));
        }
    }
    Ok(())
}

pub(crate) fn sign(sign: &Sign, json: bool) -> anyhow::Result<()> {
    let authority = [ca_dir::ROOT_CERTIFICATE, ca_dir::ROOT_KEY, ca_dir::ISSUING_CERTIFICATE, ca_dir::ISSUING_KEY];
    let authority = authority.map(|file| sign.ca.join(file));
    let inputs = [Some(&sign.csr), sign.passphrase_file.as_ref()].into_iter().flatten().chain(&authority);
    let output = Output::new(&sign.out, &inputs.map(PathBuf::as_path).collect::<Vec<_>>(), sign.force)?;
    let passphrase = files::passphrase(sign.passphrase_file.as_deref())?;
    let read = || format!("cannot use the request {}", sign.csr.display());
    let request = Csr::from_file(&files::read(&sign.csr)?).with_context(read)?;
    let host = match &sign.host {
        Some(host) => host.clone(),
        None => own_name(&request).with_context(read)?,
    };
    let ca = CaDir::open_with(&sign.ca, passphrase.as_ref(), key_for_one_signature)?;
    ca.validity()?.check(now())?;
    let issuer = Issuer::new(&ca.issuing, &ca.key)?;
    let profile = Profile::try_from(leaf_profile(Usage::ServerAuth, sign.days))?;
    let approved = request
        .verify(&AwsLc, &KeyPolicy::new())
        .and_then(|csr| csr.approve_host(&host))
        .with_context(|| format!("the request {} is refused", sign.csr.display()))?;
    let leaf = approved.to_be_signed(&issuer, &profile, random_serial()?, now())?.sign(&ca.key)?;
    let chain = if sign.no_chain { String::new() } else { certificate_to_pem(&ca.issuing) };
    let to_stdout = sign.out == Path::new("-");
    if !(json && to_stdout) {
        output.write(format!("{}{chain}", leaf.to_pem()).as_bytes())?;
    }
    eprintln!("signed {host} until {} (SHA-256 {})", leaf.not_after(), leaf.fingerprint());
    if json {
        return print_json(&json!({
            "host": host.as_str(),
            "serial": leaf.serial().to_string(),
            "not_before": leaf.not_before(),
            "not_after": leaf.not_after(),
            "fingerprint_sha256": leaf.fingerprint(),
            "cert_pem": leaf.to_pem(),
            "chain_pem": chain,
        }));
    }
    Ok(())
}

/// AWS-LC gathers entropy for 20 ms before its first ECDSA signature. One
/// signature is all here, and the pure Rust backend takes its nonce from key and
/// message (RFC 6979). It has no RSA.
fn key_for_one_signature(pkcs8: &[u8]) -> Result<Box<dyn Signer>, PrivateKeyError> {
    match rustcrypto::PrivateKey::from_pkcs8_der(pkcs8) {
        Ok(key) => Ok(Box::new(key)),
        Err(_) => Ok(Box::new(aws_lc::PrivateKey::from_pkcs8_der(pkcs8)?)),
    }
}

pub(crate) fn inspect(inspect: &Inspect, json: bool) -> anyhow::Result<()> {
    let bytes = files::read_at_most(&inspect.file, MAX_CRL_OCTETS as u64)?;
    let file = inspect.file.display();
    let blocks = blocks(&bytes);
    let [_, _, ..] = blocks.as_slice() else {
        let parts = parts(&bytes).with_context(|| format!("cannot inspect {file}"))?;
        return match (json, parts.as_slice()) {
            (true, [(one, _)]) => print_json(one),
            (_, many) => print_parts(many, json),
        };
    };
    // What cannot be read must not hide what can.
    let (mut read, mut unread) = (Vec::new(), Vec::new());
    for (number, block) in (1..).zip(blocks) {
        match parts(block).with_context(|| format!("cannot inspect block {number} of {file}")) {
            Ok(parts) => read.extend(parts),
            Err(error) => unread.push(error),
        }
    }
    if !read.is_empty() {
        print_parts(&read, json)?;
    }
    let Some(last) = unread.pop() else { return Ok(()) };
    for error in unread {
        eprintln!("ca-cli: error: {error:#}");
    }
    Err(last)
}

fn print_parts(parts: &[(Value, String)], json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&parts.iter().map(|(value, _)| value).collect::<Vec<_>>());
    }
    files::print(&parts.iter().map(|(_, text)| text.as_str()).collect::<String>())
}

/// The blocks of a PEM file that should be requests, certificates or revocation lists, each with
/// what follows it up to the next one. DER has none.
fn blocks(bytes: &[u8]) -> Vec<&[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    if bytes.first() == Some(&0x30) {
        return Vec::new();
    }
    let begins = bytes.windows(BEGIN.len()).enumerate().filter(|(_, window)| *window == BEGIN).map(|(at, _)| at);
    let begins: Vec<_> = begins.chain([bytes.len()]).collect();
    let blocks = begins.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
    let is_shown = |block: &&[u8]| {
        let label = block[BEGIN.len()..].split(|octet| *octet == b'-').next().unwrap_or_default();
        [&b"CERTIFICATE"[..], b"CERTIFICATE REQUEST", b"CRL"].iter().any(|known| label.ends_with(known))
    };
    blocks.filter(is_shown).collect()
}

/// What a file, or one of its blocks, holds, for programs and for people: any number of requests,
/// certificates and revocation lists, whatever else stands between them.
fn parts(bytes: &[u8]) -> anyhow::Result<Vec<(Value, String)>> {
    let mut parts = Vec::new();
    // DER has no label: what one reader refuses may be another one's.
    let is_der = bytes.first() == Some(&0x30);
    let is_other = is_der && (inspect_certificate(bytes).is_ok() || inspect_crl(bytes).is_ok());
    let requests = requests_from_file(bytes);
    for der in requests.as_deref().unwrap_or_default() {
        let (summary, refusal) = match (inspect_csr(der), Csr::from_der(der)) {
            (_, Err(_)) if is_other => continue,
            (Some(summary), Ok(request)) => (summary, refusal(request).map(|error| error.to_string())),
            (Some(summary), Err(error)) => (summary, Some(error.to_string())),
            (None, Err(error)) if !is_der => return Err(error.into()),
            (None, _) => continue,
        };
        let mut value = serde_json::to_value(&summary)?;
        value["refused"] = json!(refusal);
        parts.push((value, text::csr(&summary, refusal.as_deref())));
    }
    let certificates = certificates_from_file(bytes);
    for der in certificates.as_deref().unwrap_or_default() {
        match inspect_certificate(der) {
            Ok(summary) => parts.push((serde_json::to_value(&summary)?, text::certificate(&summary))),
            Err(_) if is_der => {}
            Err(error) => return Err(error.into()),
        }
    }
    for der in revocation_lists_from_file(bytes).as_deref().unwrap_or_default() {
        match inspect_crl(der) {
            Ok(summary) => parts.push((serde_json::to_value(&summary)?, text::revocation_list(&summary))),
            Err(error) if parts.is_empty() && !is_der => return Err(error.into()),
            Err(_) => {}
        }
    }
    if !parts.is_empty() {
        return Ok(parts);
    }
    // Nothing is readable: a request says so by its label, or by an error that only requests have.
    let not_a_request = if is_der { Csr::from_der(bytes).map(drop) } else { requests.map(drop) };
    let not_a_certificate = if is_der { inspect_certificate(bytes).map(drop) } else { certificates.map(drop) };
    match (not_a_request, not_a_certificate) {
        (Err(CsrError::Der(_) | CsrError::TooLarge { .. }), Err(error)) => Err(error.into()),
        (Err(CsrError::Pem(PemError::WrongLabel { .. } | PemError::NoBlock { .. })), Err(error)) => Err(error.into()),
        (Err(error), _) => Err(error.into()),
        (Ok(()), _) => bail!("there is neither a subject nor a key in it"),
    }
}

/// Why `ca-cli sign` would not sign a request for its own name.
fn refusal(request: Csr) -> Option<anyhow::Error> {
    let host = own_name(&request);
    let verified = match request.verify(&AwsLc, &KeyPolicy::new()) {
        Ok(verified) => verified,
        Err(error) => return Some(error.into()),
    };
    match host {
        Ok(host) => verified.approve_host(&host).err().map(Into::into),
        Err(error) => Some(error),
    }
}

pub(crate) fn verify(verify: &Verify, json: bool) -> anyhow::Result<()> {
    let certificates = |path: &Path| {
        certificates_from_file(&files::read(path)?).with_context(|| format!("cannot use {}", path.display()))
    };
    let mut chain = certificates(&verify.chain)?;
    if let Some(untrusted) = &verify.untrusted {
        chain.extend(certificates(untrusted)?);
    }
    let anchors = certificates(&verify.anchor)?;
    let expectation =
        Expectation { host: verify.host.as_ref(), usage: verify.usage, at: verify.at.unwrap_or_else(now) };
    let result = verify_chain(&borrowed(&chain), &borrowed(&anchors), &expectation, &AwsLc);
    if json {
        let reason = result.as_ref().err().map(ToString::to_string);
        print_json(&json!({ "valid": result.is_ok(), "reason": reason }))?;
    }
    result.with_context(|| format!("{} does not verify", verify.chain.display()))?;
    if !json {
        eprintln!("{}: good", verify.chain.display());
    }
    Ok(())
}

pub(crate) fn fingerprint(fingerprint: &Fingerprint, json: bool) -> anyhow::Result<()> {
    let context = || format!("cannot use {}", fingerprint.file.display());
    let certificates = certificates_from_file(&files::read(&fingerprint.file)?).with_context(context)?;
    let mut all = Vec::new();
    for der in &certificates {
        all.push(pki_core::Certificate::from_der(der).with_context(context)?.fingerprint());
    }
    if json {
        return print_json(&all);
    }
    files::print(&all.iter().map(|fingerprint| format!("{fingerprint}\n")).collect::<String>())
}

pub(crate) fn borrowed(certificates: &[Vec<u8>]) -> Vec<&[u8]> {
    certificates.iter().map(Vec::as_slice).collect()
}

/// The one common name of a request that its reader did not name a host for.
fn own_name(request: &Csr) -> anyhow::Result<DnsName> {
    match request.common_names()?.as_slice() {
        [name] => name.parse().with_context(|| format!("its common name {name:?} is no host name")),
        [] => bail!("it has no common name: say --host"),
        _ => bail!("it has several common names: say --host"),
    }
}

pub(crate) fn print_json(value: &(impl Serialize + ?Sized)) -> anyhow::Result<()> {
    files::print(&(serde_json::to_string_pretty(value)? + "\n"))
}

pub(crate) fn now() -> Time {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time::from_unix(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX))
}
