//! PKCS #12: other programs' files are read, ours have the structure they
//! must have, and hostile ones cost little. `ADIT_JUDGED_CERTS` gets a
//! directory `pkcs12` with files in both forms, for other judges.

use std::path::PathBuf;

use pki_core::pkcs12::{
    Bundle, Contents, Encryption, MAX_PKCS12_BAGS, MAX_PKCS12_ITERATIONS, MAX_PKCS12_OCTETS, Pkcs12Error, open,
    seal_for_fuzzing,
};
use proptest::prelude::*;

const NON_ASCII: &str = "pässwörd–€😀";

fn data(name: &str) -> Vec<u8> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/pkcs12");
    std::fs::read(directory.join(name)).expect("a fixture")
}

fn random() -> [u8; 80] {
    let mut octets = [0; 80];
    for (at, octet) in octets.iter_mut().enumerate() {
        *octet = u8::try_from(at).expect("80") | 0x80;
    }
    octets
}

fn write(encryption: Encryption, password: &str, friendly_name: Option<&str>) -> Vec<u8> {
    let (private_key, certificate, authority) = (data("key.der"), data("leaf.der"), data("ca.der"));
    let bundle =
        Bundle { private_key: &private_key, certificate: &certificate, authorities: &[&authority], friendly_name };
    bundle.encrypt(password, encryption, &random()).expect("a file").to_vec()
}

fn check(contents: &Contents, authorities: usize, name: Option<&str>) {
    assert_eq!(contents.private_keys.len(), 1);
    assert_eq!(contents.private_keys[0].pkcs8_der(), data("key.der"));
    assert_eq!(contents.private_keys[0].friendly_name.as_deref(), name);
    assert_eq!(contents.certificates.len(), 1 + authorities);
    assert_eq!(contents.certificates[0].der, data("leaf.der"));
    assert_eq!(contents.certificates[0].friendly_name.as_deref(), name);
    assert!(contents.private_keys[0].local_key_id.is_some());
    assert_eq!(contents.certificates[0].local_key_id, contents.private_keys[0].local_key_id);
    if let Some(authority) = contents.certificates.get(1) {
        assert_eq!(authority.der, data("ca.der"));
        assert_eq!(authority.local_key_id, None);
    }
}

#[test]
fn files_of_other_programs_are_read() {
    for (file, password, authorities, name, encryption, mac) in [
        (
            "openssl-default.p12",
            "secret",
            1,
            Some("Läptop"),
            "AES-256-CBC with a key by PBKDF2-HMAC-SHA-256, 2048 iterations",
            "HMAC-SHA-256, 2048 iterations",
        ),
        (
            "openssl-legacy.p12",
            "secret",
            1,
            None,
            "3DES-CBC with a key by SHA-1, 2048 iterations",
            "HMAC-SHA-1, 2048 iterations",
        ),
        (
            "openssl-aes128-sha512.p12",
            "secret",
            0,
            None,
            "AES-192-CBC with a key by PBKDF2-HMAC-SHA-256, 2048 iterations",
            "HMAC-SHA-512, 2048 iterations",
        ),
        (
            "openssl-pbes2-3des.p12",
            "secret",
            0,
            None,
            "3DES-CBC with a key by PBKDF2-HMAC-SHA-256, 2048 iterations",
            "HMAC-SHA-256, 2048 iterations",
        ),
        ("openssl-plain.p12", "secret", 0, None, "", "HMAC-SHA-256, 2048 iterations"),
        (
            "openssl-empty-password.p12",
            "",
            0,
            None,
            "AES-256-CBC with a key by PBKDF2-HMAC-SHA-256, 2048 iterations",
            "HMAC-SHA-1, 2048 iterations",
        ),
        (
            "openssl-non-ascii-password.p12",
            NON_ASCII,
            0,
            None,
            "AES-256-CBC with a key by PBKDF2-HMAC-SHA-256, 2048 iterations",
            "HMAC-SHA-384, 2048 iterations",
        ),
        (
            "pyca.p12",
            "secret",
            1,
            Some("laptop"),
            "AES-256-CBC with a key by PBKDF2-HMAC-SHA-256, 5000 iterations",
            "HMAC-SHA-256, 2048 iterations",
        ),
        (
            "java.p12",
            "secret",
            1,
            Some("läptop"),
            "AES-256-CBC with a key by PBKDF2-HMAC-SHA-256, 10000 iterations",
            "HMAC-SHA-256, 10000 iterations",
        ),
    ] {
        let contents = open(&data(file), password).unwrap_or_else(|error| panic!("{file}: {error}"));
        if file == "java.p12" {
            // Java names the key alone, and joins the chain by names.
            assert_eq!(contents.private_keys[0].pkcs8_der(), data("key.der"));
            assert_eq!(contents.certificates.len(), 2);
        } else {
            check(&contents, authorities, name);
        }
        assert_eq!(contents.encryption.first().map_or("", String::as_str), encryption, "{file}");
        assert_eq!(contents.mac, mac, "{file}");
        assert_eq!(open(&data(file), "Secret").err(), Some(Pkcs12Error::WrongPassword), "{file}");
    }
}

