//! Requests from other projects' test data, with the verdicts of seven
//! implementations: nothing that Go, pyca/cryptography or OpenSSL refuses is
//! accepted here, and what we refuse against all three has its reason in
//! `tests/data/corpus-disagreements.tsv`.
//!
//! The corpus is not part of this repository; `ADIT_CSR_CORPUS` names its
//! directory (a `csr` folder of DER files beside `csr-verdicts.tsv`). Without
//! the variable the test has nothing to compare and says so.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pki_core::{Csr, KeyPolicy};

use crate::authority::backends;

#[test]
fn disagreements_with_other_implementations_are_listed() {
    let Some(corpus) = std::env::var_os("ADIT_CSR_CORPUS").map(PathBuf::from) else {
        eprintln!("ADIT_CSR_CORPUS is not set: nothing compared");
        return;
    };
    let known = known_disagreements();
    let verdicts = std::fs::read_to_string(corpus.join("csr-verdicts.tsv")).expect("csr-verdicts.tsv");
    let mut compared = 0;
    let mut problems = Vec::new();
    let mut seen = BTreeMap::new();
    for line in verdicts.lines().skip(1) {
        let columns: Vec<_> = line.split('\t').collect();
        let [file, _, _, _, _, go, pyca, openssl, ..] = columns[..] else { panic!("{line}") };
        let der = std::fs::read(corpus.join("csr").join(file)).expect("a file of the corpus");
        let all_accept = [go, pyca, openssl].iter().all(|verdict| *verdict == "ok");
        for (backend, verifier) in backends() {
            let ours = Csr::from_der(&der).and_then(|csr| csr.verify(verifier.as_ref(), &KeyPolicy::new()));
            match ours {
                Ok(_) if !all_accept => {
                    problems.push(format!("{backend} accepts {file}: go {go}, pyca {pyca}, openssl {openssl}"));
                }
                Err(error) if all_accept => {
                    if known.get(file).is_none_or(|reason| !error.to_string().starts_with(reason.as_str())) {
                        problems.push(format!("{backend} refuses {file}\t{error}"));
                    }
                    seen.insert(file.to_owned(), ());
                }
                _ => {}
            }
        }
        compared += 1;
    }
    for file in known.keys().filter(|file| !seen.contains_key(*file)) {
        problems.push(format!("{file} is listed, and there is no disagreement"));
    }
    assert!(compared > 200, "{compared} requests compared");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    eprintln!("{compared} requests compared, {} disagreements, all listed", known.len());
}

fn known_disagreements() -> BTreeMap<String, String> {
    include_str!("../data/corpus-disagreements.tsv")
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once('\t'))
        .map(|(file, reason)| (file.to_owned(), reason.to_owned()))
        .collect()
}