/// PBMAC1 (RFC 9579): made by `tests/data/pkcs12/pbmac1.py` with hashlib.
#[test]
fn macs_with_a_key_by_pbkdf2_are_verified() {
    for (file, mac) in [
        ("pbmac1-sha256.p12", "HMAC-SHA-256 with a key by PBKDF2-HMAC-SHA-256, 4096 iterations"),
        ("pbmac1-sha512-sha256.p12", "HMAC-SHA-256 with a key by PBKDF2-HMAC-SHA-512, 4096 iterations"),
        ("pbmac1-sha512.p12", "HMAC-SHA-512 with a key by PBKDF2-HMAC-SHA-512, 4096 iterations"),
    ] {
        let contents = open(&data(file), "secret").unwrap_or_else(|error| panic!("{file}: {error}"));
        check(&contents, 1, Some("Läptop"));
        assert_eq!(contents.mac, mac);
        assert_eq!(open(&data(file), "Secret").err(), Some(Pkcs12Error::WrongPassword), "{file}");
        // One of the MAC's own iterations, and one octet of its salt.
        for (at, from) in [(0x5a, [0x5a, 0x5a]), (0x00, [0x10, 0x00])] {
            let mut changed = data(file);
            let place = changed.windows(2).rposition(|pair| pair == from).expect("the parameters");
            changed[place + 1] = at ^ 1;
            assert_eq!(open(&changed, "secret").err(), Some(Pkcs12Error::WrongPassword), "{file}");
        }
    }
    // RFC 9579 appendix A.6: without its length the key is not to be guessed at.
    let refused = open(&data("pbmac1-no-length.p12"), "secret");
    assert!(matches!(refused, Err(Pkcs12Error::Der(_))), "{:?}", refused.err());
}

/// The vectors of RFC 9579 appendix A: the first three are good, of the others the
/// iterations and the salt are wrong, or the length of the key is missing.
#[test]
fn vectors_of_rfc_9579_are_judged_as_it_says() {
    for (file, mac) in [
        ("rfc9579-a1.p12", "HMAC-SHA-256 with a key by PBKDF2-HMAC-SHA-256, 2048 iterations"),
        ("rfc9579-a2.p12", "HMAC-SHA-256 with a key by PBKDF2-HMAC-SHA-512, 2048 iterations"),
        ("rfc9579-a3.p12", "HMAC-SHA-512 with a key by PBKDF2-HMAC-SHA-512, 2048 iterations"),
    ] {
        let contents = open(&data(file), "1234").unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!((contents.private_keys.len(), contents.certificates.len()), (1, 1), "{file}");
        assert_eq!(contents.mac, mac);
        assert_eq!(open(&data(file), "12345").err(), Some(Pkcs12Error::WrongPassword), "{file}");
    }
    for file in ["rfc9579-a4.p12", "rfc9579-a5.p12"] {
        assert_eq!(open(&data(file), "1234").err(), Some(Pkcs12Error::WrongPassword), "{file}");
    }
    let refused = open(&data("rfc9579-a6.p12"), "1234");
    assert!(matches!(refused, Err(Pkcs12Error::Der(_))), "{:?}", refused.err());
}

/// What Windows, Java and scripts write where a BMPString or an OCTET STRING
/// should stand, or nothing at all.
#[test]
fn attributes_of_odd_types_are_no_reason_to_refuse() {
    const FRIENDLY_NAME: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x14";
    const LOCAL_KEY_ID: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x09\x15";
    const KEY_BAG: &[u8] = b"\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x01";
    for (id, value, name) in [
        (FRIENDLY_NAME, element(0x0c, "nämé".as_bytes()), Some("nämé")),
        (FRIENDLY_NAME, element(0x1e, &[0, 0x61]), Some("a")),
        (FRIENDLY_NAME, vec![], None),
        (FRIENDLY_NAME, element(0x0c, &[0xff]), None),
        (LOCAL_KEY_ID, element(0x0c, b"1"), None),
        (LOCAL_KEY_ID, vec![], None),
    ] {
        let attribute = element(0x30, &[id, &element(0x31, &value)].concat());
        let bag = [KEY_BAG, &element(0xa0, &data("key.der")), &element(0x31, &attribute)].concat();
        let safe = element(0x30, &element(0x30, &bag));
        let contents = open(&seal_for_fuzzing(&auth_safe(&safe), "x"), "x").expect("a key");
        assert_eq!(contents.private_keys[0].pkcs8_der(), data("key.der"));
        assert_eq!(contents.private_keys[0].friendly_name.as_deref(), name, "{value:02x?}");
    }
}

#[test]
fn what_is_not_read_says_so() {
    let error = open(&data("openssl-rc2.p12"), "secret").expect_err("RC2");
    assert!(error.to_string().contains("40-bit RC2 (1.2.840.113549.1.12.1.6)"), "{error}");
    assert!(error.to_string().contains("openssl pkcs12 -legacy"), "{error}");
    assert_eq!(open(&data("openssl-no-mac.p12"), "secret").err(), Some(Pkcs12Error::MissingMac));
    assert!(matches!(open(&data("key.der"), "secret"), Err(Pkcs12Error::Version(0))));
    assert!(matches!(open(&data("leaf.der"), "secret"), Err(Pkcs12Error::Der(_))));
    assert!(matches!(open(b"", "secret"), Err(Pkcs12Error::Der(_))));
    // Outermost, and further inside: an OCTET STRING in pieces.
    let indefinite = [&[0x30, 0x80][..], &data("openssl-default.p12")[4..], &[0, 0]].concat();
    assert_eq!(open(&indefinite, "secret").err(), Some(Pkcs12Error::Ber { offset: 0 }));
    let mut constructed = data("openssl-default.p12");
    let at = constructed.windows(2).position(|pair| pair == [0x04, 0x82]).expect("the AuthenticatedSafe");
    constructed[at] = 0x24;
    assert_eq!(open(&constructed, "secret").err(), Some(Pkcs12Error::Ber { offset: at }));
}

#[test]
fn both_forms_read_back() {
    for encryption in [Encryption::Aes256, Encryption::Legacy] {
        for (password, name) in [("3fa9c1", None), ("", Some("Läptop 😀")), (NON_ASCII, Some("laptop"))] {
            let file = write(encryption, password, name);
            let contents = open(&file, password).expect("our own file");
            check(&contents, 1, name);
            assert_eq!(contents.encryption.len(), 1);
            assert_eq!(open(&file, "other").err(), Some(Pkcs12Error::WrongPassword));
            assert_eq!(write(encryption, password, name), file, "randomness comes in as a value");
            let shown = format!("{contents:?}");
            assert!(shown.contains("(secret)") && !shown.contains("pkcs8: ["), "{shown}");
        }
    }
}

/// What keychains were tried with, octet for octet where it is not encrypted.
#[test]
fn the_legacy_form_is_what_openssl_writes() {
    let skeleton = |file: &[u8]| {
        let mut found = Vec::new();
        walk(file, 0, &mut found);
        found
    };
    // The same key and certificates: salts, MACs and cipher texts differ, lengths and all else do not.
    let (ours, theirs) = (write(Encryption::Legacy, "secret", None), data("openssl-legacy.p12"));
    assert_eq!(skeleton(&ours), skeleton(&theirs));
    let (ours, theirs) = (write(Encryption::Aes256, "secret", Some("Läptop")), data("openssl-default.p12"));
    // Ours has more iterations and longer salts; the elements are the same.
    let kinds = |file: &[u8]| skeleton(file).into_iter().map(|(depth, tag, _)| (depth, tag)).collect::<Vec<_>>();
    assert_eq!(kinds(&ours), kinds(&theirs));
}

/// Depth, tag, and the value of what is neither random nor encrypted.
fn walk(mut der: &[u8], depth: usize, found: &mut Vec<(usize, u8, Vec<u8>)>) {
    while let [tag, first, ..] = *der {
        let (header, length) = match first {
            0..=0x7f => (2, usize::from(first)),
            0x81 => (3, usize::from(der[2])),
            _ => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
        };
        let value = &der[header..header + length];
        let is_nested = tag & 0x20 != 0 || (tag == 0x04 && value.first() == Some(&0x30) && length > 64);
        let is_shown = matches!(tag, 0x02 | 0x05 | 0x06 | 0x1e) || depth > 8 && tag == 0x04 && length == 20;
        found.push((depth, tag, if is_shown { value.to_vec() } else { length.to_be_bytes().to_vec() }));
        if is_nested {
            walk(value, depth + 1, found);
        }
        der = &der[header + length..];
    }
}

#[test]
fn nonsense_is_not_written() {
    fn write(private_key: &[u8], certificate: &[u8], authorities: &[&[u8]]) -> Option<Pkcs12Error> {
        let bundle = Bundle { private_key, certificate, authorities, friendly_name: None };
        bundle.encrypt("x", Encryption::Aes256, &random()).err()
    }

    let (key, leaf) = (data("key.der"), data("leaf.der"));
    assert!(matches!(write(&leaf, &leaf, &[]), Some(Pkcs12Error::PrivateKey(_))));
    assert!(matches!(write(&key, &key, &[]), Some(Pkcs12Error::Certificate(_))));
    assert!(matches!(write(&key, &leaf, &[&key]), Some(Pkcs12Error::Certificate(_))));
    let many = vec![leaf.as_slice(); MAX_PKCS12_BAGS - 1];
    assert_eq!(write(&key, &leaf, &many), Some(Pkcs12Error::TooManyBags { limit: MAX_PKCS12_BAGS }));
    assert_eq!(write(&key, &leaf, &many[1..]), None);
}

#[test]
fn hostile_files_cost_little() {
    let limit = MAX_PKCS12_OCTETS;
    let large = vec![0x30; limit + 1];
    assert_eq!(open(&large, "x").err(), Some(Pkcs12Error::TooLarge { size: limit + 1, limit }));
    let refused = Some(Pkcs12Error::Iterations { limit: MAX_PKCS12_ITERATIONS });
    // The MAC's iterations are the last element: 2048 in two octets become 2^31 and a bit.
    let mut file = data("openssl-legacy.p12");
    assert_eq!(file[file.len() - 4..], [0x02, 0x02, 0x08, 0x00]);
    let at = file.len() - 3;
    file.splice(at.., [0x04, 0x7f, 0xff, 0xff, 0xff]);
    // Two more octets in the MacData and in the PFX.
    let mac_data = file.windows(4).rposition(|octets| octets == [0x30, 0x31, 0x30, 0x21]).expect("the MacData");
    file[mac_data + 1] += 2;
    file[3] += 2;
    assert_eq!(open(&file, "x").err(), refused);
    // Good MAC, greedy content: 64 bags are read, 65 are not.
    for (bags, expected) in [(64, None), (65, Some(Pkcs12Error::TooManyBags { limit: MAX_PKCS12_BAGS }))] {
        let bag = element(0x30, &[&[0x06, 0x01, 0x2a][..], &[0xa0, 0x02, 0x05, 0x00]].concat());
        let safe = element(0x30, &bag.repeat(bags));
        assert_eq!(open(&seal_for_fuzzing(&auth_safe(&safe), "x"), "x").err(), expected);
    }
}

/// Plain data as the one part.
fn auth_safe(safe: &[u8]) -> Vec<u8> {
    const DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
    let content = element(0xa0, &element(0x04, safe));
    element(0x30, &element(0x30, &[DATA, &content].concat()))
}

fn element(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("short");
    let header = match length {
        0..=0x7f => vec![tag, length.to_be_bytes()[1]],
        0x80..=0xff => vec![tag, 0x81, length.to_be_bytes()[1]],
        _ => [&[tag, 0x82][..], &length.to_be_bytes()].concat(),
    };
    [&header[..], value].concat()
}

#[test]
fn files_for_other_judges() {
    let Some(directory) = std::env::var_os("ADIT_JUDGED_CERTS").map(PathBuf::from) else { return };
    let directory = directory.join("pkcs12");
    std::fs::create_dir_all(&directory).expect("a directory");
    for encryption in [Encryption::Aes256, Encryption::Legacy] {
        for (name, friendly_name) in [("plain", None), ("named", Some("Läptop"))] {
            let file = write(encryption, "secret", friendly_name);
            std::fs::write(directory.join(format!("{encryption}-{name}.p12")), file).expect("written");
        }
        let file = write(encryption, NON_ASCII, None);
        std::fs::write(directory.join(format!("{encryption}-non-ascii.p12")), file).expect("written");
    }
}

proptest! {
    // Key derivation is slow on purpose.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn octets_that_change_never_pass_nor_panic(at: usize, flip in 1..=255_u8, legacy: bool) {
        let mut file = data(if legacy { "openssl-legacy.p12" } else { "pyca.p12" });
        let at = at % file.len();
        file[at] ^= flip;
        // A change of what no MAC covers may do nothing, as in the NULL of an algorithm.
        if let Ok(contents) = open(&file, "secret") {
            check(&contents, 1, if legacy { None } else { Some("laptop") });
        }
    }

    #[test]
    fn any_password_reads_back(password in ".{0,40}", name in proptest::option::of(".{0,20}"), legacy: bool) {
        let encryption = if legacy { Encryption::Legacy } else { Encryption::Aes256 };
        let file = write(encryption, &password, name.as_deref());
        check(&open(&file, &password).expect("our own file"), 1, name.as_deref());
        let other = format!("{password}x");
        prop_assert_eq!(open(&file, &other).err(), Some(Pkcs12Error::WrongPassword));
    }
}

proptest! {
    #[test]
    fn octets_that_change_below_a_good_mac_never_panic(at: usize, flip in 1..=255_u8) {
        // The AuthenticatedSafe of a file starts after four headers and ends before the MacData.
        let file = data("openssl-plain.p12");
        let start = file.windows(2).position(|pair| pair == [0x04, 0x82]).expect("the AuthenticatedSafe") + 4;
        let length = usize::from(u16::from_be_bytes([file[start - 2], file[start - 1]]));
        let mut auth_safe = file[start..start + length].to_vec();
        prop_assert!(open(&seal_for_fuzzing(&auth_safe, "secret"), "secret").is_ok());
        let at = at % auth_safe.len();
        auth_safe[at] ^= flip;
        let _ = open(&seal_for_fuzzing(&auth_safe, "secret"), "secret");
    }
}
